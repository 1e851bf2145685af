"""Render the demo's clip: a camera moves over a photograph, things fly past, a tone sounds. H.264 and AAC.

    python examples/make_clip.py OUT.mp4 [--frames 48] [--width 256] [--height 192]

The photograph is one of those that ship inside scikit-image (chelsea, the cat; public domain, CC0).
"""

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FPS = 24
RATE_HZ = 44100
TONE_HZ = 330.0
SMPTE_170M, VIDEO_RANGE = 6, 1  # of H.273 and of FFmpeg


def main() -> None:
    """Read the options and write the clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=192)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_clip(options.out, options.frames, options.width, options.height)
    print(options.out)


def write_clip(out: Path, num_frames: int, width: int, height: int) -> None:
    """Encode the rendered frames and the tone into one file."""
    with av.open(str(out), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "12"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        # Say what the conversion from RGB does: BT.601 (SMPTE 170M), video range.
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = SMPTE_170M
        context.color_range = VIDEO_RANGE
        sound = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for picture in render(num_frames, width, height):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for block in tone(num_frames / FPS):
            container.mux(sound.encode(block))
        container.mux(video.encode())
        container.mux(sound.encode())


def render(num_frames: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 [height, width, 3]: a slow pan and zoom over the photograph, with a ball and a box passing."""
    from skimage.data import chelsea

    photograph = chelsea().astype(np.float32)
    for i in range(num_frames):
        phase = i / max(num_frames - 1, 1)
        picture = _view(photograph, phase, width, height)
        _draw(picture, _ball(width, height, phase), (222, 60, 48))
        _draw(picture, _box(width, height, phase), (40, 90, 200))
        yield picture.round().clip(0, 255).astype(np.uint8)


def tone(seconds: float) -> Iterator[av.AudioFrame]:
    """A steady tone in blocks of 1024 samples, so that a lost or shifted block can be heard."""
    samples = np.arange(int(seconds * RATE_HZ))
    wave = (0.2 * np.sin(2 * np.pi * TONE_HZ * samples / RATE_HZ)).astype(np.float32)
    for start in range(0, len(wave), 1024):
        block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
        yield block


def _view(photograph: NDArray[np.float32], phase: float, width: int, height: int) -> NDArray[np.float32]:
    """What the camera sees, float32 [height, width, 3]: bilinear samples of a window that moves and shrinks."""
    full_height, full_width = photograph.shape[:2]
    scale = min(full_width / width, full_height / height) * (0.95 - 0.2 * phase)
    x0 = (full_width - 1 - scale * (width - 1)) * (0.1 + 0.8 * phase)
    y0 = (full_height - 1 - scale * (height - 1)) * (0.5 + 0.3 * np.sin(2 * np.pi * phase))
    x, y = x0 + scale * np.arange(width), y0 + scale * np.arange(height)
    left, top = x.astype(int).clip(0, full_width - 2), y.astype(int).clip(0, full_height - 2)
    fx, fy = (x - left)[None, :, None], (y - top)[:, None, None]
    rows = photograph[top] * (1 - fy) + photograph[top + 1] * fy
    return (rows[:, left] * (1 - fx) + rows[:, left + 1] * fx).astype(np.float32)


def _ball(width: int, height: int, phase: float) -> NDArray[np.float32]:
    x, y = width * (-0.1 + 1.2 * phase), height * (0.75 - 0.9 * phase * (1 - phase))
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(columns - x, rows - y)
    return np.clip(height / 9 - distance, 0, 1).astype(np.float32)


def _box(width: int, height: int, phase: float) -> NDArray[np.float32]:
    angle, size = 2.0 * phase, height / 10
    x, y = width * (1.05 - 0.9 * phase), height * (0.2 + 0.1 * phase)
    rows, columns = np.mgrid[:height, :width]
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    return np.clip(size - np.maximum(np.abs(u), np.abs(v)), 0, 1).astype(np.float32)


def _draw(picture: NDArray[np.float32], mask: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
    picture += (np.asarray(colour, np.float32) - picture) * mask[..., None]


if __name__ == "__main__":
    main()
