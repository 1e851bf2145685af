"""Scenes for the editor with 16 channels: things of all sizes that have colours with names, or no things at all."""

from pathlib import Path

import numpy as np

from training.random_scenes import place_sprite
from training.scenes import Motion, Scene, Sprite
from training.shapes import ALL_SHAPES
from training.surroundings import photograph_surface, random_surface
from training.textures import NAMED_COLOURS, PATTERNS, Colour, Texture, random_texture, shade

STREAM = 41  # of random numbers
COLOURS: dict[str, Colour] = {**NAMED_COLOURS, "black": (0.05, 0.05, 0.06)}
EMPTY = 0.28  # share of scenes that are photographs without things
NAMED = 0.8  # share of scenes in which every thing has a colour with a name
JITTER = 0.05  # of the named colours, in each channel
NEAR = 0.12  # a colour this near to a named one, in RGB, has its name


def named_scene(seed: int, side: int = 256, folder: Path | None = None) -> Scene:
    """The scene of that seed; ``folder`` holds further photographs."""
    rng = np.random.default_rng((STREAM, seed))
    if rng.random() < EMPTY:
        return Scene(side, side, photograph_surface(rng, side, folder), ())
    background = random_surface(rng, side, folder)
    sprites: list[Sprite] = []
    for sprite in _things(rng, side):
        place_sprite(sprite, sprites, rng, side, side)
    return Scene(side, side, background, tuple(sprites))


def _things(rng: np.random.Generator, side: int) -> list[Sprite]:
    """Many small ones, a few large ones, or a hard pair: some of one shape in several colours, or of one colour."""
    named = rng.random() < NAMED
    kind = rng.choice(3, p=(0.35, 0.3, 0.35))
    count, smallest, largest = [((4, 15), 0.05, 0.17), ((1, 5), 0.12, 0.36), ((2, 6), 0.08, 0.26)][kind]
    colours = rng.permutation(list(COLOURS))
    shape, only_shape = str(rng.choice(ALL_SHAPES)), rng.random() < 0.6
    things = []
    for index in range(int(rng.integers(*count))):
        radius = side * float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        colour = str(rng.choice(colours)) if kind < 2 else str(colours[index if only_shape else 0])
        texture = named_texture(rng, colour) if named else random_texture(rng)
        chosen = shape if kind == 2 and only_shape else str(rng.choice(ALL_SHAPES))
        things.append(_thing(rng, chosen, texture, radius, side))
    return things


def _thing(rng: np.random.Generator, shape: str, texture: Texture, radius: float, side: int) -> Sprite:
    x, y = (float(v) for v in rng.uniform(0.04 * side, 0.96 * side, 2))
    return Sprite(shape, texture, (x, y), radius, float(rng.normal(0, 0.5)), Motion())


def named_texture(rng: np.random.Generator, colour: str) -> Texture:
    """A plain or patterned texture in a named colour, a little off it, and a shade of the same."""
    r, g, b = (float(np.clip(c + rng.uniform(-JITTER, JITTER), 0, 1)) for c in COLOURS[colour])
    pattern = "plain" if colour == "black" or rng.random() < 0.45 else str(rng.choice(PATTERNS[1:]))
    dark = shade((r, g, b), float(rng.uniform(0.5, 0.8)))
    return Texture(pattern, float(rng.uniform(6, 16)), float(rng.uniform(0, np.pi)), (r, g, b), dark)


def colour_name(texture: Texture) -> str | None:
    """The name of the texture's colour; None if it has none, or two colours."""
    light, dark = np.asarray(texture.light), np.asarray(texture.dark)
    factor = float(light @ dark / max(float(light @ light), 1e-9))
    if texture.pattern != "plain" and np.abs(dark - factor * light).max() > 0.02:
        return None
    for name, colour in COLOURS.items():
        if float(np.linalg.norm(light - colour)) < NEAR:
            return name
    return None
