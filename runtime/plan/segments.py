"""Shots and stories: how one film is cut into segments, each with its own instruction, anchors and bank.

A segment is the frames between two boundaries; a boundary is a cut (anchors that span one are wrong) or the start of
another instruction. Micro-batches never span two segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairy.kernels.errors import InputError
from fairy.runtime.inputs.frames import Source
from fairy.runtime.methods import find_method
from fairy.runtime.plan.batches import Part, cut_into_parts, default_micro_batch
from fairy.runtime.plan.choose_anchors import DEFAULT_ANCHORS, choose_anchors
from fairy.runtime.plan.params import EditParams, Ramp, Scheduled

_ROUNDING_S = 1e-9


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames `start` to before `stop`, edited by one instruction against their own anchors.

    Attributes:
        anchors: frame numbers, counted from the first edited frame of the video, in order.
        parts: the segment cut into what leaves together; see `cut_into_parts`. Where the strength changes, anchors are
            in them too: they are edited once more, as strongly as it is their turn.
        strengths: of the first and of the last frame; between them it is linear.
    """

    start: int
    stop: int
    prompt: str
    anchors: tuple[int, ...]
    parts: tuple[Part, ...]
    strengths: Ramp = (1.0, 1.0)

    def strength_at(self, frame: int) -> float:
        """How much of a frame is edited, 0 to 1."""
        first, last = self.strengths
        return first + (last - first) * (frame - self.start) / max(1, self.stop - 1 - self.start)


def first_step(strength: float, num_inference_steps: int) -> int:
    """The number of the step at which an edit of that strength begins, as diffusers has it; all of them = none."""
    return num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)


def plan_segments(params: EditParams, num_frames: int, micro_batch: int | None) -> tuple[tuple[Segment, ...], int]:
    """The segments of a video and the frames of a micro-batch, one number for all segments.

    Args:
        params: with `shots` and `prompts` settled to frame numbers; see `settle`.
        micro_batch: as asked for; None = chosen from the number of anchors.

    Raises:
        InputError: a frame that the video does not have, or a list of anchors that leaves out a segment.
    """
    cuts = params.shots if isinstance(params.shots, tuple) else ()
    prompts = {int(start): prompt for start, prompt, *_ in params.schedule}
    for name, frames in (("shots", cuts), ("prompts", prompts)):
        outside = [frame for frame in frames if not 0 <= frame < num_frames]
        if outside:
            remedy = f"its frames are 0 to {num_frames - 1}"
            raise InputError(f"{outside[0]} is not a frame of the video", name=name, remedy=remedy)
    starts = sorted({0, *cuts, *prompts})
    stops = [*starts[1:], num_frames]
    anchors = _anchors_of(params, list(zip(starts, stops, strict=True)))
    batch = micro_batch or default_micro_batch(max(map(len, anchors)))
    if params.micro_batch is not None:  # what nobody asked for depends on no video; see `default_micro_batch`
        batch = min(batch, _longest(params, starts, stops, anchors))
    segments = []
    prompt = params.prompt
    ramps = _ramps(params, num_frames)
    for start, stop, chosen in zip(starts, stops, anchors, strict=True):
        prompt = prompts.get(start, prompt)
        strengths = next(_cut(ramp, first, last, start, stop) for first, last, ramp in ramps if first <= start < last)
        apart = chosen if strengths[0] == strengths[1] or find_method(params.method).anchors != "chosen" else ()
        parts = cut_into_parts(stop, frozenset(apart), batch, start=start)
        segments.append(Segment(start, stop, prompt, chosen, parts, strengths))
    return tuple(segments), batch


def _ramps(params: EditParams, num_frames: int) -> list[tuple[int, int, Ramp]]:
    """How strongly which frames are edited: the first of them, that after the last, and the strengths of these two."""
    usual = (params.strength, params.strength)
    told = {0: usual} | {int(start): (ramp or [usual])[0] for start, _, *ramp in params.schedule}
    starts = sorted(told)
    return [(a, b, told[a]) for a, b in zip(starts, [*starts[1:], num_frames], strict=True)]


