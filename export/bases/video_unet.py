"""A UNet over a window of frames: pseudo-3D convolutions and attention, for every stage of a generator's cascade.

Each spatial layer sees one frame; a layer over time follows it that starts as the identity, so that a network for
pictures becomes one for video without forgetting anything (Singer et al., Make-A-Video, arXiv 2209.14792, section 3.2).
`enable_time=False`, or a window of one frame, leaves the layers over time out.

Legend of shape suffixes: B windows, F frames, N = B·F, C channels, H height, W width, S = H·W tokens, L text tokens.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fairy.kernels.temporal_attention import temporal_attention

_FREQUENCIES = 64
_FPS_SCALE = 100.0  # of log2 of the rate, so that the embedding's waves tell rates apart
_NOISE_SCALE = 1000.0
_GUIDANCE_SCALE = 50.0
_KERNEL = 3  # frames that a convolution over time sees


class PseudoConv3d(nn.Module):
    """A 3x3 convolution of every frame, then one over three frames at every place, which starts as the identity."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, temporal: bool = True) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.temporal = TemporalConv(out_channels) if temporal else None

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        """[N, C, H, W] to [N, C', H, W]; `frames` consecutive ones are a window, 1 = each frame stands alone."""
        y: Tensor = self.spatial(x_NCHW)
        return y if self.temporal is None or frames == 1 else self.temporal(y, frames)


class TemporalConv(nn.Module):
    """A convolution over three frames at every place of a window."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (_KERNEL, 1), padding=(_KERNEL // 2, 0))
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        """[N, C, H, W] to the same: a window's frames and places are the two axes of one picture."""
        n, c, h, w = x_NCHW.shape
        x_BCFS = x_NCHW.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)
        y: Tensor = self.conv(x_BCFS)
        return y.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every place, which a tile of a picture computes as the whole picture does."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        return super().forward(x_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(channels: int, groups: int) -> nn.Module:
    """Over groups of channels of a whole frame; 0 groups: over the channels of every place."""
    return nn.GroupNorm(groups, channels) if groups else ChannelNorm(channels)


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside a shortcut; the embedding scales and shifts between them."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, groups: int, *, temporal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(in_channels, groups), _norm(out_channels, groups)
        self.conv1 = PseudoConv3d(in_channels, out_channels, temporal=temporal)
        self.conv2 = PseudoConv3d(out_channels, out_channels, temporal=temporal)
        self.embedding = nn.Linear(embedding, 2 * out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor, frames: int) -> Tensor:
        """[N, C, H, W] to [N, C', H, W]."""
        h_NCHW = self.conv1(F.silu(self.norm1(x_NCHW)), frames)
        scale_NC, shift_NC = self.embedding(embedding_NE).chunk(2, dim=1)
        h_NCHW = self.norm2(h_NCHW) * (1 + scale_NC[:, :, None, None]) + shift_NC[:, :, None, None]
        h_NCHW = self.conv2(F.silu(h_NCHW), frames)
        return cast(Tensor, self.shortcut(x_NCHW) + h_NCHW)


