"""Clips whose optical flow is known exactly, with what each instruction should make of them.

Two kinds, none of them ever trained on: a camera over the held-out photographs with a few things moving past, and
procedural scenes from held-out seeds.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.measures import Flow, Frames, Mask
from training.flow import backward_flow
from training.instructions import make_edit
from training.photographs import HELD_OUT
from training.pictures import to_bytes
from training.random_scenes import random_scene, random_sprite
from training.scenes import Motion, Photo, Scene, render

HELD_OUT_SEED = 910_000_000
STREAM = 21  # of random numbers
SPACING = 1.5  # scene time between frames


@dataclass(frozen=True, slots=True)
class Clip:
    """One source and one instruction.

    Attributes:
        name: scene and instruction.
        kind: "global" or "local", with an exact target, or "free", where the instruction leaves it open.
        source, target: uint8 [T, H, W, 3]; `target` is one of many for "free".
        mask: [T, H, W], where the edit changes the picture.
        flows, visible: of frame t + 1 back to frame t, one fewer than frames.
    """

    name: str
    kind: str
    prompt: str
    source: Frames
    target: Frames
    mask: np.ndarray
    flows: tuple[Flow, ...]
    visible: tuple[Mask, ...]


def make_clip(index: int, instruction: str, *, num_frames: int, size: int) -> Clip:
    """The clip of that number: even ones show a photograph, odd ones a procedural scene."""
    scene = _photograph_scene(index, size) if index % 2 == 0 else _procedural_scene(index, size)
    edit = make_edit(instruction, scene, np.random.default_rng((STREAM, index)), wording=0)
    times = [SPACING * t for t in range(num_frames)]
    source = np.stack([to_bytes(render(scene, time).image) for time in times])
    target = np.stack([to_bytes(edit.target(time)) for time in times])
    moved = [backward_flow(scene, time, before) for before, time in pairwise(times)]
    return Clip(
        name=f"{index} {instruction}",
        kind=edit.kind,
        prompt=edit.text,
        source=source,
        target=target,
        mask=_changed(source, target),
        flows=tuple(flow for flow, _ in moved),
        visible=tuple(mask for _, mask in moved),
    )


def _photograph_scene(index: int, size: int) -> Scene:
    rng = np.random.default_rng((STREAM, HELD_OUT_SEED + index))
    long_side = int(1.6 * size)
    photo = Photo(HELD_OUT[index // 2 % len(HELD_OUT)], long_side, (0.15 * long_side, 0.1 * long_side))
    sprites = tuple(random_sprite(rng, size, size) for _ in range(3))
    camera = Motion(shift=(1.2 * (-1) ** index, 0.6), spin=0.004, zoom=1.002)
    return Scene(size, size, photo, sprites, camera)


def _procedural_scene(index: int, size: int) -> Scene:
    return replace(random_scene(HELD_OUT_SEED + index, size, size, photos=0), camera=Motion(shift=(0.8, -0.5)))


def _changed(source: Frames, target: Frames) -> np.ndarray:
    return np.abs(source.astype(int) - target).max(-1) > 5
