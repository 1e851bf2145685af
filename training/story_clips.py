"""Stories of one thing: a scene that a caption describes, then scenes whose captions say what changes.

    a red ball moves to the left on a meadow · the ball turns blue · it starts to snow · the camera moves right

Frames follow each other at `FPS`. Positions are in shares of a square picture's side; what moves stops at the border. A
story is a function of its seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from training.captioned_clips import (
    DIRECTIONS,
    GROUND_WORDS,
    GROUNDS,
    MARGIN,
    NOUNS,
    PLACES,
    SIDE,
    VERBS,
    Clip,
    cover_of,
    ground,
    is_distinct,
    random_clip,
)
from training.shapes import SHAPES
from training.textures import NAMED_COLOURS, Array

STREAM = 71  # of random numbers
FPS = 8.0  # as in Phenaki (Villegas et al., arXiv 2210.02399)
TURNING = 4  # frames over which a colour or the snow changes
FLAKES, FLAKE = 14, 0.026  # how many, and their radius
FALLING = 0.25  # sides a second
ROOM = 0.2  # sides that a thing must have before it, to be told to go there
OPENING = "opening"
KINDS = (OPENING, "colour", "motion", "snow", "clear", "camera left", "camera right")
SNOW = ("it starts to snow", "it begins to snow", "snow falls", "it snows")
CLEAR = ("it stops snowing", "the snow stops", "no more snow falls")
PANS = ("the camera moves {0}", "the camera pans to the {0}", "the camera goes {0}")
STOPS = ("stops", "stands still", "stays where it is")
TOLD = (tuple(NAMED_COLOURS), SHAPES, tuple(GROUNDS), tuple(DIRECTIONS), tuple(PLACES), KINDS)  # see `labels`
NOTHING = -100  # what a caption does not speak of (PyTorch's value)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene: what changed, the words that say so, and what is to be seen at its end.

    Attributes:
        kind: a name of `KINDS`.
        direction: a name of `DIRECTIONS`: where the thing goes in the picture, until the border stops it.
        place: a name of `PLACES`, or None where the caption names none.
    """

    kind: str
    caption: str
    frames: int
    shape: str
    colour: str
    ground: str
    direction: str
    place: str | None
    snows: bool


@dataclass(frozen=True, slots=True)
class Story:
    """Scenes one after the other; `centre`, radius and speed (sides a second) are the thing's."""

    scenes: tuple[Scene, ...]
    radius: float
    speed: float
    centre: tuple[float, float]
    flakes: Floats  # [FLAKES, 2], where they are at the first frame

    @property
    def frames(self) -> int:
        """Of all scenes."""
        return sum(scene.frames for scene in self.scenes)


def random_story(seed: int, frames: Sequence[int], *, unseen: bool = False, kinds: Sequence[str] = KINDS[1:]) -> Story:
    """The story of that seed, whose scenes have so many frames.

    `unseen`: with a held-out pair of colour and shape. `kinds`: what may change.
    """
    rng = np.random.default_rng((STREAM, seed))
    clip = random_clip(int(rng.integers(1 << 40)), fps=FPS, frames=min(frames[0], 17), unseen=unseen)
    first = Scene(
        OPENING, clip.caption, frames[0], clip.shape, clip.colour, clip.ground, clip.direction, clip.place, False
    )
    story = Story((first,), clip.radius, clip.speed, clip.centre, rng.random((FLAKES, 2)))
    for count in frames[1:]:
        story = replace(story, scenes=(*story.scenes, _next(rng, story, count, kinds)))
    return story


def _next(rng: np.random.Generator, story: Story, frames: int, kinds: Sequence[str]) -> Scene:
    """A scene that may follow, drawn among those that change something."""
    last = story.scenes[-1]
    x, y = (axis[-1] for axis in _path(story))
    possible = [change for kind in kinds for change in _changes(rng, kind, last, (x, y), story.radius)]
    names = sorted({change.kind for change in possible})
    kind = str(rng.choice(names))
    chosen = [change for change in possible if change.kind == kind]
    return replace(chosen[int(rng.integers(len(chosen)))], frames=frames, place=None)


def _changes(
    rng: np.random.Generator, kind: str, last: Scene, centre: tuple[float, float], radius: float
) -> list[Scene]:
    """What can happen of one kind after a scene that ends with the thing at that place."""
    noun = str(rng.choice(NOUNS[last.shape]))
    thing = f"the {last.colour} {noun}" if rng.random() < 0.5 else f"the {noun}"
    if kind == "colour":
        others = [c for c in NAMED_COLOURS if c != last.colour and is_distinct(c, last.ground)]
        return [
            replace(last, kind=kind, colour=c, caption=f"{thing} {rng.choice(('turns', 'becomes'))} {c}")
            for c in others
        ]
    if kind == "motion":
        free = [name for name in DIRECTIONS if name != last.direction and _has_room(name, centre, radius)]
        words = {name: str(rng.choice(STOPS if name == "still" else VERBS[name])) for name in free}
        if noun != "ball":
            words = {name: verb.replace("rolls", "moves") for name, verb in words.items()}
        return [replace(last, kind=kind, direction=name, caption=f"{thing} {words[name]}") for name in free]
    if kind in ("snow", "clear"):
        if last.snows == (kind == "snow") or last.ground == "white":
            return []
        words_of = SNOW if kind == "snow" else CLEAR
        return [replace(last, kind=kind, snows=kind == "snow", caption=str(rng.choice(words_of)))]
    side = kind.removeprefix("camera ")
    other = "left" if side == "right" else "right"
    if last.direction == other or not _has_room(other, centre, radius):
        return []
    return [replace(last, kind=kind, direction=other, caption=str(rng.choice(PANS)).format(side))]


