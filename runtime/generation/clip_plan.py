"""What the stages of a cascade will make of what is asked for, decided before a network runs."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from fairy.kernels.errors import InputError
from fairy.runtime.generation.cascade import Cascade, ClipShape, Stage
from fairy.runtime.generation.params import GenerateParams
from fairy.runtime.generation.windows import (
    StagePlan,
    interpolation_windows,
    regular_places,
    super_resolution_windows,
)

_MOST_TIMES = 32
_OF_THE_BASE = ("num_inference_steps", "guidance_scale", "guidance_low", "guidance_high_steps", "sampler")


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Everything that is decided before a network runs.

    Attributes:
        params: with every None filled in.
        stages, shapes: those that run, and what each makes; the result is the first `num_frames` of the last one's.
    """

    params: GenerateParams
    stages: tuple[Stage, ...]
    shapes: tuple[ClipShape, ...]
    num_frames: int

    @property
    def result(self) -> ClipShape:
        return replace(self.shapes[-1], frames=self.num_frames)

    @property
    def later(self) -> tuple[StagePlan, ...]:
        """The stages after the base stage, with their windows."""
        return tuple(map(_windowed, self.stages[1:], self.shapes, self.shapes[1:]))


def plan_clip(cascade: Cascade, params: GenerateParams) -> ClipPlan:
    """What the stages will make. Raises InputError where the cascade cannot make what is asked for."""
    cascade = _up_to(cascade, params.stages)
    stages = _stages_for_size(cascade, params.size)
    usual = cascade.shapes[-1]
    fps = params.fps or usual.fps
    stages = _stages_for_rate(stages, fps)
    frames = params.num_frames or usual.frames
    base_frames = frames
    for stage in reversed(stages):
        base_frames = stage.needed_for(base_frames)
    times = int(np.prod([stage.times for stage in stages], dtype=int))
    base = _as_asked(stages[0], params)
    stages = (base, *stages[1:])
    if params.image is not None and base.factor > 1:
        raise InputError("is for generators of pixels", name="image", value=str(params.image), remedy="leave it out")
    shapes = Cascade(stages).shapes_from(ClipShape(base_frames, base.height, base.width, fps / times))
    given: dict[str, Any] = {
        "num_frames": frames,
        "fps": fps,
        "size": (shapes[-1].width, shapes[-1].height),
        **{name: getattr(base, name) for name in _OF_THE_BASE},
    }
    return ClipPlan(replace(params, **given), stages, shapes, frames)


def _up_to(cascade: Cascade, last: str | None) -> Cascade:
    """The cascade without the stages after one. Raises InputError where there is none of that name."""
    names = [stage.name for stage in cascade.stages]
    if last is None:
        return cascade
    if last not in names:
        raise InputError("is no stage", name="stages", value=last, remedy=f"choose one of {', '.join(names)}")
    return replace(cascade, stages=cascade.stages[: names.index(last) + 1])


def _as_asked(base: Stage, params: GenerateParams) -> Stage:
    """The base stage with what is asked of its sampling."""
    asked = {name: getattr(params, name) for name in _OF_THE_BASE}
    return replace(base, **{name: value for name, value in asked.items() if value is not None})


def _windowed(stage: Stage, taken: ClipShape, made: ClipShape) -> StagePlan:
    if stage.kind == "interpolation":
        places = regular_places(taken.frames, stage.times)
        return StagePlan(stage, interpolation_windows(places, taken.frames))
    return StagePlan(stage, super_resolution_windows(stage, taken.frames), float(made.fps))


def _stages_for_size(cascade: Cascade, size: int | tuple[int, int] | None) -> tuple[Stage, ...]:
    """The stages up to the size that is asked for, or the base stage at that size where it is free to choose."""
    if size is None:
        return cascade.stages
    width, height = size if isinstance(size, tuple) else (size, size)
    sizes, base = [(shape.width, shape.height) for shape in cascade.shapes], cascade.base
    if (width, height) in sizes:
        small = zip(cascade.stages, sizes, strict=True)
        return tuple(stage for stage, made in small if stage.kind != "super_resolution" or made <= (width, height))
    if base.multiple and not (width % base.multiple or height % base.multiple):
        free = replace(base, width=width, height=height)
        return (free, *(stage for stage in cascade.stages[1:] if stage.kind != "super_resolution"))
    known = ", ".join(f"{w}x{h}" for w, h in dict.fromkeys(sizes))
    others = f", or multiples of {base.multiple}" if base.multiple else ""
    remedy = f"choose one of {known}{others}, or use fairy upscale on the result"
    raise InputError("is none that the stages make", name="size", value=size, remedy=remedy)


def _stages_for_rate(stages: tuple[Stage, ...], fps: Fraction) -> tuple[Stage, ...]:
    """The stages with as many frames between as a rate needs; a cascade with several such stages keeps its own."""
    between = [stage for stage in stages if stage.kind == "interpolation"]
    if len(between) != 1:
        return stages
    times = max(1, round(fps / Fraction(stages[0].fps)))
    if times > _MOST_TIMES:
        remedy = f"choose at most {_MOST_TIMES * stages[0].fps:g}, or use fairy interpolate on the result"
        raise InputError("is more than can be made", name="fps", value=float(fps), remedy=remedy)
    made = (replace(stage, times=times) if stage is between[0] else stage for stage in stages)
    return tuple(stage for stage in made if stage.kind != "interpolation" or stage.times > 1)