def _cut(ramp: Ramp, first: int, last: int, start: int, stop: int) -> Ramp:
    """The part of a ramp over frames `first` to before `last` that lies over `start` to before `stop`."""
    whole = Segment(first, last, "", (), (), ramp)
    return whole.strength_at(start), whole.strength_at(stop - 1)


def _longest(
    params: EditParams, starts: Sequence[int], stops: Sequence[int], anchors: Sequence[tuple[int, ...]]
) -> int:
    """The most frames of a segment that can be computed at once: batches are filled up to their size."""
    alone = 0 if find_method(params.method).anchors == "chosen" else 1  # elsewhere anchors are units like all others
    counts = [stop - start - len(a) * (not alone) for start, stop, a in zip(starts, stops, anchors, strict=True)]
    return max(1, *counts)


def _anchors_of(params: EditParams, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The anchors of every segment, as its method has them."""
    who = find_method(params.method).anchors
    if who == "chosen":
        return _with_looks(_anchors(params.anchors, ranges), params, ranges)
    return [(start,) if who == "first" else () for start, _ in ranges]


def _with_looks(
    anchors: list[tuple[int, ...]], params: EditParams, ranges: Sequence[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """The anchors of every segment with those whose look is given; where nobody asks for others these alone."""
    last = ranges[-1][1]
    outside = [frame for frame in params.looks if frame >= last]
    if outside:
        remedy = f"its frames are 0 to {last - 1}"
        raise InputError(f"{outside[0]} is not a frame of the video", name="anchor_images", remedy=remedy)
    given = [tuple(frame for frame in params.looks if start <= frame < stop) for start, stop in ranges]
    alone = params.anchors is None
    return [
        looks if looks and alone else tuple(sorted({*chosen, *looks}))
        for chosen, looks in zip(anchors, given, strict=True)
    ]


def _anchors(
    anchors: int | tuple[int, ...] | list[int] | None, ranges: Sequence[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """The anchors of every segment; a number is that of each, and a segment that is shorter uses what it has."""
    last = ranges[-1][1]
    if len(ranges) == 1:
        return [choose_anchors(anchors, last)]
    if anchors is None or isinstance(anchors, int):
        count = DEFAULT_ANCHORS if anchors is None else anchors
        return [
            tuple(start + a for a in choose_anchors(min(count, stop - start), stop - start)) for start, stop in ranges
        ]
    chosen = choose_anchors(anchors, last)
    by_segment = [tuple(a for a in chosen if start <= a < stop) for start, stop in ranges]
    for (start, stop), found in zip(ranges, by_segment, strict=True):
        if chosen and not found:
            problem = f"has none in the segment of frames {start} to {stop - 1}"
            remedy = "name at least one in every shot and for every instruction, or give a number"
            raise InputError(problem, name="anchors", value=list(chosen), remedy=remedy)
    return by_segment


def frames_of_prompts(params: EditParams, source: Source) -> tuple[Scheduled, ...] | None:
    """The schedule of instructions by frame, counted from the first edited one.

    A time in seconds is one of the video, as `start` and `end` are, and means the first frame shown then or later.

    Raises:
        InputError: a time for a source without a clock, one outside of what is edited, or two for one frame.
    """
    if not params.schedule:
        return None
    found: dict[int, Scheduled] = {}
    for start, *rest in params.schedule:
        frame = start if isinstance(start, int) else _frame_at(start, source)
        if frame in found:
            raise InputError(f"prompts: {start!r} is frame {frame}, which has an instruction already; leave one out.")
        found[frame] = (frame, *rest)
    return tuple(found[frame] for frame in sorted(found))


def _frame_at(seconds: float, source: Source) -> int:
    video = source.video
    if video is None:
        raise InputError(
            f"prompts: {seconds:g} s is a time, and a folder of images or an array has no clock; give frame numbers."
        )
    times = (video.pts - video.pts[0]) * float(video.time_base)
    frame = int(np.searchsorted(times, seconds - _ROUNDING_S)) - source.first
    if not 0 <= frame < source.num_frames:
        raise InputError(
            f"prompts: no frame that is edited is shown at {seconds:g} s; the video lasts {video.duration_s:.2f} s."
        )
    return frame
