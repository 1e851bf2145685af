"""What the things of a scene lie on: photographs, textures, gradients, skies, and drawn detail."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.detailed_pictures import photograph_part
from training.details import DETAILS
from training.pictures import to_bytes
from training.scenes import Still
from training.textures import NAMED_COLOURS, Colour, Texture, random_colour, random_texture, shade

Surface = Texture | Still
SHARES = {"photograph": 0.4, "texture": 0.2, "gradient": 0.1, "sky": 0.08, "detail": 0.14, "plain": 0.08}
SKIES: dict[str, tuple[Colour, Colour]] = {  # colours at the top and at the bottom
    "blue sky": ((0.22, 0.48, 0.86), (0.80, 0.90, 0.97)),
    "evening sky": ((0.28, 0.20, 0.48), (0.97, 0.58, 0.28)),
    "night sky": ((0.01, 0.02, 0.08), (0.09, 0.12, 0.28)),
}


def random_surface(rng: np.random.Generator, side: int, folder: Path | None) -> Surface:
    """A surrounding of a random kind; ``folder`` holds further photographs."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "photograph":
        return photograph_surface(rng, side, folder)
    return _SURFACES[kind](rng, side)


def photograph_surface(rng: np.random.Generator, side: int, folder: Path | None) -> Still:
    """A square part of a training photograph, mirrored at random."""
    part = photograph_part(rng, side, folder)
    return Still(part[:, ::-1] if rng.random() < 0.5 else part)


def gradient(first: Colour, second: Colour, side: int, angle: float = np.pi / 2) -> np.ndarray:
    """From one colour to the other along ``angle`` (pi / 2: downwards), float32 [side, side, 3]."""
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    along = np.cos(angle) * x + np.sin(angle) * y
    weight = ((along - along.min()) / (along.max() - along.min()))[..., None]
    return np.asarray((1 - weight) * np.asarray(first) + weight * np.asarray(second), np.float32)


def sky(name: str, side: int) -> Still:
    """The sky of that name without a cloud: always the same."""
    return Still(to_bytes(gradient(*SKIES[name], side)))


def _gradient(rng: np.random.Generator, side: int) -> Still:
    first, second = random_colour(rng), random_colour(rng)
    return Still(to_bytes(gradient(first, second, side, float(rng.uniform(0, 2 * np.pi)))))


def _sky(rng: np.random.Generator, side: int) -> Still:
    """A clear or a clouded sky, often over a plain ground."""
    top, bottom = SKIES[str(rng.choice(list(SKIES)))]
    image = gradient(top, bottom, side)
    if rng.random() < 0.6:
        cover = np.clip(_clouds(rng, side) - rng.uniform(0, 1), 0, 1)[..., None]
        image = cover * np.float32(0.95) + (1 - cover) * image
    if rng.random() < 0.5:
        horizon, ground = int(side * rng.uniform(0.55, 0.85)), random_colour(rng)
        image[horizon:] = gradient(ground, shade(ground, 0.6), side)[: side - horizon]
    return Still(to_bytes(image.astype(np.float32)))


def _clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth noise of unit variance [side, side], wider than high."""
    frequency = np.hypot(2.5 * np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    field = np.fft.irfft2(frequency**-1.9 * np.exp(2j * np.pi * rng.random(frequency.shape)), (side, side))
    return np.asarray(field / field.std())


def _detail(rng: np.random.Generator, side: int) -> Still:
    return Still(DETAILS[int(rng.integers(len(DETAILS)))](rng, side))


def _plain(rng: np.random.Generator, side: int) -> Texture:
    colour = NAMED_COLOURS[str(rng.choice(list(NAMED_COLOURS)))] if rng.random() < 0.5 else random_colour(rng)
    return Texture("plain", 10, 0, colour, shade(colour))


_SURFACES: dict[str, Callable[[np.random.Generator, int], Surface]] = {
    "texture": lambda rng, side: random_texture(rng),
    "gradient": _gradient,
    "sky": _sky,
    "detail": _detail,
    "plain": _plain,
}
