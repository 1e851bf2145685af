"""The networks of a cascade at work: one call a window, the same bytes wherever it is made.

Frames are float32 [F, 3, H, W] in 0 to 1 between stages; the networks see them in -1 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.engines.backends import make_backend
from fairy.engines.engine import Usage
from fairy.engines.store.store import EngineStore
from fairy.export.bases.cascade import TEXT_ENCODER, CascadeModel, graph_of
from fairy.export.loading import load_tokenizer, token_ids
from fairy.export.shapes import dtype_of
from fairy.kernels.errors import InputError, NumericalError
from fairy.runtime.denoise.guidance import scale_at
from fairy.runtime.denoise.noise import INITIAL, sample_noise
from fairy.runtime.denoise.sampler import Schedule, make_schedule, needs_noise, scale_model_input, step
from fairy.runtime.generation.cascade import Cascade, Stage
from fairy.runtime.generation.windows import Window
from fairy.runtime.plan.geometry import pad_by_reflection

_TILE, _TILE_MARGIN = 512, 64
"""Side of the squares in which super-resolution takes large pictures, and how far each reads beyond its own, in pixels
of the smaller picture: beyond what one place of the result can depend on."""


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
        deaf = [s for s in self.cascade.stages if s.condition_snr and not self._takes(s, "noise_level")]
        if deaf:
            raise InputError(f"The stage {deaf[0].name} has a condition_snr, but its network knows no noise level.")
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

    def _takes(self, stage: Stage, name: str) -> bool:
        """Whether a stage's network has an input of that name."""
        return any(t.name == name for t in self._graphs[graph_of(stage.network, time=False)].inputs)

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

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder / "tokenizer")

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, [texts, L, C]."""
        return self.run(TEXT_ENCODER, {"input_ids": token_ids(self._tokenizer, texts)}).to(self.dtype)

    @torch.inference_mode()
    def predict_base(self, stage: Stage, index: int, x_FCHW: Tensor, fps: float, text_2LC: Tensor) -> Tensor:
        """The base network's guided output for a window at one step: float32 [F, 3, H, W] on the CPU."""
        x = x_FCHW.transpose(0, 1)[None]
        return self._guided(stage, schedule_of(stage), index, x, {}, fps, text_2LC)[0].transpose(0, 1).cpu()

    def _guided(
        self,
        stage: Stage,
        schedule: Schedule,
        index: int,
        x_1CFHW: Tensor,
        beside: dict[str, Tensor],
        fps: float,
        text_2LC: Tensor | None,
    ) -> Tensor:
        """A network's output for one window at one step, [1, 3, F, H, W], guided by the text.

        That takes an output with and one without it, unless guidance was distilled into the network.

        Args:
            x_1CFHW: in the sampler's scale.
            beside: further inputs of the network, for one.
            text_2LC: features without and with the caption; None = the stage's network is told of none.
        """
        scale = stage_scale(stage, index)
        distilled = self._takes(stage, "guidance")
        guided = text_2LC is not None and scale != 1.0 and not distilled
        count = 2 if guided else 1
        one = {"sample": scale_model_input(schedule, index, x_1CFHW)} | beside
        inputs = {name: part.expand(count, *part.shape[1:]) for name, part in one.items()}
        inputs["timestep"] = torch.full((count,), schedule.timesteps[index])
        if distilled:
            inputs["guidance"] = torch.full((count,), scale)
        if text_2LC is not None:
            inputs |= {"text": text_2LC[-count:], "fps": torch.full((count,), fps)}
        out = self.run_stage(stage, x_1CFHW.shape[2], inputs)
        return out[:1] + scale * (out[1:] - out[:1]) if guided else out

    def decode_base(self, frame_CHW: Tensor) -> Tensor:
        """What the base stage ends in as a picture: float32 [3, H, W], -1 to 1 becomes 0 to 1."""
        return _unit(frame_CHW)

    @torch.inference_mode()
    def interpolate(self, stage: Stage, window: Window, frames_FCHW: Tensor) -> Tensor:
        """The frames at a window's places, of the one or two it reads: float32 [F', 3, H, W]."""
        first = frames_FCHW[0]
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
    def super_resolve(
        self,
        stage: Stage,
        window: Window,
        frames_FCHW: Tensor,
        seed: int,
        fps: float = 0.0,
        text_2LC: Tensor | None = None,
    ) -> Tensor:
        """A window's own frames, larger or more of them: float32 [F', 3, scale·H, scale·W].

        Args:
            fps: of the frames that are made, and text_2LC: features without and with the caption; networks that read
                no text are told of neither.
        """
        frames_FCHW = frames_FCHW.repeat_interleave(stage.times, dim=0)
        height, width = frames_FCHW.shape[2:]
        first = stage.times * window.reads[0]
        numbers = range(first, first + len(frames_FCHW)) if stage.noise == "per-frame" else [0]
        asked = SuperResolution(stage, numbers, seed, (3, height * stage.scale, width * stage.scale))
        reads_text = self._takes(stage, "text")
        if reads_text and text_2LC is None:
            text_2LC = self.encode_text(["", ""])
        told = (fps, text_2LC) if reads_text else (0.0, None)
        made = torch.empty(len(frames_FCHW), *asked.shape)
        for rows in tiles(height):
            for columns in tiles(width):
                self._super_resolve_tile(asked, frames_FCHW, made, rows, columns, *told)
        return made[window.makes[0] - first : window.makes[1] - first]

    def _super_resolve_tile(
        self, asked: "SuperResolution", frames_FCHW: Tensor, made_FCHW: Tensor,
        rows: "Tile", columns: "Tile", fps: float, text_2LC: Tensor | None,
    ) -> None:  # fmt: skip
        stage, multiple = asked.stage, self.multiple(asked.stage)
        scale, schedule = stage.scale, schedule_of(stage)
        small = frames_FCHW[:, :, rows.reads[0] : rows.reads[1], columns.reads[0] : columns.reads[1]]
        size = small.shape[2] * scale, small.shape[3] * scale
        large = F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(0, 1) * 2 - 1

        def noise(at: int, of: str = "") -> Tensor:
            part = asked.noise(at, of)[..., rows.reads[0] * scale : rows.reads[1] * scale, :]
            part = part[..., columns.reads[0] * scale : columns.reads[1] * scale]
            return _padded(part.transpose(0, 1)[None].expand(1, -1, len(small), -1, -1), multiple).to(self.device)

        condition = _padded(large.transpose(0, 1)[None], multiple).to(self.device)
        beside = {"condition": condition}
        if stage.condition_snr:
            kept = stage.condition_snr / (1 + stage.condition_snr)
            beside["condition"] = kept**0.5 * condition + (1 - kept) ** 0.5 * noise(INITIAL, "condition")
        beside["noise_level"] = torch.tensor([1 / (1 + stage.condition_snr) if stage.condition_snr else 0.0])
        x = noise(INITIAL)
        for i in range(len(schedule)):
            out = self._guided(stage, schedule, i, x, beside, fps, text_2LC)
            x = step(schedule, i, x, out, noise(i) if needs_noise(schedule, i) else None)
        top, left = (scale * (tile.makes[0] - tile.reads[0]) for tile in (rows, columns))
        high, wide = (scale * (tile.makes[1] - tile.makes[0]) for tile in (rows, columns))
        made_FCHW[:, :, scale * rows.makes[0] :, scale * columns.makes[0] :][:, :, :high, :wide] = _unit(
            x[0, :, :, top : top + high, left : left + wide]
        ).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class SuperResolution:
    """A window's noise: of frames with these numbers, or one for all of them; [C, H, W] each.

    `drawn`: what all tiles begin with.
    """

    stage: Stage
    numbers: Sequence[int]
    seed: int
    shape: tuple[int, int, int]
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def noise(self, at: int, of: str) -> Tensor:
        """Unit noise of a step, [F or 1, C, H, W]; `of`: what else than the frames it is for."""
        if at == INITIAL and of in self.drawn:
            return self.drawn[of]
        name = f"{self.stage.name}/{of}" if of else self.stage.name
        made = torch.stack([stage_noise(self.seed, name, number, self.shape, at) for number in self.numbers])
        if at == INITIAL:
            self.drawn[of] = made
        return made


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


def tiles(side: int) -> list[Tile]:
    """One stretch for a side that is not much longer than a tile, else tiles that begin at even places."""
    if side <= _TILE + 2 * _TILE_MARGIN:
        return [Tile((0, side), (0, side))]
    starts = range(0, side, _TILE)
    return [
        Tile((max(0, s - _TILE_MARGIN), min(side, s + _TILE + _TILE_MARGIN)), (s, min(side, s + _TILE))) for s in starts
    ]


def schedule_of(stage: Stage) -> Schedule:
    """The noise schedule of a stage."""
    return make_schedule(stage.sampler, dict(stage.scheduler), stage.num_inference_steps)


def stage_scale(stage: Stage, index: int) -> float:
    """The pull of the text at a step of a stage."""
    return scale_at(index, stage.guidance_scale, stage.guidance_low, stage.guidance_high_steps)


def stage_noise(seed: int, stage: str, frame: int, shape: tuple[int, ...], at: int = INITIAL) -> Tensor:
    """Unit noise of a stage, a frame and a step: of nothing else but the seed, so no batch or worker changes it."""
    return sample_noise(f"{seed}/{at}/{stage}/{frame}", shape)


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
