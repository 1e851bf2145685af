"""The scene of a seed: many objects over a texture or a training photograph, all in motion."""

from dataclasses import replace

import numpy as np

from training import photographs
from training.scenes import Motion, Photo, Scene, Sprite
from training.shapes import SHAPES
from training.textures import Texture, random_colour, random_texture

SCENE_STREAM = 11  # keeps the random numbers of scenes apart from those of edits and training steps
APART = 0.8  # centres are at least this share of the sum of their radii apart: objects overlap, none is buried
TRIES = 20  # to find such a place for an object; where there is none, the scene has one object less


def random_motion(rng: np.random.Generator, speed: float) -> Motion:
    """A motion of up to ``speed`` pixels a frame, with a little spin and zoom."""
    dx, dy = rng.uniform(-speed, speed, 2)
    return Motion((float(dx), float(dy)), float(rng.normal(0, 0.01)), float(np.exp(rng.normal(0, 0.002))))


def random_sprite(rng: np.random.Generator, height: int, width: int) -> Sprite:
    """An object whose radius is 10-22 % of the picture's short side: at least six latents across."""
    centre = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
    radius = float(rng.uniform(0.1, 0.22) * min(height, width))
    shape = str(rng.choice(SHAPES))
    return Sprite(shape, random_texture(rng), centre, radius, float(rng.uniform(0, 6.3)), random_motion(rng, 2.5))


def random_photo(rng: np.random.Generator, names: tuple[str, ...], side: int) -> Photo:
    """A photograph shown whole to four times enlarged beyond the picture of ``side`` pixels."""
    name = str(rng.choice(names))
    long_side = int(side * rng.choice((1.25, 1.6, 2.0)))
    origin = rng.uniform(0, 0.5 * long_side, 2)
    tint = random_colour(rng) if name in photographs.TRAINING_GREY else (1.0, 1.0, 1.0)
    return Photo(name, long_side, (float(origin[0]), float(origin[1])), tint)


def random_background(rng: np.random.Generator, side: int, photos: float) -> Texture | Photo:
    """A photograph with probability ``photos``, else a texture."""
    if rng.random() >= photos:
        return random_texture(rng)
    names = photographs.TRAINING if rng.random() < 0.75 else photographs.TRAINING_GREY
    return random_photo(rng, names, side)


def random_scene(seed: int, height: int = 256, width: int = 256, *, photos: float = 0.5) -> Scene:
    """The scene of that seed: up to 14 objects over a texture or a training photograph, under a moving camera."""
    rng = np.random.default_rng((SCENE_STREAM, seed))
    background = random_background(rng, max(height, width), photos)
    count = int(rng.integers(0 if isinstance(background, Photo) else 4, 15))
    sprites: list[Sprite] = []
    for _ in range(count):
        place_sprite(random_sprite(rng, height, width), sprites, rng, height, width)
    return Scene(height, width, background, tuple(sprites), random_motion(rng, 1.5))


def place_sprite(sprite: Sprite, sprites: list[Sprite], rng: np.random.Generator, height: int, width: int) -> None:
    """Adds the object to ``sprites`` where it buries none of them, if such a place is found."""
    for _ in range(TRIES):
        if not any(_too_near(sprite, other) for other in sprites):
            sprites.append(sprite)
            return
        sprite = replace(sprite, centre=(float(rng.uniform(0, width)), float(rng.uniform(0, height))))


def _too_near(first: Sprite, second: Sprite) -> bool:
    distance = np.hypot(first.centre[0] - second.centre[0], first.centre[1] - second.centre[1])
    return bool(distance < APART * (first.radius + second.radius))
