"""The networks of a cascade at work: one call a window, the same bytes wherever it is made.

Frames are float32 [F, 3, H, W] in 0 to 1 between stages; the networks see them in -1 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.export.bases.video_unet import VideoUNet
from fairy.kernels.errors import NumericalError
from fairy.runtime.denoise.noise import INITIAL, sample_noise
from fairy.runtime.denoise.sampler import Schedule, make_schedule, scale_model_input, step
from fairy.runtime.generation.cascade import Cascade, Stage
from fairy.runtime.generation.loading import load_network, load_tokenizer, text_features
from fairy.runtime.generation.windows import Window
from fairy.runtime.plan.geometry import pad_by_reflection

SAMPLER = "ddim"
_TILE, _TILE_MARGIN = 512, 64
"""Side of the squares in which super-resolution takes large pictures, and how far each reads beyond its own, in pixels
of the smaller picture: beyond what one place of the result can depend on."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """The text's features, with and without the caption: [2, L, C]; the first row is the negative prompt's."""

    features: Tensor
    guidance_scale: float


class CascadeNetworks:
    """The networks of a generator's folder, each loaded when it is first needed."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, resident: bool = True) -> None:
        """`resident`: networks stay on the device; False = one at a time does."""
        self.folder, self.device, self.dtype = folder, device, dtype
        self.cascade = Cascade.read(folder)
        self._resident = resident
        self._networks: dict[str, VideoUNet] = {}
        self._text: tuple[Any, Any] | None = None

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.cascade.stages if stage.name == name)

    def network(self, stage: Stage) -> VideoUNet:
        """A stage's network, on the device."""
        if stage.network not in self._networks:
            network = load_network(VideoUNet, self.folder / stage.network, self.dtype)
            self._networks[stage.network] = network.to(memory_format=torch.channels_last)
        if not self._resident:
            for name, other in self._networks.items():
                if name != stage.network:
                    other.to("cpu")
        return cast(VideoUNet, self._networks[stage.network].to(self.device))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, [texts, L, C]."""
        if self._text is None:
            from transformers import CLIPTextModel

            encoder = load_network(CLIPTextModel, self.folder / "text_encoder", self.dtype).to(self.device)
            self._text = load_tokenizer(self.folder / "tokenizer"), encoder
        return text_features(*self._text, texts)

    @torch.inference_mode()
    def predict_base(self, name: str, index: int, steps: int, x_FCHW: Tensor, fps: float, text: Prompted) -> Tensor:
        """The base network's guided output for a window at one step: float32 [F, 3, H, W] on the CPU."""
        stage = self.stage(name)
        schedule = schedule_of(stage, steps)
        guided = text.guidance_scale != 1.0
        features = text.features if guided else text.features[1:]
        x = scale_model_input(schedule, index, x_FCHW).transpose(0, 1).to(self.device, self.dtype)
        count = len(features)
        out = self.network(stage)(
            x.expand(count, *x.shape),
            torch.full((count,), schedule.timesteps[index], device=self.device),
            features.to(self.device, self.dtype),
            fps=torch.full((count,), fps, device=self.device),
            enable_time=stage.enable_time and len(x_FCHW) > 1,
        ).float()
        check_finite(out, stage.name)
        one = out[0] + text.guidance_scale * (out[1] - out[0]) if guided else out[0]
        made: Tensor = one.transpose(0, 1).cpu()
        return made

    def decode_base(self, frame_CHW: Tensor) -> Tensor:
        """What the base stage ends in as a picture: float32 [3, H, W], -1 to 1 becomes 0 to 1."""
        return _unit(frame_CHW)

    @torch.inference_mode()
    def interpolate(self, name: str, window: Window, frames_FCHW: Tensor) -> Tensor:
        """The frames at a window's places, of the one or two it reads: float32 [F', 3, H, W]."""
        stage, first = self.stage(name), frames_FCHW[0]
        positions = [float(place - window.reads[0]) for place in window.places]
        if len(frames_FCHW) == 1:
            return first.expand(len(positions), *first.shape)
        inner = [p for p in positions if 0 < p < 1]
        network, (height, width) = self.network(stage), first.shape[1:]
        given = torch.tensor([0.0, *inner, 1.0])
        planes = given[None, None, :, None, None].expand(1, 1, -1, height, width)
        ends = (frames_FCHW * 2 - 1).flatten(0, 1)[None, :, None].expand(-1, -1, len(given), -1, -1)
        condition = _padded(torch.cat([ends, planes], dim=1), network.multiple).to(self.device, self.dtype)
        zero = torch.zeros(1, device=self.device)
        made = network(None, zero, fps=zero, condition=condition).float()
        check_finite(made, stage.name)
        made = _unit(made[0, :, 1:-1, :height, :width]).transpose(0, 1).cpu()
        between = iter(made)
        return torch.stack([next(between) if 0 < p < 1 else frames_FCHW[int(p)] for p in positions])

    @torch.inference_mode()
    def super_resolve(self, name: str, window: Window, frames_FCHW: Tensor, seed: int) -> Tensor:
        """A window's own frames, larger: float32 [F', 3, scale·H, scale·W]; all begin with the same noise."""
        stage = self.stage(name)
        height, width = frames_FCHW.shape[2:]
        made = torch.empty(len(frames_FCHW), 3, height * stage.scale, width * stage.scale)
        noise = stage_noise(seed, stage.name, 0, (3, height * stage.scale, width * stage.scale))
        for rows in _tiles(height):
            for columns in _tiles(width):
                self._super_resolve_tile(stage, frames_FCHW, noise, made, rows, columns)
        first = window.makes[0] - window.reads[0]
        return made[first : first + window.makes[1] - window.makes[0]]

    def _super_resolve_tile(
        self, stage: Stage, frames_FCHW: Tensor, noise_CHW: Tensor, made_FCHW: Tensor,
        rows: "Tile", columns: "Tile",
    ) -> None:  # fmt: skip
        network, scale, schedule = self.network(stage), stage.scale, schedule_of(stage, stage.num_inference_steps)
        small = frames_FCHW[:, :, rows.reads[0] : rows.reads[1], columns.reads[0] : columns.reads[1]]
        size = small.shape[2] * scale, small.shape[3] * scale
        large = F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(0, 1) * 2 - 1
        condition = _padded(large.transpose(0, 1)[None], network.multiple).to(self.device)
        noise = noise_CHW[:, rows.reads[0] * scale : rows.reads[1] * scale][
            :, :, columns.reads[0] * scale : columns.reads[1] * scale
        ]
        x = _padded(noise[None, :, None].expand(1, -1, len(small), -1, -1), network.multiple).to(self.device)
        zero = torch.zeros(1, device=self.device)
        for i, t in enumerate(schedule.timesteps):
            out = network(
                scale_model_input(schedule, i, x).to(self.dtype),
                torch.full((1,), t, device=self.device),
                fps=zero,
                condition=condition.to(self.dtype),
                enable_time=stage.enable_time and len(small) > 1,
            ).float()
            check_finite(out, stage.name)
            x = step(schedule, i, x, out, None)
        top, left = (scale * (tile.makes[0] - tile.reads[0]) for tile in (rows, columns))
        high, wide = (scale * (tile.makes[1] - tile.makes[0]) for tile in (rows, columns))
        made_FCHW[:, :, scale * rows.makes[0] :, scale * columns.makes[0] :][:, :, :high, :wide] = _unit(
            x[0, :, :, top : top + high, left : left + wide]
        ).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """A stretch of one side: what is read and what is made of it, [start, stop)."""

    reads: tuple[int, int]
    makes: tuple[int, int]


