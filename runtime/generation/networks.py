"""The networks of a cascade at work: one call a window, the same bytes wherever it is made.

Frames are float32 [F, 3, H, W] in 0 to 1 between stages; the networks see them in -1 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.engines.backends import make_backend
from fairy.engines.engine import Usage
from fairy.engines.store.store import EngineStore
from fairy.export.bases.cascade import TEXT_ENCODER, CascadeModel, graph_of
from fairy.export.loading import token_ids
from fairy.export.shapes import dtype_of
from fairy.kernels.errors import InputError, NumericalError
from fairy.runtime.denoise.noise import INITIAL, sample_noise
from fairy.runtime.denoise.sampler import Schedule, make_schedule, scale_model_input, step
from fairy.runtime.generation.cascade import Cascade, Stage
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
    """The networks of a generator's folder, each loaded when it is first needed, run by a backend's engines."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        resident: bool = True,
        backend: str = "eager",
        store: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        """
        Args:
            resident: networks stay on the device; False = one at a time does, which only eager can.
            backend, store: as of an editor; "auto" takes the store's engines where they are there, else eager.
            name: what the user calls the generator; None = its folder.

        Raises:
            InputError: the folder holds no generator, or the backend cannot serve; says what to run.
        """
        self.folder, self.device, self.dtype = folder, device, dtype
        self.cascade = Cascade.read(folder)
        self.model = cascade_model(folder, self.cascade, device, dtype, name)
        self._graphs = self.model.graphs()
        if not resident and backend not in ("auto", "eager"):
            raise InputError("goes with the backend eager alone", name="offload", value=True, remedy="leave one out")
        self._resident = resident
        self._store = EngineStore(store)
        self.backend = make_backend(backend if resident else "eager", self.model, device, dtype, store=self._store)

    @property
    def backend_name(self) -> str:
        """Which backend runs."""
        return self.backend.name

    def engines(self) -> list[str]:
        """Digests of the built engines that might run."""
        return [] if self.backend.name == "eager" else sorted(engine.digest for engine in self._store.engines())

    def take_usage(self) -> Usage:
        """What ran in this process since this was last asked."""
        return self.backend.take_usage()

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.cascade.stages if stage.name == name)

    def multiple(self, stage: Stage) -> int:
        """What the sides that a stage's network sees must be a multiple of."""
        return self._graphs[graph_of(stage.network, time=False)].multiple

    def run(self, graph: str, inputs: dict[str, Tensor]) -> Tensor:
        """A graph's output for inputs anywhere, on the device, in float32."""
        spec = self._graphs[graph]
        if not self._resident:
            self.model.keep_only(self.model.network_of(spec))
        given = {t.name: inputs[t.name].to(self.device, dtype_of(t, self.dtype)) for t in spec.inputs}
        return self.backend.engine(spec)(given)[spec.outputs[0].name].float()

    def run_stage(self, stage: Stage, frames: int, inputs: dict[str, Tensor]) -> Tensor:
        """The output of a stage's network for a window of so many frames. Raises NumericalError."""
        made = self.run(graph_of(stage.network, time=stage.enable_time and frames > 1), inputs)
        check_finite(made, stage.name)
        return made

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, [texts, L, C]."""
        return self.run(TEXT_ENCODER, {"input_ids": token_ids(self.model.tokenizer, texts)}).to(self.dtype)

    @torch.inference_mode()
    def predict_base(self, name: str, index: int, steps: int, x_FCHW: Tensor, fps: float, text: Prompted) -> Tensor:
        """The base network's guided output for a window at one step: float32 [F, 3, H, W] on the CPU."""
        stage = self.stage(name)
        schedule = schedule_of(stage, steps)
        guided = text.guidance_scale != 1.0
        features = text.features if guided else text.features[1:]
        x, count = scale_model_input(schedule, index, x_FCHW).transpose(0, 1), len(features)
        inputs = {
            "sample": x.expand(count, *x.shape),
            "timestep": torch.full((count,), schedule.timesteps[index]),
            "text": features,
            "fps": torch.full((count,), fps),
        }
        out = self.run_stage(stage, len(x_FCHW), inputs)
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
        height, width = first.shape[1:]
        given = torch.tensor([0.0, *inner, 1.0])
        planes = given[None, None, :, None, None].expand(1, 1, -1, height, width)
        ends = (frames_FCHW * 2 - 1).flatten(0, 1)[None, :, None].expand(-1, -1, len(given), -1, -1)
        condition = _padded(torch.cat([ends, planes], dim=1), self.multiple(stage))
        made = self.run_stage(stage, len(given), {"condition": condition})
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
        scale, schedule = stage.scale, schedule_of(stage, stage.num_inference_steps)
        small = frames_FCHW[:, :, rows.reads[0] : rows.reads[1], columns.reads[0] : columns.reads[1]]
        size = small.shape[2] * scale, small.shape[3] * scale
        large = F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(0, 1) * 2 - 1
        condition = _padded(large.transpose(0, 1)[None], self.multiple(stage)).to(self.device)
        noise = noise_CHW[:, rows.reads[0] * scale : rows.reads[1] * scale][
            :, :, columns.reads[0] * scale : columns.reads[1] * scale
        ]
        x = _padded(noise[None, :, None].expand(1, -1, len(small), -1, -1), self.multiple(stage)).to(self.device)
        for i, t in enumerate(schedule.timesteps):
            inputs = {"sample": scale_model_input(schedule, i, x), "timestep": torch.full((1,), t)}
            out = self.run_stage(stage, len(small), inputs | {"condition": condition})
            x = step(schedule, i, x, out, None)
        top, left = (scale * (tile.makes[0] - tile.reads[0]) for tile in (rows, columns))
        high, wide = (scale * (tile.makes[1] - tile.makes[0]) for tile in (rows, columns))
        made_FCHW[:, :, scale * rows.makes[0] :, scale * columns.makes[0] :][:, :, :high, :wide] = _unit(
            x[0, :, :, top : top + high, left : left + wide]
        ).transpose(0, 1)


def cascade_model(
    folder: Path, cascade: Cascade, device: torch.device, dtype: torch.dtype, name: str | None = None
) -> CascadeModel:
    """A generator's networks as a model that engines can be built of; none is loaded yet. Raises InputError."""
    parts = dict.fromkeys(stage.network for stage in cascade.stages)
    usual = [TEXT_ENCODER]
    for stage in cascade.stages:
        usual.append(graph_of(stage.network, time=stage.enable_time))
        if stage.kind == "super_resolution":  # a window of one frame has no time
            usual.append(graph_of(stage.network, time=False))
    window = max(stage.window for stage in cascade.stages)
    return CascadeModel(name or str(folder), folder, tuple(parts), tuple(dict.fromkeys(usual)), window, dtype, device)


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
