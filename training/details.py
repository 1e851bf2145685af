"""Pictures full of fine detail, for the autoencoder: writing, leaves, hair, and grain, drawn with Pillow.

Each is a function of its random numbers; it draws at twice the size, which the antialiased reduction makes smooth.
"""

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.photo_files import Bytes
from training.textures import Colour, random_colour, shade

OVERSAMPLED = 2
WORD_LETTERS = string.ascii_lowercase * 4 + string.ascii_uppercase + string.digits
Point = tuple[float, float]


def writing(rng: np.random.Generator, size: int) -> Bytes:
    """Lines of made-up words in several heights of letters, dark on light or light on dark."""
    ground, ink = _contrast(rng)
    image, pen = _canvas(size, ground)
    top = float(rng.uniform(-10, 4))
    while top < image.height:
        height = float(rng.uniform(9, 40)) * OVERSAMPLED
        words = " ".join(_word(rng) for _ in range(14))
        pen.text((float(rng.uniform(-60, 10)), top), words, fill=_paint(ink), font=ImageFont.load_default(height))
        top += height * float(rng.uniform(1.05, 1.6))
        if rng.random() < 0.2:
            ink = random_colour(rng)
    return _finished(image, rng)


def foliage(rng: np.random.Generator, size: int) -> Bytes:
    """Pointed leaves over each other, the later the lighter, each with a midrib."""
    leaf = random_colour(rng) if rng.random() < 0.3 else (0.25, 0.6, 0.2)
    image, pen = _canvas(size, shade(leaf, 0.25))
    count, length = int(rng.integers(250, 900)), float(rng.uniform(8, 26)) * OVERSAMPLED
    for index in range(count):
        light = 0.35 + 0.65 * index / count
        colour = tuple(min(1.0, light * c * float(rng.uniform(0.7, 1.3))) for c in leaf)
        x, y = (float(v) for v in rng.uniform(0, image.width, 2))
        _leaf(pen, (x, y), length * float(rng.uniform(0.6, 1.4)), float(rng.uniform(0, 6.3)), colour)
    return _finished(image, rng)


def _leaf(pen: ImageDraw.ImageDraw, at: Point, length: float, angle: float, colour: tuple[float, ...]) -> None:
    along = np.array([np.cos(angle), np.sin(angle)]) * length
    across = np.array([-along[1], along[0]]) * 0.22
    base, tip = np.array(at), np.array(at) + along
    outline = [base, base + 0.35 * along + across, base + 0.7 * along + 0.6 * across, tip]
    outline += [base + 0.7 * along - 0.6 * across, base + 0.35 * along - across]
    pen.polygon([(float(x), float(y)) for x, y in outline], fill=_paint(colour))
    pen.line([*map(float, base), *map(float, tip)], fill=_paint([0.75 * c for c in colour]), width=1)


def hair(rng: np.random.Generator, size: int) -> Bytes:
    """Thin curved strands that follow one flow, of many shades of one colour."""
    base = random_colour(rng)
    image, pen = _canvas(size, shade(base, 0.4))
    waves = rng.uniform(-1, 1, 4) * np.array([1.2, 0.8, 0.02, 0.02]) / OVERSAMPLED**0.5
    lean, strands = float(rng.uniform(0, 6.3)), int(rng.integers(700, 2200))
    for _ in range(strands):
        at, points = rng.uniform(-20, image.width + 20, 2), []
        turn, step = float(rng.normal(0, 0.15)), float(rng.uniform(6, 14))
        for _ in range(int(rng.integers(5, 14))):
            points.append((float(at[0]), float(at[1])))
            flow = lean + turn + waves[0] * np.sin(waves[2] * at[0]) + waves[1] * np.cos(waves[3] * at[1])
            at = at + step * np.array([np.cos(flow), np.sin(flow)])
        tone = float(rng.uniform(0.45, 1.25))
        pen.line(points, fill=_paint([tone * c for c in base]), width=int(rng.integers(1, 4)), joint="curve")
    return _finished(image, rng)


def grain(rng: np.random.Generator, size: int) -> Bytes:
    """Noise whose strength falls with frequency as in photographs, as light and shade on two colours."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    spectrum = frequency ** -rng.uniform(0.9, 1.9)
    layers = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * rng.random(spectrum.shape))
        field = np.fft.irfft2(spectrum * phases, (size, size))
        layers.append(field / field.std())
    common = float(rng.uniform(0.6, 1.0))
    field_HWC = np.stack([common * layers[0] + (1 - common) * layer for layer in layers], axis=-1)
    first, second = np.array(random_colour(rng)), np.array(random_colour(rng))
    weight = 1 / (1 + np.exp(-1.5 * field_HWC))
    return np.asarray(np.round(255 * np.clip(weight * first + (1 - weight) * second, 0, 1)), np.uint8)


DETAILS = (writing, foliage, hair, grain)


def _contrast(rng: np.random.Generator) -> tuple[Colour, Colour]:
    ground = random_colour(rng)
    dark = sum(ground) / 3 < 0.5
    return ground, (0.95, 0.95, 0.92) if dark else shade(random_colour(rng), 0.3)


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(WORD_LETTERS), int(rng.integers(1, 10))))


def _canvas(size: int, ground: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (size * OVERSAMPLED,) * 2, _paint(ground))
    return image, ImageDraw.Draw(image)


def _paint(colour: tuple[float, ...] | list[float]) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, round(255 * c))) for c in colour)
    return r, g, b


def _finished(image: Image.Image, rng: np.random.Generator) -> Bytes:
    """Turned a little, cut to its middle and reduced."""
    size = image.width // OVERSAMPLED
    turned = image.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    return np.asarray(turned.resize((size, size), Image.Resampling.BOX))