class Attention(nn.Module):
    """norm, queries of the tokens, keys and values of a context (themselves without one), added to the tokens."""

    def __init__(self, channels: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(channels), heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(context or channels, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x_NSC: Tensor, context_NLC: Tensor | None = None) -> Tensor:
        """[N, S, C] to the same."""
        n, s, c = x_NSC.shape
        normed = self.norm(x_NSC)
        q = self.to_q(normed).view(n, s, self.heads, -1).transpose(1, 2)
        k, v = self.to_kv(normed if context_NLC is None else context_NLC).chunk(2, dim=2)
        k, v = (part.view(n, -1, self.heads, c // self.heads).transpose(1, 2) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, x_NSC + self.to_out(y.transpose(1, 2).reshape(n, s, c)))


class TemporalAttention(Attention):
    """Attention over a window's frames at every place, which starts as the identity; frames are told apart by waves."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x_NSC: Tensor, frames: int) -> Tensor:  # type: ignore[override]  # it has no context
        """[N, S, C] to the same."""
        n, s, c = x_NSC.shape
        normed = self.norm(x_NSC).view(n // frames, frames, s, c) + self.positions(frames, x_NSC)[:, None]
        shape = (n // frames, frames, s, self.heads, c // self.heads)
        k, v = self.to_kv(normed).chunk(2, dim=3)
        y = temporal_attention(self.to_q(normed).view(shape), k.unflatten(3, shape[3:]), v.unflatten(3, shape[3:]))
        return cast(Tensor, x_NSC + self.to_out(y.view(n, s, c)))

    @staticmethod
    def positions(frames: int, like: Tensor) -> Tensor:
        """Sinusoids of the frames' numbers, [F, C]."""
        numbers = torch.arange(frames, device=like.device)
        waves: Tensor = get_timestep_embedding(numbers, like.shape[-1], max_period=100)
        return waves.to(like.dtype)


class FeedForward(nn.Module):
    """norm, so many times as many channels, GELU, and back, added to the tokens."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        self.norm, wide = nn.LayerNorm(channels), expansion * channels
        self.wide, self.narrow = nn.Linear(channels, wide), nn.Linear(wide, channels)

    def forward(self, x_NSC: Tensor) -> Tensor:
        """[N, S, C] to the same."""
        return cast(Tensor, x_NSC + self.narrow(F.gelu(self.wide(self.norm(x_NSC)))))


class PseudoAttention3d(nn.Module):
    """Attention within every frame, to the text, and over time at every place, which starts as the identity."""

    def __init__(self, channels: int, heads: int, text: int | None, *, over_time: bool) -> None:
        super().__init__()
        self.spatial = Attention(channels, heads)
        self.text = None if text is None else Attention(channels, heads, text)
        self.temporal = TemporalAttention(channels, heads) if over_time else None
        self.feed_forward = FeedForward(channels)

    def forward(self, x_NCHW: Tensor, text_NLC: Tensor | None, frames: int) -> Tensor:
        """[N, C, H, W] to the same."""
        n, c, h, w = x_NCHW.shape
        x_NSC: Tensor = self.spatial(x_NCHW.permute(0, 2, 3, 1).reshape(n, h * w, c))
        if self.text is not None:
            x_NSC = self.text(x_NSC, text_NLC)
        if self.temporal is not None and frames > 1:
            x_NSC = self.temporal(x_NSC, frames)
        x_NSC = self.feed_forward(x_NSC)
        return x_NSC.reshape(n, h, w, c).permute(0, 3, 1, 2)


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention where the level has some."""

    def __init__(self, pairs: list[tuple[int, int]], attention: dict[str, Any] | None, embedding: int, groups: int,
                 *, temporal: bool) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(a, b, embedding, groups, temporal=temporal) for a, b in pairs)
        self.attentions = nn.ModuleList(
            PseudoAttention3d(b, **attention) if attention else nn.Identity() for _, b in pairs
        )

    def one(self, index: int, x_NCHW: Tensor, embedding_NE: Tensor, text_NLC: Tensor | None, frames: int) -> Tensor:
        """The block of that number."""
        x_NCHW = self.blocks[index](x_NCHW, embedding_NE, frames)
        attention = self.attentions[index]
        is_attention = isinstance(attention, PseudoAttention3d)
        return cast(Tensor, attention(x_NCHW, text_NLC, frames)) if is_attention else x_NCHW


class VideoUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """The network of one stage; see this file's head, and `forward`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        condition_channels: int = 0,
        out_channels: int = 3,
        patch_size: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 2,
        attention: tuple[bool, ...] = (False, True),
        attention_head_dim: int = 32,
        cross_attention_dim: int | None = None,
        norm_num_groups: int = 8,
        temporal: bool = True,
        temporal_attention: bool = True,
        noise_levels: bool = False,
        guidance_embedding: bool = False,
        adds_to_condition: bool = False,
        warps: bool = False,
    ) -> None:
        """See the fields of the stages in docs/generation.md.

        Args:
            in_channels: of the noisy frames; 0 = the stage has no noise and is computed in one step.
            condition_channels: of what the stage before made, at the size of the result.
            patch_size: side of the squares of pixels that are one place of the first level.
            block_out_channels, layers_per_block, attention: of the levels, each of half the size of the one before.
            cross_attention_dim: channels of the text's features; None = the stage reads no text.
            norm_num_groups: 0 = every place is normed by itself, so that a frame may be computed in tiles.
            temporal: whether there are layers over time; temporal_attention: whether attention is among them.
            noise_levels: the condition comes with noise, whose level the network is told (conditioning augmentation).
            guidance_embedding: guidance was distilled into the network, which is told its scale.
            adds_to_condition: the prediction is what is added to the condition's first channels.
            warps: the condition begins with the window's two outer frames (3 + 3 channels); the prediction is them,
                moved along two flows, blended, and corrected.
        """
        super().__init__()
        first, embedding = block_out_channels[0], 4 * block_out_channels[0]
        self.conv_in = nn.Conv2d((in_channels + condition_channels) * patch_size**2, first, 3, padding=1)
        self.time = _mlp(embedding)
        self.fps = _mlp(embedding, zero=True)
        self.noise_level = _mlp(embedding, zero=True)
        self.guidance = _mlp(embedding, zero=True) if guidance_embedding else None
        self.pooled_text = None if cross_attention_dim is None else nn.Linear(cross_attention_dim, embedding)
        kinds = [
            {
                "heads": max(1, c // attention_head_dim),
                "text": cross_attention_dim,
                "over_time": temporal and temporal_attention,
            }
            if has
            else None
            for c, has in zip(block_out_channels, attention, strict=True)
        ]
        how: dict[str, Any] = {"embedding": embedding, "groups": norm_num_groups, "temporal": temporal}
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, last = [first], first
        for i, (channels, kind) in enumerate(zip(block_out_channels, kinds, strict=True)):
            self.down.append(Level(_pairs(last, channels, layers_per_block), kind, **how))
            skips += [channels] * layers_per_block
            last = channels
            if i + 1 < len(block_out_channels):
                self.shrink.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
        self.middle = Level([(last, last)] * 2, kinds[-1], **how)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, channels in reversed(list(enumerate(block_out_channels))):
            pairs = []
            for _ in range(layers_per_block + 1):
                pairs.append((last + skips.pop(), channels))
                last = channels
            self.up.append(Level(pairs, kinds[i], **how))
            if i > 0:
                self.grow.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.norm_out = _norm(first, norm_num_groups)
        self.conv_out = nn.Conv2d(first, out_channels * patch_size**2, 3, padding=1)
        self.flow_out = nn.Conv2d(first, 5, 3, padding=1) if warps else None
        for layer in (self.conv_out, self.flow_out):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(cast(Tensor, layer.bias))

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return int(self.config["patch_size"]) << (len(self.config["block_out_channels"]) - 1)

    def forward(
        self,
        sample: Tensor | None,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        fps: Tensor,
        condition: Tensor | None = None,
        noise_level: Tensor | None = None,
        guidance: Tensor | None = None,
        enable_time: bool = True,
    ) -> Tensor:
        """The prediction of a window, [B, out_channels, F, H, W].

        Args:
            sample: the noisy frames [B, in_channels, F, H, W]; None where the stage has no noise.
            timestep: [B].
            encoder_hidden_states: the text's features [B, L, C]; their mean is what the pooled text is made of.
            fps: frames a second of the window, [B]; 0 = pictures, which have no rate.
            condition: [B, condition_channels, F, H, W].
            noise_level: of the noise that was added to the condition, 0 to 1, [B]; None = none was.
            guidance: the scale of guidance, [B], of networks that it was distilled into.
            enable_time: False leaves the layers over time out.
        """
        given = [part for part in (sample, condition) if part is not None]
        x_BCFHW = given[0] if len(given) == 1 else torch.cat(given, dim=1)
        frames = x_BCFHW.shape[2]
        embedding_NE = self._embedding(timestep, fps, noise_level, guidance, encoder_hidden_states)
        embedding_NE = _each_frame(embedding_NE, frames)
        text_NLC = None
        if encoder_hidden_states is not None and self.pooled_text is not None:
            text_NLC = _each_frame(encoder_hidden_states, frames)
        x_NCHW = x_BCFHW.transpose(1, 2).flatten(0, 1)
        features = self._features(x_NCHW, embedding_NE, text_NLC, frames if enable_time else 1)
        patch = int(self.config["patch_size"])
        y_NCHW = F.pixel_shuffle(self.conv_out(features), patch)
        if condition is not None and self.config["adds_to_condition"]:
            y_NCHW = y_NCHW + condition.transpose(1, 2).flatten(0, 1)[:, : y_NCHW.shape[1]]
        if condition is not None and self.flow_out is not None:
            ends = condition[:, :6].transpose(1, 2).flatten(0, 1)
            y_NCHW = y_NCHW + _warped(ends, self.flow_out(features), condition[:, 6:7].transpose(1, 2).flatten(0, 1))
        made: Tensor = y_NCHW.unflatten(0, (-1, frames)).transpose(1, 2)
        return made

    def _levels(self, levels: nn.ModuleList) -> list[Level]:
        return cast(list[Level], list(levels))

    def _embedding(
        self,
        timestep: Tensor,
        fps: Tensor,
        noise_level: Tensor | None,
        guidance: Tensor | None,
        text_BLC: Tensor | None,
    ) -> Tensor:
        """What every block is told beside its input, [B, E]."""
        kind = self.conv_in.weight.dtype
        embedding = self.time(_waves(timestep, kind))
        rates = self.fps(_waves(_FPS_SCALE * torch.log2(fps.float().clamp(min=2**-6)), kind))
        embedding = embedding + rates * (fps > 0)[:, None].to(kind)
        if noise_level is not None:
            embedding = embedding + self.noise_level(_waves(_NOISE_SCALE * noise_level, kind))
        if guidance is not None and self.guidance is not None:
            embedding = embedding + self.guidance(_waves(_GUIDANCE_SCALE * guidance, kind))
        if text_BLC is not None and self.pooled_text is not None:
            embedding = embedding + self.pooled_text(text_BLC.mean(dim=1))
        return F.silu(embedding)

    def _features(self, x_NCHW: Tensor, embedding_NE: Tensor, text_NLC: Tensor | None, frames: int) -> Tensor:
        """What the last layers read, [N, C, H / patch, W / patch]."""
        x_NCHW = F.pixel_unshuffle(x_NCHW, int(self.config["patch_size"]))
        x_NCHW = self.conv_in(x_NCHW.contiguous(memory_format=torch.channels_last))
        skips = [x_NCHW]
        for i, level in enumerate(self._levels(self.down)):
            for j in range(len(level.blocks)):
                x_NCHW = level.one(j, x_NCHW, embedding_NE, text_NLC, frames)
                skips.append(x_NCHW)
            if i < len(self.shrink):
                x_NCHW = self.shrink[i](x_NCHW)
                skips.append(x_NCHW)
        for j in range(len(self.middle.blocks)):
            x_NCHW = self.middle.one(j, x_NCHW, embedding_NE, text_NLC, frames)
        for i, level in enumerate(self._levels(self.up)):
            for j in range(len(level.blocks)):
                x_NCHW = torch.cat([x_NCHW, skips.pop()], dim=1)
                x_NCHW = level.one(j, x_NCHW, embedding_NE, text_NLC, frames)
            if i < len(self.grow):
                x_NCHW = self.grow[i](F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest"))
        return F.silu(self.norm_out(x_NCHW))


def _each_frame(x_B: Tensor, frames: int) -> Tensor:
    """What a window has, for each of its frames: [B, ...] to [B·F, ...]; `repeat_interleave` is exported wrongly."""
    return x_B[:, None].expand(-1, frames, *x_B.shape[1:]).flatten(0, 1)


def _mlp(channels: int, *, zero: bool = False) -> nn.Sequential:
    """From sinusoids to an embedding; `zero`: one that starts at 0."""
    last = nn.Linear(channels, channels)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(_FREQUENCIES, channels), nn.SiLU(), last)


def _waves(x_B: Tensor, kind: torch.dtype) -> Tensor:
    """Sinusoids of a number, [B, 64]."""
    return cast(Tensor, get_timestep_embedding(x_B.float(), _FREQUENCIES)).to(kind)


def _pairs(first: int, channels: int, blocks: int) -> list[tuple[int, int]]:
    """Channels in and out of a level's blocks."""
    return [(first if i == 0 else channels, channels) for i in range(blocks)]


def _warped(ends_NCHW: Tensor, raw_NCHW: Tensor, position_N1HW: Tensor) -> Tensor:
    """The two outer frames [N, 6, H, W], moved and blended as `raw` [N, 5, h, w] says, at positions 0 to 1 between.

    Raw is a flow from each frame's place into the first frame, one into the last, in places of the first level, and
    what is added to the blend's logit; without it the blend is linear in time, and nothing moves.
    """
    height, width = ends_NCHW.shape[2:]
    scale = height / raw_NCHW.shape[2]
    fine = F.interpolate(raw_NCHW.float(), (height, width), mode="bilinear", align_corners=False)
    flows, logit = fine[:, :4] * scale, fine[:, 4:]
    position = position_N1HW.float().clamp(0, 1)
    moving = 4 * position * (1 - position)  # the outer frames themselves stay what they are
    first = _moved(ends_NCHW[:, :3].float(), flows[:, :2] * moving)
    last = _moved(ends_NCHW[:, 3:].float(), flows[:, 2:] * moving)
    share = position + moving * (torch.sigmoid(logit) - 0.5)
    return ((1 - share) * first + share * last).to(ends_NCHW.dtype)


def _moved(picture_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """The picture's colours at every place plus the flow (x, y), in pixels."""
    height, width = picture_NCHW.shape[2:]
    y = torch.arange(height, device=picture_NCHW.device, dtype=flow_N2HW.dtype)
    x = torch.arange(width, device=picture_NCHW.device, dtype=flow_N2HW.dtype)
    grid_x = (x + flow_N2HW[:, 0] + 0.5) * (2 / width) - 1
    grid_y = (y[:, None] + flow_N2HW[:, 1] + 0.5) * (2 / height) - 1
    grid = torch.stack([grid_x, grid_y], dim=3)
    return F.grid_sample(picture_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
