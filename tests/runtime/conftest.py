"""Small clips for the tests of whole edits."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


def make_frames(count: int = 5, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth moving colours: uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 255, (3, 4, 4))
    rows, columns = np.linspace(0, 2.9, height), np.linspace(0, 2.9, width)
    frames = []
    for i in range(count):
        r, c = ((rows + 0.05 * i) % 3).astype(int), ((columns + 0.08 * i) % 3).astype(int)
        frames.append(low[:, r][:, :, c].transpose(1, 2, 0))
    return np.stack(frames).round().astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray, *, pts: list[int] | None = None, sound: bool = True) -> Path:
    """An H.264 file with a tone beside it; time stamps in milliseconds."""
    pts = list(range(0, 40 * len(frames), 40)) if pts is None else pts
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "4"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        tone = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for picture, stamp in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if tone is not None:
            wave = np.sin(np.arange(int(44.1 * (pts[-1] + 40))) / 20, dtype=np.float32)[None] * 0.2
            for start in range(0, wave.shape[1], 1024):
                block = av.AudioFrame.from_ndarray(wave[:, start : start + 1024].copy(), format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = 44100, start, Fraction(1, 44100)
                container.mux(tone.encode(block))
            container.mux(tone.encode())
    return path


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    return make_frames()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, frames: np.ndarray) -> Path:
    """Five frames with uneven time stamps and a tone."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames, pts=[0, 40, 90, 120, 200])
