"""A generator as data: stages, each with the shape of what it takes and makes.

`cascade.json` in a generator's folder lists them:

    {"stages": [{"name": "base", "kind": "base", "network": "base", "frames": 16, …},
                {"name": "interpolation", "kind": "interpolation", "network": "interpolation", "times": 5},
                {"name": "super_resolution", "kind": "super_resolution", "network": "super_resolution", "scale": 2, …}]}

(Singer et al., Make-A-Video, arXiv 2209.14792, figure 2: 16 frames of 64x64, 76 frames, 256x256, 768x768.)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from fairy.kernels.errors import InputError

StageKind = Literal["base", "interpolation", "super_resolution"]
KINDS: tuple[StageKind, ...] = ("base", "interpolation", "super_resolution")
FILE = "cascade.json"
GENERATOR_SAMPLERS = ("ddim", "ddpm", "ddim_stochastic")


@dataclass(frozen=True, slots=True)
class ClipShape:
    """Frames, height and width in pixels, and frames a second."""

    frames: int
    height: int
    width: int
    fps: Fraction

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}×{self.height} at {float(self.fps):g} frames/s"


@dataclass(frozen=True, slots=True)
class Stage:
    """One network's part in a cascade.

    Attributes:
        name: what progress and report call it.
        kind: base (text to frames), interpolation (frames between frames) or super_resolution.
        network: its folder, in the generator's.
        frames, height, width, fps: of the base stage alone: what it was trained to make in one window.
        channels, factor: of the base stage alone: of what it denoises, and how many pixels a place of it stands for
            along a side; 3 and 1 for pixels.
        multiple: of the base stage alone: other sizes than its own are possible if they are multiples of this many
            pixels; 0 = none is.
        times: for each frame it makes so many, with itself. Interpolation makes them between a frame and the next;
            super-resolution repeats the frame and denoises (temporal super-resolution of Imagen Video).
        scale: of super-resolution alone: how many times larger.
        window: frames that are computed together at most; of interpolation they are those between two known ones.
        overlap: frames that two windows of the base stage share; of super-resolution those beside its own that a window
            reads on each side.
        enable_time: False leaves the network's layers over time out.
        scheduler: diffusers' configuration of the noise schedule; empty for a network without noise.
        sampler: of `fairy.runtime.denoise.schedulers`, one of `GENERATOR_SAMPLERS`.
        num_inference_steps, guidance_scale, guidance_low, guidance_high_steps: as recommended.
        noise: of super-resolution alone: "shared", the same for all frames, or "per-frame".
        condition_snr: of super-resolution alone: signal to noise of what it takes after noise was added to it
            (conditioning augmentation; Imagen Video: 3 or 5), 0 = none is. The network must know its level.
    """

    name: str
    kind: StageKind
    network: str
    frames: int = 0
    channels: int = 3
    factor: int = 1
    multiple: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    times: int = 1
    scale: int = 1
    window: int = 16
    overlap: int = 0
    enable_time: bool = True
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "ddim"
    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    guidance_low: float | None = None
    guidance_high_steps: int = 0
    noise: Literal["shared", "per-frame"] = "shared"
    condition_snr: float = 0.0

    def made_of(self, taken: ClipShape) -> ClipShape:
        """The shape of what the stage makes of a clip; the base stage takes none and is asked for its own."""
        if self.kind == "interpolation":
            frames = (taken.frames - 1) * self.times + 1
            return ClipShape(frames, taken.height, taken.width, taken.fps * self.times)
        if self.kind == "super_resolution":
            size = taken.height * self.scale, taken.width * self.scale
            return ClipShape(taken.frames * self.times, *size, taken.fps * self.times)
        return taken

    def needed_for(self, frames: int) -> int:
        """How many frames the stage must take to make so many."""
        if self.kind == "interpolation":
            return -(-(frames - 1) // self.times) + 1
        return -(-frames // self.times) if self.kind == "super_resolution" else frames

    @property
    def denoises(self) -> bool:
        """Whether it begins with noise: what a schedule and steps are for."""
        return bool(self.scheduler)

    def check(self) -> None:
        """Raise InputError where the stage cannot be."""
        numbers = {"window": self.window, "times": self.times, "scale": self.scale}
        wrong = next((f"{name} = {value!r}" for name, value in numbers.items() if not _is_count(value)), None)
        if self.kind not in KINDS:
            wrong = f"kind = {self.kind!r}"
        elif self.kind == "base" and not all(map(_is_count, (self.frames, self.height, self.width))):
            wrong = "no frames, height and width"
        elif not 0 <= self.overlap < self.window:
            wrong = f"overlap = {self.overlap!r}"
        elif self.sampler not in GENERATOR_SAMPLERS:
            wrong = f"sampler = {self.sampler!r} (choose one of {', '.join(GENERATOR_SAMPLERS)})"
        elif self.noise not in ("shared", "per-frame"):
            wrong = f"noise = {self.noise!r}"
        elif isinstance(self.condition_snr, bool) or not 0 <= self.condition_snr < 1e6:
            wrong = f"condition_snr = {self.condition_snr!r}"
        if wrong:
            raise InputError(f"The stage {self.name!r} in {FILE} has {wrong}, which is not possible; mend the file.")


@dataclass(frozen=True, slots=True)
class Cascade:
    """The stages of a generator in their order; the first is the base stage."""

    stages: tuple[Stage, ...]
    name: str = "generator"

    @property
    def base(self) -> Stage:
        return self.stages[0]

    @property
    def shapes(self) -> tuple[ClipShape, ...]:
        """What every stage makes of the base stage's own window."""
        base = self.base
        return self.shapes_from(ClipShape(base.frames, base.height, base.width, Fraction(base.fps)))

    def shapes_from(self, first: ClipShape) -> tuple[ClipShape, ...]:
        """What every stage makes, where the base stage makes `first`."""
        made = [first]
        for stage in self.stages[1:]:
            made.append(stage.made_of(made[-1]))
        return tuple(made)

    @classmethod
    def read(cls, folder: Path) -> "Cascade":
        """The cascade that a generator's folder describes.

        Raises:
            InputError: the file is missing, unreadable, or describes what cannot be.
        """
        path = folder / FILE
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is no generator: its {FILE} cannot be read ({error}).") from error
        entries = told.get("stages") if isinstance(told, dict) else None
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path} lists no stages; get the generator's files anew.")
        return cls(check_order([_stage(entry, path) for entry in entries]), str(told.get("name", folder.name)))


def check_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, if one base stage begins and names are not given twice. Raises InputError."""
    if [s.kind for s in stages].count("base") != 1 or stages[0].kind != "base":
        raise InputError(f"{FILE} must begin with its only base stage, and has {[s.kind for s in stages]}.")
    if len({s.name for s in stages}) != len(stages):
        raise InputError(f"{FILE} gives a name to two stages: {[s.name for s in stages]}.")
    for stage in stages:
        stage.check()
    return tuple(stages)


def _stage(entry: Mapping[str, Any], path: Path) -> Stage:
    known = {f.name: f.type for f in fields(Stage)}
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise InputError(f"{path} has a stage with {unknown[0]!r}, which is none of {', '.join(known)}.")
    if not all(isinstance(entry.get(name), str) for name in ("name", "kind", "network")):
        raise InputError(f"{path} has a stage without name, kind and network.")
    if Path(entry["network"]).name != entry["network"] or entry["network"].startswith("."):
        raise InputError(f"{path} names the network {entry['network']!r}, which is no folder in the generator's.")
    return Stage(**entry)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
