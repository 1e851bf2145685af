"""Clips of one thing whose caption says what it is, which colour it has, where it is, and how it moves.

Positions are in pixels of a square picture, time in seconds; a clip is a function of its seed.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from training.shapes import SHAPES, UPRIGHT, signed_distance
from training.textures import NAMED_COLOURS, Array, Colour

STREAM = 61  # of random numbers
SIDE, FRAMES = 64, 16
RATES = (4.0, 8.0)  # frames a second
SPEEDS = (7.0, 9.5)  # pixels a second at 64 pixels a side
RADII = (0.13, 0.2)  # of the side
MARGIN = 2.0  # pixels that stay free at the border

NOUNS = {
    "circle": ("ball", "circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0), "still": (0.0, 0.0)}
VERBS = {
    "left": ("moves to the left", "slides to the left", "rolls to the left", "flies left", "goes left"),
    "right": ("moves to the right", "slides to the right", "rolls to the right", "flies right", "goes right"),
    "up": ("moves up", "rises", "floats up", "goes up", "climbs"),
    "down": ("moves down", "falls", "sinks", "goes down", "drops"),
    "still": ("stands still", "does not move", "rests", "stays where it is"),
}
PLACES = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "middle": (0.5, 0.5),
}
PLACE_WORDS = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", "in the centre"),
}
GROUNDS: dict[str, tuple[Colour, Colour]] = {  # the colours at the top and at the bottom
    "black": ((0.04, 0.04, 0.05), (0.04, 0.04, 0.05)),
    "grey": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "white": ((0.98, 0.98, 0.98), (0.98, 0.98, 0.98)),
    "sky": ((0.35, 0.62, 0.92), (0.8, 0.9, 0.98)),
    "sunset": ((0.30, 0.22, 0.42), (0.93, 0.62, 0.45)),
    "meadow": ((0.55, 0.75, 0.45), (0.33, 0.52, 0.25)),
}
GROUND_WORDS = {
    "black": ("on a black background", "in the dark"),
    "grey": ("on a grey background",),
    "white": ("on a white background", "on white paper"),
    "sky": ("under a blue sky", "in the sky"),
    "sunset": ("at sunset",),
    "meadow": ("on a meadow", "on the grass"),
}
UNSEEN = (  # pairs of colour and shape that no training clip shows: held out, to see what is put together anew
    ("red", "star"),
    ("blue", "triangle"),
    ("green", "ring"),
    ("yellow", "square"),
    ("purple", "cross"),
)
_DISTINCT = 0.35  # a thing's colour is at least this far from its background's, in the largest channel


@dataclass(frozen=True, slots=True)
class Clip:
    """What a clip shows, and the caption that says so.

    Attributes:
        centre: at the first frame, (x, y) in shares of the side.
        direction: a name of `DIRECTIONS`; `speed` in sides a second.
        place: a name of `PLACES`, or None where the caption names none.
    """

    shape: str
    colour: str
    ground: str
    radius: float
    centre: tuple[float, float]
    direction: str
    speed: float
    place: str | None
    caption: str

    def at(self, seconds: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The centre at these times, x and y in shares of the side."""
        dx, dy = DIRECTIONS[self.direction]
        return self.centre[0] + self.speed * dx * seconds, self.centre[1] + self.speed * dy * seconds


def random_clip(seed: int, *, fps: float, frames: int = FRAMES, unseen: bool = False, motion: bool = True) -> Clip:
    """The clip of that seed, which stays within the picture for so many frames.

    `unseen`: of the held-out pairs of colour and shape. `motion`: whether the caption says how it moves.
    """
    rng = np.random.default_rng((STREAM, seed))
    ground = str(rng.choice(list(GROUNDS)))
    pairs = [
        (colour, shape)
        for colour in NAMED_COLOURS
        for shape in SHAPES
        if ((colour, shape) in UNSEEN) == unseen and is_distinct(colour, ground)
    ]
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    direction = str(rng.choice(list(DIRECTIONS)))
    radius, speed = float(rng.uniform(*RADII)), float(rng.uniform(*SPEEDS)) / SIDE
    place, centre = _place(rng, direction, radius, speed * (frames - 1) / fps)
    noun, verb = (str(rng.choice(words)) for words in (NOUNS[shape], VERBS[direction]))
    if noun != "ball":
        verb = verb.replace("rolls", "moves")
    parts = [f"a {colour} {noun}"] + [verb] * motion
    parts += [str(rng.choice(PLACE_WORDS[place]))] if place else []
    parts += [str(rng.choice(GROUND_WORDS[ground]))] if rng.random() < 0.7 else []
    caption = " ".join(parts).replace("a orange", "an orange")
    return Clip(shape, colour, ground, radius, centre, direction, speed, place, caption)