def _has_room(direction: str, centre: tuple[float, float], radius: float) -> bool:
    """Whether a thing there could be seen to go in that direction."""
    reach = [c + ROOM * step for c, step in zip(centre, DIRECTIONS[direction], strict=True)]
    low, high = _borders(radius)
    return all(low <= r <= high for r, step in zip(reach, DIRECTIONS[direction], strict=True) if step)


def _borders(radius: float) -> tuple[float, float]:
    """Between which shares of the side a thing's centre stays."""
    return radius + MARGIN / SIDE, 1 - radius - MARGIN / SIDE


def _path(story: Story) -> tuple[Floats, Floats]:
    """The thing's centre at every frame, x and y [frames]; in a new scene it goes the new way at once."""
    steps = np.concatenate(
        [np.tile(np.asarray(DIRECTIONS[s.direction]) * story.speed / FPS, (s.frames, 1)) for s in story.scenes]
    )
    steps[0] = 0
    low, high = _borders(story.radius)
    places, place = [], np.asarray(story.centre)
    for step in steps:
        moved = place + step
        place = np.where(step == 0, place, np.clip(moved, np.minimum(low, place), np.maximum(high, place)))
        places.append(place)
    return np.asarray(places)[:, 0], np.asarray(places)[:, 1]


def render_story(story: Story, side: int = SIDE) -> Array:
    """The frames, float32 [frames, side, side, 3] in [0, 1]."""
    x_F, y_F = _path(story)
    first = story.scenes[0]
    cover_FHW1 = cover_of(first.shape, story.radius, x_F, y_F, side)
    colour_FC = _over_time([NAMED_COLOURS[s.colour] for s in story.scenes], story)
    made = cover_FHW1 * colour_FC[:, None, None] + (1 - cover_FHW1) * ground(first.ground, side)
    snow_F = _over_time([(float(s.snows),) for s in story.scenes], story)[:, 0]
    if snow_F.any():
        flakes_FHW1 = _snow(story, side) * snow_F[:, None, None, None]
        made = flakes_FHW1 + (1 - flakes_FHW1) * made
    return np.asarray(made, np.float32)


def _over_time(values: Sequence[tuple[float, ...]], story: Story) -> Array:
    """A value of every scene as one of every frame, [frames, n]: it goes over within the scene's first frames."""
    parts, before = [], np.asarray(values[0], np.float32)
    for value, scene in zip(values, story.scenes, strict=True):
        after = np.asarray(value, np.float32)
        shares = np.minimum(1, (np.arange(scene.frames, dtype=np.float32) + 1) / TURNING)[:, None]
        parts.append(before + shares * (after - before))
        before = parts[-1][-1]
    return np.concatenate(parts)


def _snow(story: Story, side: int) -> Array:
    """Where flakes are, 0 to 1, [frames, side, side, 1]."""
    y_FN = (story.flakes[:, 1] + np.arange(story.frames)[:, None] * FALLING / FPS) % 1
    plane = (np.arange(side) + 0.5) / side
    away_NW = np.square(plane - story.flakes[:, :1])
    away_FNH = np.square(plane - y_FN[..., None])
    near_FHW = (away_FNH[..., None] + away_NW[None, :, None]).min(axis=1)
    return np.asarray(np.clip(0.5 - (np.sqrt(near_FHW) - FLAKE) * side, 0, 1)[..., None], np.float32)


def labels(scene: Scene) -> list[int]:
    """What a scene's caption speaks of, as numbers in the lists of ``TOLD``; -100 where it does not."""
    ground_words = next((g for g, words in GROUND_WORDS.items() if any(w in scene.caption for w in words)), None)
    is_opening, is_motion = scene.kind == OPENING, scene.kind == "motion"
    of_thing = is_opening or is_motion or scene.kind == "colour"
    names = (
        scene.colour if is_opening or scene.kind == "colour" else None,
        scene.shape if of_thing else None,
        ground_words,
        scene.direction if is_opening or is_motion else None,
        scene.place,
        scene.kind,
    )
    return [values.index(n) if n is not None else NOTHING for values, n in zip(TOLD, names, strict=True)]


def as_clip(story: Story, scene: Scene) -> Clip:
    """A scene as what `training.composition` compares with what it sees."""
    return Clip(
        scene.shape, scene.colour, scene.ground, story.radius, story.centre, scene.direction, story.speed,
        scene.place, scene.caption,
    )  # fmt: skip
