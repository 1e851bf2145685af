"""A causal video tokenizer, C-ViViT (Villegas et al., Phenaki, arXiv 2210.02399, section 2.1 and appendix A).

The first frame is cut into squares by itself, the frames after it into boxes of two frames; every square and box
becomes one code. Spatial layers see all places of one token frame, temporal layers one place of this and earlier token
frames; the decoder has them the other way round. So a code never depends on later frames, a picture is a video of one
frame, and a video of any length goes through in chunks: what a chunk needs of those before it is the keys and values of
the last `temporal_window - 1` token frames, whatever the length. (The paper's layers see all that came before.)

Codes are those of finite scalar quantisation (Mentzer et al., arXiv 2309.15505) instead of the paper's learnt codebook:
no entry can fall out of use, and there is no loss but that of the pixels.

Legend of shape suffixes: B videos, F frames, T token frames (T = (F + 1) / 2), S = h·w places, N = B·S, C channels,
L temporal layers, P past token frames, K numbers of a code.
"""

from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fairy.export.bases.video_unet import Attention, FeedForward
from fairy.kernels.errors import InputError

BLOCK = 2  # frames of a token frame, but for the first
_EXPANSION = 4  # of the layers' feed-forward parts
_SHRINK = 1e-3  # keeps values off the outermost levels' borders


