"""Two-coloured patterns with a known period, evaluated at any point of the plane."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Colour = tuple[float, float, float]

PATTERNS = ("plain", "stripes", "checks", "dots", "waves", "blobs")
NAMED_COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.95, 0.86, 0.18),
    "green": (0.15, 0.65, 0.22),
    "blue": (0.13, 0.28, 0.85),
    "purple": (0.52, 0.18, 0.70),
    "pink": (0.96, 0.50, 0.72),
    "white": (0.96, 0.96, 0.96),
}


@dataclass(frozen=True, slots=True)
class Texture:
    """A pattern: ``period`` in pixels (6-16), ``angle`` in radians, colours as RGB in [0, 1]."""

    pattern: str
    period: float
    angle: float
    light: Colour
    dark: Colour

    def __call__(self, x: Array, y: Array) -> Array:
        """Colours [..., 3] at the points (x, y), in pixels of the textured surface."""
        weight = self._weight(x, y)[..., None]
        light, dark = (np.asarray(c, np.float32) for c in (self.light, self.dark))
        return (weight * light + (1 - weight) * dark).astype(np.float32)

    def _weight(self, x: Array, y: Array) -> Array:
        """1 where the light colour shows, 0 where the dark one does, smooth between."""
        if self.pattern == "plain":
            return np.ones_like(x)
        c, s = np.cos(self.angle), np.sin(self.angle)
        scale = 2 * np.pi / self.period
        u, v = scale * (c * x + s * y), scale * (c * y - s * x)
        return _soft_step(_WAVES[self.pattern](u, v))


def _soft_step(wave: Array) -> Array:
    """A wave in [-1, 1] becomes nearly two-valued, but without aliasing edges."""
    return np.asarray(0.5 + 0.5 * np.tanh(2.5 * wave), np.float32)


_WAVES = {
    "stripes": lambda u, v: np.sin(u),
    "checks": lambda u, v: np.sin(u) * np.sin(v),
    "dots": lambda u, v: np.cos(u) + np.cos(v) - 0.6,
    "waves": lambda u, v: np.sin(u + 1.2 * np.sin(0.5 * v)),
    "blobs": lambda u, v: 0.6 * (np.sin(u) + np.sin(0.62 * u + 0.79 * v) + np.sin(0.45 * u - 0.9 * v)),
}


def random_colour(rng: np.random.Generator) -> Colour:
    """A colour of random hue; every fifth is nearly grey."""
    saturation = rng.uniform(0, 0.2) if rng.random() < 0.2 else rng.uniform(0.4, 1)
    return hsv_colour(rng.random(), saturation, rng.uniform(0.35, 1))


def hsv_colour(hue: float, saturation: float, value: float) -> Colour:
    """Hue, saturation and value in [0, 1] as RGB."""
    ramps = [abs((hue * 6 - shift) % 6 - 3) - 1 for shift in (0, 2, 4)]
    r, g, b = (value * (1 - saturation * (1 - min(max(ramp, 0.0), 1.0))) for ramp in ramps)
    return r, g, b


def shade(colour: Colour, factor: float = 0.45) -> Colour:
    """The same colour, darker."""
    r, g, b = (factor * c for c in colour)
    return r, g, b


def random_texture(rng: np.random.Generator, *, plain: float = 0.25) -> Texture:
    """A texture of 6-16 pixels; with probability ``plain`` a flat colour."""
    pattern = "plain" if rng.random() < plain else str(rng.choice(PATTERNS[1:]))
    light = random_colour(rng)
    dark = shade(light, rng.uniform(0.3, 0.7)) if rng.random() < 0.6 else random_colour(rng)
    return Texture(pattern, float(rng.uniform(6, 16)), float(rng.uniform(0, np.pi)), light, dark)