def _tiles(side: int) -> list[Tile]:
    """One stretch for a side that is not much longer than a tile, else tiles that begin at even places."""
    if side <= _TILE + 2 * _TILE_MARGIN:
        return [Tile((0, side), (0, side))]
    starts = range(0, side, _TILE)
    return [
        Tile((max(0, s - _TILE_MARGIN), min(side, s + _TILE + _TILE_MARGIN)), (s, min(side, s + _TILE))) for s in starts
    ]


def schedule_of(stage: Stage, steps: int) -> Schedule:
    """The noise schedule of a stage in so many steps."""
    return make_schedule(SAMPLER, dict(stage.scheduler), steps)


def stage_noise(seed: int, stage: str, frame: int, shape: tuple[int, ...]) -> Tensor:
    """Unit noise of a stage and a frame: of nothing but them and the seed, so that no batch or worker changes it."""
    return sample_noise(f"{seed}/{INITIAL}/{stage}/{frame}", shape)


def _padded(clip_BCFHW: Tensor, multiple: int) -> Tensor:
    """The clip with sides that are multiples of so many pixels, by reflection at the right and the bottom."""
    height, width = (-(-side // multiple) * multiple for side in clip_BCFHW.shape[3:])
    return pad_by_reflection(clip_BCFHW, (height, width))


def _unit(x: Tensor) -> Tensor:
    """-1 to 1 becomes 0 to 1."""
    return ((x + 1) / 2).clamp(0, 1)


def check_finite(x: Tensor, stage: str) -> None:
    """Raise NumericalError where a stage made something else than numbers."""
    if not bool(torch.isfinite(x).all()):
        raise NumericalError(f"The stage {stage} made values that are not finite; choose float32 (--dtype float32).")