class FiniteScalarQuantizer:
    """K numbers, each rounded to one of a few levels; a code is their mixed-radix number."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = levels
        self.num_codes = prod(levels)

    def __call__(self, z: Tensor) -> Tensor:
        """[..., K] to the same in -1 to 1, rounded to levels; gradients pass as if nothing were rounded."""
        count = torch.tensor(self.levels, device=z.device)
        half = (count - 1) * ((1 - _SHRINK) / 2)
        offset = 0.5 * (count % 2 == 0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (count // 2)

    def codes(self, levels: Tensor) -> Tensor:
        """What a call returned as codes, int64 [...]."""
        count = torch.tensor(self.levels, device=levels.device)
        digits = (levels * (count // 2)).round().long() + count // 2
        return (digits * self._radix(levels.device)).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """The inverse of `codes`: float32 [..., K]."""
        count = torch.tensor(self.levels, device=codes.device)
        digits = codes[..., None] // self._radix(codes.device) % count
        return (digits - count // 2).float() / (count // 2)

    def _radix(self, device: torch.device) -> Tensor:
        return torch.tensor([prod(self.levels[:i]) for i in range(len(self.levels))], device=device)


class CausalAttention(nn.Module):
    """Attention of every place over this token frame and the last ones, with a learnt bias for each distance."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm, self.heads, self.window = nn.LayerNorm(channels), heads, window
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.distance = nn.Parameter(torch.zeros(heads, window))

    def forward(self, x_NTC: Tensor, past_NPC2: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [N, T, C], and the keys and values that the next chunk needs.

        Args:
            past_NPC2: keys and values of up to window - 1 token frames before, [N, P, 2·C].
        """
        n, t, c = x_NTC.shape
        normed = self.norm(x_NTC)
        own = self.to_kv(normed)
        kv = torch.cat([past_NPC2.to(own.dtype), own], dim=1)
        q = self.to_q(normed).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in kv.chunk(2, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(t, kv.shape[1]).to(q.dtype))
        made = x_NTC + self.to_out(y.transpose(1, 2).reshape(n, t, c))
        return made, kv[:, max(0, kv.shape[1] - self.window + 1) :]

    def _bias(self, queries: int, keys: int) -> Tensor:
        """What is added to the scores, [heads, queries, keys]: -inf for what is later or too long ago."""
        at = torch.arange(keys, device=self.distance.device)
        distance = at[keys - queries :, None] - at
        is_seen = (distance >= 0) & (distance < self.window)
        bias = self.distance[:, distance.clamp(0, self.window - 1)]
        return bias.masked_fill(~is_seen, float("-inf"))


class SpatialLayer(nn.Module):
    """Attention of all places of a token frame to each other, and a feed-forward part."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(channels, heads)
        self.feed_forward = FeedForward(channels, _EXPANSION)

    def forward(self, x_BTSC: Tensor) -> Tensor:
        """[B, T, S, C] to the same."""
        x = self.feed_forward(self.attention(x_BTSC.flatten(0, 1)))
        return cast(Tensor, x.view(x_BTSC.shape))


class TemporalLayer(nn.Module):
    """Attention of every place to itself in this and earlier token frames, and a feed-forward part."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.attention = CausalAttention(channels, heads, window)
        self.feed_forward = FeedForward(channels, _EXPANSION)

    def forward(self, x_BTSC: Tensor, past_NPC2: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, S, C] to the same, and what the next chunk needs."""
        b, t, s, c = x_BTSC.shape
        x_NTC, past = self.attention(x_BTSC.transpose(1, 2).reshape(b * s, t, c), past_NPC2)
        x_NTC = self.feed_forward(x_NTC)
        return x_NTC.view(b, s, t, c).transpose(1, 2), past


class CausalVideoTokenizer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Videos to codes and back; see this file's head, `encode` and `decode`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        height: int = 64,
        width: int = 64,
        patch_size: int | tuple[int, int] = 8,
        hidden_size: int = 128,
        num_attention_heads: int = 4,
        num_spatial_layers: int = 3,
        num_temporal_layers: int = 1,
        temporal_window: int = 4,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        in_channels: int = 3,
    ) -> None:
        """Fresh weights.

        Args:
            height, width: of the videos in pixels, multiples of `patch_size`.
            patch_size: pixels of a code: the side of a square, or height and width.
            temporal_window: token frames that a temporal layer sees, with its own.
            levels: of the numbers of a code; their product is the number of codes.
        """
        super().__init__()
        pixels, c = in_channels * prod(self.patch), hidden_size
        places = prod(self.grid)

        def spatial() -> nn.ModuleList:
            return nn.ModuleList(SpatialLayer(c, num_attention_heads) for _ in range(num_spatial_layers))

        def temporal() -> nn.ModuleList:
            layers = (TemporalLayer(c, num_attention_heads, temporal_window) for _ in range(num_temporal_layers))
            return nn.ModuleList(layers)

        self.first_in, self.block_in = nn.Linear(pixels, c), nn.Linear(BLOCK * pixels, c)
        self.encoder_places = nn.Parameter(0.02 * torch.randn(places, c))
        self.encoder_spatial, self.encoder_temporal = spatial(), temporal()
        self.to_code = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, len(levels)))
        self.quantizer = FiniteScalarQuantizer(tuple(levels))
        self.from_code = nn.Linear(len(levels), c)
        self.decoder_places = nn.Parameter(0.02 * torch.randn(places, c))
        self.decoder_temporal, self.decoder_spatial = temporal(), spatial()
        self.norm_out = nn.LayerNorm(c)
        self.first_out, self.block_out = nn.Linear(c, pixels), nn.Linear(c, BLOCK * pixels)

    @property
    def num_codes(self) -> int:
        """How many codes there are."""
        return self.quantizer.num_codes

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a code in pixels."""
        size = self.config["patch_size"]
        high, wide = (size, size) if isinstance(size, int) else size
        return int(high), int(wide)

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of a token frame: rows and columns."""
        high, wide = self.patch
        return int(self.config["height"]) // high, int(self.config["width"]) // wide

    @property
    def memory(self) -> int:
        """Token frames before a chunk that what is made of it can depend on."""
        return int(self.config["num_temporal_layers"]) * (int(self.config["temporal_window"]) - 1)

    def encode(self, video: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The codes of a chunk of a video, int64 [B, T, h, w], and the state that the next chunk needs.

        Args:
            video: [B, 3, F, H, W] in -1 to 1; the first chunk has 1 + 2·m frames, every other one 2·m.
            state: what `encode` returned for the chunk before, [L, N, P, 2·C]; None = the video begins here.

        Raises:
            InputError: frames or sizes are not of that kind.
        """
        levels, state = self._encode(video, state)
        return self.quantizer.codes(levels).unflatten(2, self.grid), state

    def decode(self, codes: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The frames of a chunk of codes, [B, 3, F, H, W] in about -1 to 1, and the state that the next chunk needs.

        Args:
            codes: int64 [B, T, h, w].
            state: what `decode` returned for the chunk before, [L, N, P, 2·C]; None = the video begins here.
        """
        levels = self.quantizer.values(codes.flatten(2)).to(self.from_code.weight.dtype)
        return self._decode(levels, state)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """A video [B, 3, F, H, W] as it comes back from its codes, and the codes [B, T, h, w]; for training."""
        levels, _ = self._encode(video, None)
        made, _ = self._decode(levels, None)
        return made, self.quantizer.codes(levels.detach()).unflatten(2, self.grid)

    def _encode(self, video: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rounded levels of the codes, [B, T, S, K], and the state."""
        self._check(video, is_first=state is None)
        parts = []
        if state is None:
            parts.append(self.first_in(self._patches(video[:, :, :1], 1)))
            video = video[:, :, 1:]
        if video.shape[2]:
            parts.append(self.block_in(self._patches(video, BLOCK)))
        x_BTSC = torch.cat(parts, dim=1) + self.encoder_places
        for spatial in self.encoder_spatial:
            x_BTSC = spatial(x_BTSC)
        x_BTSC, state = self._over_time(self.encoder_temporal, x_BTSC, state)
        return self.quantizer(self.to_code(x_BTSC).float()), state

    def _decode(self, levels_BTSK: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        is_first = state is None
        x_BTSC = self.from_code(levels_BTSK.to(self.from_code.weight.dtype)) + self.decoder_places
        x_BTSC, state = self._over_time(self.decoder_temporal, x_BTSC, state)
        for spatial in self.decoder_spatial:
            x_BTSC = spatial(x_BTSC)
        x_BTSC = self.norm_out(x_BTSC)
        parts = [self._frames(self.first_out(x_BTSC[:, :1]), 1)] if is_first else []
        blocks_BTSC = x_BTSC[:, 1:] if is_first else x_BTSC
        if blocks_BTSC.shape[1]:
            parts.append(self._frames(self.block_out(blocks_BTSC), BLOCK))
        return torch.cat(parts, dim=2), state

    def _over_time(self, layers: nn.ModuleList, x_BTSC: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Through the temporal layers; the state is one of each, [L, N, P, 2·C]."""
        b, _, s, c = x_BTSC.shape
        nothing = x_BTSC.new_empty(len(layers), b * s, 0, 2 * c)
        kept = []
        for layer, past_NPC2 in zip(layers, nothing if state is None else state, strict=True):
            x_BTSC, past_NPC2 = layer(x_BTSC, past_NPC2)
            kept.append(past_NPC2)
        return x_BTSC, torch.stack(kept)

    def _patches(self, video: Tensor, frames: int) -> Tensor:
        """Boxes of so many frames and a square, [B, T, S, pixels]."""
        b, c, f, _, _ = video.shape
        (h, w), (high, wide) = self.grid, self.patch
        boxes = video.reshape(b, c, f // frames, frames, h, high, w, wide).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return boxes.reshape(b, f // frames, h * w, c * frames * high * wide)

    def _frames(self, boxes_BTSX: Tensor, frames: int) -> Tensor:
        """The inverse of `_patches`, [B, C, F, H, W]."""
        b, t = boxes_BTSX.shape[:2]
        (h, w), (high, wide), c = self.grid, self.patch, int(self.config["in_channels"])
        video = boxes_BTSX.reshape(b, t, h, w, c, frames, high, wide).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return video.reshape(b, c, t * frames, h * high, w * wide)

    def _check(self, video: Tensor, *, is_first: bool) -> None:
        sizes: tuple[Any, ...] = tuple(self.config[name] for name in ("in_channels", "height", "width"))
        if video.dim() != 5 or (video.shape[1], *video.shape[3:]) != sizes:
            c, h, w = sizes
            raise InputError(f"video must be [videos, {c}, frames, {h}, {w}], not {list(video.shape)}; scale it first.")
        if video.shape[2] % BLOCK != is_first or video.shape[2] == 0:
            wanted = "1, 3, 5, … frames, as a video's first chunk" if is_first else "2, 4, 6, … frames"
            raise InputError(f"video has {video.shape[2]} frames and must have {wanted}; repeat its last frame.")
