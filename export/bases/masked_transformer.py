"""A transformer that fills in the masked codes of a stretch of video, for Phenaki (Villegas et al., arXiv 2210.02399).

All codes of the new stretch see each other, the text, and the codes before it, which are frozen. Those see each other
and the text, but never what follows: so their keys and values are the same at every step of the sampling, are computed
once (`remember`), and every layer gets them by reference as a context segment of `fairy::anchor_attention`. (In the
paper the frozen codes see the new ones, and are computed anew at every step.)

Legend of shape suffixes: B rows (guidance branches, or clips in training), P token frames before, M new token frames,
S = h·w codes of a token frame, N = M·S or P·S, C channels, L text tokens, K codes.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fairy.export.bases.video_unet import Attention, FeedForward
from fairy.kernels.anchor_attention import anchor_attention, anchor_attention_sdpa
from fairy.kernels.errors import InputError

_EXPANSION = 4  # of the layers' feed-forward parts


class MaskedLayer(nn.Module):
    """Attention of codes to each other and to what is remembered, to the text, and a feed-forward part."""

    def __init__(self, channels: int, heads: int, text: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(channels), heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.text = Attention(channels, heads, text)
        self.feed_forward = FeedForward(channels, _EXPANSION)

    def forward(self, x_BNC: Tensor, text_BLC: Tensor, before_2BNC: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The codes' features [B, N, C], and their keys and values, each [B, N, C]; `before`: those remembered."""
        normed = self.norm(x_BNC)
        q, own = self.to_q(normed), self.to_kv(normed).chunk(2, dim=2)
        x_BNC = x_BNC + self.to_out(_attend(q, own, before_2BNC, self.heads))
        x_BNC = self.feed_forward(self.text(x_BNC, text_BLC))
        return x_BNC, own


def _attend(q_BNC: Tensor, own: tuple[Tensor, ...], before_2BNC: Tensor | None, heads: int) -> Tensor:
    """Each row is a group of one frame, what is remembered its context. Training does not use the op: no gradient."""
    attention = anchor_attention_sdpa if torch.is_grad_enabled() else anchor_attention
    context_k, context_v = ([], []) if before_2BNC is None else ([part[:, None]] for part in before_2BNC)
    k, v = (part[:, None] for part in own)
    out = attention(q_BNC[:, None], k, v, context_k, context_v, heads=heads)
    return out[:, 0]


class MaskedVideoTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Logits of the codes of a stretch of video; see this file's head, `remember` and `forward`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_codes: int = 1000,
        height: int = 8,
        width: int = 8,
        max_frames: int = 4,
        max_frames_before: int = 3,
        hidden_size: int = 192,
        num_attention_heads: int = 6,
        num_layers: int = 6,
        cross_attention_dim: int = 96,
    ) -> None:
        """Fresh weights.

        Args:
            num_codes: of the tokenizer; the number `num_codes` itself stands for a masked code.
            height, width: codes of a token frame.
            max_frames, max_frames_before: token frames that are new at once, and that are seen before them.
            cross_attention_dim: channels of the text's features.
        """
        super().__init__()
        c, places = hidden_size, height * width

        def table(entries: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(entries, c))

        self.codes = nn.Embedding(num_codes + 1, c)
        nn.init.normal_(self.codes.weight, std=0.02)
        self.places, self.times = table(places), table(max_frames)
        self.times_before, self.start = table(max_frames_before), table(1)
        layers = (MaskedLayer(c, num_attention_heads, cross_attention_dim) for _ in range(num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm_out, self.to_logits = nn.LayerNorm(c), nn.Linear(c, num_codes)

    @property
    def mask(self) -> int:
        """The number that stands for a masked code."""
        return int(self.config["num_codes"])

    def remember(self, codes: Tensor, encoder_hidden_states: Tensor, *, is_start: bool) -> Tensor:
        """Keys and values of what comes before the new stretch, for `forward`: [layers, 2, B, N, C].

        Args:
            codes: int64 [B, P, h, w], the last ones before the stretch, 1 ≤ P ≤ `max_frames_before`.
            encoder_hidden_states: the text's features [B, L, C'].
            is_start: whether the first of these token frames is the video's first, which is a single frame.
        """
        self._check(codes, "max_frames_before")
        x_BNC = self._embedded(codes, self.times_before[: codes.shape[1]].flip(0), is_start)
        kept = []
        for layer in self.layers:
            x_BNC, own = layer(x_BNC, encoder_hidden_states, None)
            kept.append(torch.stack(own))
        return torch.stack(kept)

    def forward(self, codes: Tensor, encoder_hidden_states: Tensor, before: Tensor | None) -> Tensor:
        """Logits of every code of a new stretch, [B, M, h, w, num_codes].

        Args:
            codes: int64 [B, M, h, w], masked ones as `mask`; 1 ≤ M ≤ `max_frames`.
            encoder_hidden_states: the text's features [B, L, C'].
            before: what `remember` made of the codes before; None = the stretch begins the video.

        Raises:
            InputError: there are too many token frames, or they are of another size.
        """
        self._check(codes, "max_frames")
        x_BNC = self._embedded(codes, self.times[: codes.shape[1]], before is None)
        for i, layer in enumerate(self.layers):
            x_BNC, _ = layer(x_BNC, encoder_hidden_states, None if before is None else before[i])
        logits = self.to_logits(self.norm_out(x_BNC))
        made: Tensor = logits.view(*codes.shape, -1)
        return made

    def _embedded(self, codes: Tensor, times_MC: Tensor, is_start: bool) -> Tensor:
        """[B, M, h, w] to [B, M·h·w, C]."""
        x_BMSC: Tensor = self.codes(codes.flatten(2)) + self.places + times_MC[:, None]
        if is_start:
            x_BMSC = torch.cat([x_BMSC[:, :1] + self.start, x_BMSC[:, 1:]], dim=1)
        return x_BMSC.flatten(1, 2)

    def _check(self, codes: Tensor, most: str) -> None:
        size = int(self.config["height"]), int(self.config["width"])
        if codes.dim() != 4 or codes.shape[2:] != size or not 1 <= codes.shape[1] <= self.config[most]:
            wanted = f"[rows, 1 to {self.config[most]}, {size[0]}, {size[1]}]"
            raise InputError(f"codes must be {wanted}, not {list(codes.shape)}; cut them into stretches of that kind.")
