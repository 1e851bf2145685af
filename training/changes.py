"""What the instructions do to a scene. Each returns the changed scene and the words its sentence needs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.random_scenes import random_background
from training.scenes import Scene, Sprite
from training.shapes import SHAPES, UPRIGHT
from training.textures import NAMED_COLOURS, PATTERNS, Colour, Texture, random_colour, random_texture, shade

Changed = tuple[Scene, dict[str, str]]


def plural(shape: str) -> str:
    """More than one of that shape."""
    return shape + ("es" if shape.endswith("s") else "s")


def keep(scene: Scene, rng: np.random.Generator) -> Changed:
    return scene, {}


def _present_shape(scene: Scene, rng: np.random.Generator) -> str:
    """A shape that occurs in the scene (any, if it is empty)."""
    shapes = sorted({sprite.shape for sprite in scene.sprites}) or list(SHAPES)
    return str(rng.choice(shapes))


def _other(rng: np.random.Generator, names: list[str], but: str) -> str:
    return str(rng.choice([name for name in names if name != but]))


def _each(scene: Scene, shape: str, change: Callable[[Sprite], Sprite]) -> Scene:
    """The scene with ``change`` applied to every object of that shape."""
    sprites = tuple(change(s) if s.shape == shape else s for s in scene.sprites)
    return replace(scene, sprites=sprites)


def _named(texture: Texture, colour: str) -> Texture:
    """The same pattern in a named colour and its shade."""
    light = NAMED_COLOURS[colour]
    return replace(texture, light=light, dark=shade(light))


def recolour(scene: Scene, rng: np.random.Generator) -> Changed:
    shape, colour = _present_shape(scene, rng), str(rng.choice(list(NAMED_COLOURS)))
    edited = _each(scene, shape, lambda s: replace(s, texture=_named(s.texture, colour)))
    return edited, {"shapes": plural(shape), "colour": colour}


def reshape(scene: Scene, rng: np.random.Generator) -> Changed:
    shape = _present_shape(scene, rng)
    other = _other(rng, list(SHAPES), shape)
    edited = _each(scene, shape, lambda s: reshaped(s, other))
    return edited, {"shapes": plural(shape), "others": plural(other)}


def reshaped(sprite: Sprite, shape: str) -> Sprite:
    """Another shape of the same size, upright: a circle has no angle that could be kept. The pattern stays in place."""
    turned = sprite.texture.angle + sprite.angle - UPRIGHT[shape]
    return replace(sprite, shape=shape, angle=UPRIGHT[shape], texture=replace(sprite.texture, angle=turned))


def flatten_background(scene: Scene, rng: np.random.Generator) -> Changed:
    colour = str(rng.choice(list(NAMED_COLOURS)))
    light = NAMED_COLOURS[colour]
    return replace(scene, background=Texture("plain", 10, 0, light, shade(light))), {"colour": colour}


def blacken(scene: Scene, rng: np.random.Generator) -> Changed:
    shape = _present_shape(scene, rng)
    black = Texture("plain", 10, 0, (0.04, 0.04, 0.05), (0.0, 0.0, 0.0))
    return _each(scene, shape, lambda s: replace(s, texture=black)), {"shapes": plural(shape)}


def _repaint(texture: Texture, palette: dict[Colour, Colour], rng: np.random.Generator) -> Texture:
    """Every colour becomes another one, the same one wherever it occurs."""
    light = palette.setdefault(texture.light, random_colour(rng))
    return replace(texture, light=light, dark=palette.setdefault(texture.dark, random_colour(rng)))


def repaint_all(scene: Scene, rng: np.random.Generator) -> Changed:
    palette: dict[Colour, Colour] = {}
    sprites = tuple(replace(s, texture=_repaint(s.texture, palette, rng)) for s in scene.sprites)
    if isinstance(scene.background, Texture):
        background = _repaint(scene.background, palette, rng)
        return replace(scene, sprites=sprites, background=background), {}
    return replace(scene, sprites=sprites, background=replace(scene.background, tint=random_colour(rng))), {}


def retexture(scene: Scene, rng: np.random.Generator) -> Changed:
    shape, texture = _present_shape(scene, rng), random_texture(rng, plain=0)
    return _each(scene, shape, lambda s: replace(s, texture=texture)), {"shapes": plural(shape)}


def replace_background(scene: Scene, rng: np.random.Generator) -> Changed:
    background = random_background(rng, max(scene.height, scene.width), photos=0.3)
    return replace(scene, background=background), {}


def repattern_all(scene: Scene, rng: np.random.Generator) -> Changed:
    """Everything keeps its colours but gets one new pattern."""
    pattern, period = str(rng.choice(PATTERNS[1:])), float(rng.uniform(6, 16))
    angle = float(rng.uniform(0, np.pi))

    def change(texture: Texture) -> Texture:
        return replace(texture, pattern=pattern, period=period, angle=angle)

    sprites = tuple(replace(s, texture=change(s.texture)) for s in scene.sprites)
    if isinstance(scene.background, Texture):
        return replace(scene, sprites=sprites, background=change(scene.background)), {}
    return replace(scene, sprites=sprites), {}