@cache
def is_distinct(colour: str, ground: str) -> bool:
    """Whether a colour stands out from a background, wherever it is before it."""
    top, bottom = (np.asarray(c) for c in GROUNDS[ground])
    shares = np.linspace(0, 1, 9)[:, None]
    return bool((np.abs((1 - shares) * top + shares * bottom - NAMED_COLOURS[colour]).max(axis=1) > _DISTINCT).all())


def _place(
    rng: np.random.Generator, direction: str, radius: float, distance: float
) -> tuple[str | None, tuple[float, float]]:
    """Where it starts so that it stays in the picture, and that place's name where it is to be said.

    What moves is named by its place across its way.
    """
    free = radius + MARGIN / SIDE
    dx, dy = DIRECTIONS[direction]
    named = [p for p, (x, y) in PLACES.items() if (x == 0.5 or dx == 0) and (y == 0.5 or dy == 0)]
    place = str(rng.choice(named)) if rng.random() < 0.6 else None
    centre = []
    for axis, step in ((0, dx), (1, dy)):
        if step:
            low, high = free + (distance if step < 0 else 0), 1 - free - (distance if step > 0 else 0)
            centre.append(float(rng.uniform(low, max(low, high))))
        elif place:
            centre.append(float(np.clip(PLACES[place][axis] + rng.uniform(-0.05, 0.05), free, 1 - free)))
        else:
            centre.append(float(rng.uniform(free, 1 - free)))
    return place, (centre[0], centre[1])


def render_clip(clip: Clip, *, fps: float, frames: int = FRAMES, side: int = SIDE, first: float = 0.0) -> Array:
    """The frames, float32 [frames, side, side, 3] in [0, 1]; `first`: seconds at which the first one is."""
    x_F, y_F = clip.at(first + np.arange(frames) / fps)
    cover = cover_of(clip.shape, clip.radius, x_F, y_F, side)
    colour = np.asarray(NAMED_COLOURS[clip.colour], np.float32)
    return np.asarray(cover * colour + (1 - cover) * ground(clip.ground, side), np.float32)


def cover_of(
    shape: str, radius: float, x_F: npt.NDArray[np.float64], y_F: npt.NDArray[np.float64], side: int = SIDE
) -> Array:
    """Where a thing is, 0 to 1, [frames, side, side, 1]; its radius and centres are in shares of the side."""
    plane = (np.arange(side) + 0.5) / side
    turn = UPRIGHT[shape]
    u = (plane[None, None, :] - x_F[:, None, None]) / radius
    v = (plane[None, :, None] - y_F[:, None, None]) / radius
    c, s = np.cos(turn), np.sin(turn)
    u, v = (c * u + s * v).astype(np.float32), (c * v - s * u).astype(np.float32)
    distance = signed_distance(shape, u, v) * radius * side
    return np.asarray(np.clip(0.5 - distance, 0, 1)[..., None], np.float32)


def ground(name: str, side: int = SIDE) -> Array:
    """The background, [side, 1, 3]."""
    top, bottom = (np.asarray(c, np.float32) for c in GROUNDS[name])
    shares = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    return np.asarray((1 - shares) * top + shares * bottom, np.float32)


def captions() -> list[str]:
    """Many captions of training clips, for the tokenizer."""
    return [random_clip(seed, fps=RATES[0]).caption for seed in range(4000)]
