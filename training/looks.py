"""Global looks: exact functions of a picture, float32 [H, W, 3] in [0, 1] to the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage import filters

from training.textures import Array, Colour

Floats = npt.NDArray[np.floating[Any]]
Look = Callable[[Floats], Floats]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _grey(image: Floats) -> Floats:
    return np.asarray(image @ _LUMA, np.float32)[..., None]


def _blur(image: Floats, sigma: float) -> Floats:
    return np.asarray(filters.gaussian(image, sigma, channel_axis=-1), np.float32)


def _edges(image: Floats) -> Floats:
    """Strength of the outlines [H, W, 1], about 1 at a full black-white step."""
    return np.asarray(filters.sobel(_blur(_grey(image), 0.7)[..., 0]), np.float32)[..., None] * 2.2


def _saturated(image: Floats, factor: float) -> Floats:
    grey = _grey(image)
    return grey + factor * (image - grey)


def _ramp(value: Floats, stops: list[tuple[float, float, float]]) -> Floats:
    """Colours along a list of stops for values [H, W, 1] in [0, 1]."""
    places = np.linspace(0, 1, len(stops))
    table = np.array(stops)
    return np.stack([np.interp(value[..., 0], places, table[:, c]) for c in range(3)], axis=-1)


def _sepia(image: Floats) -> Floats:
    return np.asarray(_grey(image) * np.array([1.05, 0.82, 0.56]) + np.array([0.08, 0.05, 0.02]))


def _night(image: Floats) -> Floats:
    return np.asarray((0.35 * image + 0.65 * _grey(image)) ** 1.3 * np.array([0.22, 0.30, 0.62]))


def _pencil(image: Floats) -> Floats:
    grey = _grey(image)
    dodge = (grey + 0.04) / (_blur(grey, 3) + 0.04)
    return np.repeat(np.clip(dodge, 0, 1) ** 1.5, 3, axis=2) * 0.96


def _poster(image: Floats) -> Floats:
    """A bold print: each of red, green and blue nearly off or nearly full, which makes eight colours."""
    ink = np.tanh((_saturated(_blur(image, 2), 1.6) - 0.45) / 0.08)
    return np.asarray(0.52 + 0.44 * ink)


def _sunset(image: Floats) -> Floats:
    return np.asarray(image * np.array([0.95, 0.68, 0.42]) + np.array([0.2, 0.07, 0.0]))


def _snow(image: Floats) -> Floats:
    grey = _grey(image)
    cover = np.clip((grey - 0.25) / 0.3, 0, 1)
    cold = _saturated(image, 0.35) * np.array([0.9, 0.97, 1.08])
    return np.asarray(cover * np.array([0.95, 0.97, 1.0]) + (1 - cover) * cold)


def _watercolour(image: Floats) -> Floats:
    soft = _blur(image, 1.6)
    paper = 0.42 + 0.58 * np.clip(_saturated(soft, 1.25), 0, 1)
    return np.asarray(paper * (1 - 0.45 * np.clip(_edges(soft) * 1.5, 0, 1)))


def _neon(image: Floats) -> Floats:
    colour = image / (image.max(axis=2, keepdims=True) + 0.05)
    return np.asarray(np.clip(_edges(image) * 2.2, 0, 1) * (0.25 + 0.75 * colour**1.5) + np.array([0.03, 0.0, 0.07]))


def _fog(image: Floats) -> Floats:
    return 0.32 * _blur(image, 1.0) + 0.68 * np.array([0.80, 0.82, 0.84])


def _underwater(image: Floats) -> Floats:
    return np.asarray((0.4 * image + 0.6 * _grey(image)) * np.array([0.25, 0.70, 0.75]) + np.array([0.0, 0.14, 0.22]))


def _thermal(image: Floats) -> Floats:
    stops = [(0.02, 0.0, 0.2), (0.35, 0.0, 0.6), (0.85, 0.1, 0.3), (1.0, 0.6, 0.0), (1.0, 1.0, 0.8)]
    return _ramp(_grey(image), stops)


def _blueprint(image: Floats) -> Floats:
    line = np.clip(_edges(image) * 2, 0, 1)
    return np.asarray(line * np.array([0.9, 0.95, 1.0]) + (1 - line) * np.array([0.08, 0.22, 0.55]))


LOOKS: dict[str, Look] = {
    "sepia": _sepia,
    "negative": lambda image: 1 - image,
    "night": _night,
    "pencil": _pencil,
    "poster": _poster,
    "sunset": _sunset,
    "snow": _snow,
    "grey": lambda image: np.repeat(_grey(image), 3, axis=2),
    "watercolour": _watercolour,
    "neon": _neon,
    "fog": _fog,
    "underwater": _underwater,
    "thermal": _thermal,
    "blueprint": _blueprint,
}


MORE_LOOKS: dict[str, Look] = {  # which the editor with 16 channels knows too
    "bright": lambda image: 1 - (1 - image) ** 1.8,
    "dark": lambda image: 0.45 * image,
    "vivid": lambda image: _saturated(image, 1.9),
    "blur": lambda image: _blur(image, 3.0),
}


def apply_look(name: str, image: Array) -> Array:
    """The picture [H, W, 3] in [0, 1] with that look, clipped to [0, 1]."""
    look = LOOKS.get(name) or MORE_LOOKS[name]
    return np.clip(look(image), 0, 1).astype(np.float32)


def apply_tint(colour: Colour, image: Array) -> Array:
    """The picture in shades of one colour: its brightness times the colour, a little of its own colours left."""
    tinted = 0.25 * image + 0.9 * _grey(image) * np.asarray(colour, np.float32) + 0.05 * np.asarray(colour)
    return np.clip(tinted, 0, 1).astype(np.float32)
