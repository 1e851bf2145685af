"""Which stretches of codes a story is made in, decided before a network runs.

A video's first token frame is one frame, every other one two; frame f lies in token frame (f + 1) // 2. A scene begins
with a token frame, so at most one frame early, and no stretch lies in two scenes.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate

from fairy.kernels.errors import InputError
from fairy.runtime.generation.params import LONGEST, StoryParams
from fairy.runtime.generation.phenaki_networks import PhenakiModel


@dataclass(frozen=True, slots=True)
class Stretch:
    """Codes that are made at once: token frames [first, first + frames), all of one scene (its number)."""

    scene: int
    first: int
    frames: int


@dataclass(frozen=True, slots=True)
class StoryPlan:
    """Everything that is decided before a network runs.

    Attributes:
        params: with every None filled in, and every scene's length in frames.
        given: token frames that the video begins with: a picture's one, or those of a given video's end.
        stretches: what is made after them, in order.
        num_frames: of the result; a picture is its first frame, a given video's frames are none of its.
    """

    params: StoryParams
    given: int
    stretches: tuple[Stretch, ...]
    num_frames: int


def plan_story(model: PhenakiModel, params: StoryParams, *, continued: int = 0) -> StoryPlan:
    """The stretches of a story.

    Args:
        continued: frames of the given video that the story continues, 1 + 2·m; 0 = there is none.

    Raises:
        InputError: a scene is too short, or the story too long.
    """
    lengths = [frames_of(duration, model.fps) for _, duration in params.scenes]
    for number, (length, (prompt, _)) in enumerate(zip(lengths, params.scenes, strict=True), start=1):
        if length < 2 and number > 1:
            raise InputError(
                f"Scene {number}, {prompt!r}, has {length} frame at {float(model.fps):g} frames/s; give it 2 at least."
            )
    total = sum(lengths)
    if total > LONGEST:
        raise InputError(f"The story has {total} frames, and may have {LONGEST}; make it in parts (--video).")
    given = (continued + 1) // 2 if continued else int(params.image is not None)
    bounds = [given, *((continued + end + 1) // 2 for end in accumulate(lengths))]
    bounds[-1] = (continued + total) // 2 + 1
    stretches = tuple(
        Stretch(scene, first, min(model.frames, bounds[scene + 1] - first))
        for scene in range(len(lengths))
        for first in range(bounds[scene], bounds[scene + 1], model.frames)
    )
    resolved = replace(
        params,
        scenes=tuple((prompt, length) for (prompt, _), length in zip(params.scenes, lengths, strict=True)),
        num_inference_steps=params.num_inference_steps or model.num_inference_steps,
        guidance_scale=model.guidance_scale if params.guidance_scale is None else params.guidance_scale,
        temperature=model.temperature if params.temperature is None else params.temperature,
    )
    return StoryPlan(resolved, given, stretches, total)


def frames_of(duration: int | float, fps: Fraction) -> int:
    """Frames of a scene of so many frames (int) or seconds (float)."""
    return duration if isinstance(duration, int) else max(1, round(duration * fps))
