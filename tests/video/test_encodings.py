"""Every codec that can be asked for: what is written is read back, and without loss where that is asked."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.video import VideoWriter, probe, read_frames
from tests.video.conftest import picture

FRAMES = np.stack([picture(i, 64, 48) for i in range(5)])


def write(path: Path, frames: np.ndarray = FRAMES, **how: object) -> tuple[np.ndarray, VideoWriter]:
    """What comes back of frames that were written so."""
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], fps=Fraction(25), **how) as writer:
        writer.write(frames)
    info = probe(path)
    assert info.num_frames == len(frames)
    assert info.duration_s == pytest.approx(0.2, abs=2e-3)
    return np.stack(list(read_frames(info))), writer


def samples(path: Path) -> tuple[str, str | None, str]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt, stream.codec_context.codec_tag


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("h264", "o.mp4"),
        ("h264", "o.avi"),
        ("hevc", "o.mkv"),
        ("hevc", "o.mp4"),
        ("vp9", "o.webm"),
        ("ffv1", "o.mkv"),
        ("ffv1", "o.avi"),
    ],
)  # fmt: skip
def test_without_loss_every_bit_comes_back(tmp_path: Path, codec: str, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 47, 63, 3), np.uint8)
    back, writer = write(tmp_path / name, noise, codec=codec, lossless=True)
    assert np.array_equal(back, noise)
    assert not writer.notes, "nothing of it is worth a note"


@pytest.mark.parametrize(
    ("codec", "name", "bits", "expected"),
    [
        ("h264", "o.mp4", 10, ("h264", "yuv420p10le", "avc1")),
        ("hevc", "o.mov", 8, ("hevc", "yuv420p", "hvc1")),
        ("hevc", "o.mp4", 10, ("hevc", "yuv420p10le", "hvc1")),
        ("hevc", "o.ts", 8, ("hevc", "yuv420p", None)),
        ("av1", "o.mp4", 8, ("av1", "yuv420p", "av01")),
        ("av1", "o.webm", 10, ("av1", "yuv420p10le", None)),
        ("vp9", "o.mp4", 8, ("vp9", "yuv420p", "vp09")),
        ("prores", "o.mov", 8, ("prores", "yuv422p10le", "apch")),
        ("ffv1", "o.mkv", 10, ("ffv1", "gbrp10le", None)),
    ],
)
def test_every_codec_and_depth(tmp_path: Path, codec: str, name: str, bits: int, expected: tuple) -> None:
    back, _ = write(tmp_path / name, codec=codec, bit_depth=bits)
    found = samples(tmp_path / name)
    assert found[:2] == expected[:2]
    assert expected[2] is None or found[2] == expected[2]
    off = np.abs(back.astype(int) - FRAMES)
    assert off[:, 26:].mean() < 3, "plain colours"
    assert off.mean() < 20


@pytest.mark.parametrize(("codec", "name"), [("hevc", "o.mp4"), ("av1", "o.mkv"), ("prores", "o.mov"), (None, "o.gif")])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, codec: str | None, name: str) -> None:
    once, again = (tmp_path / f"{i}{name}" for i in range(2))
    for path in (once, again):
        write(path, codec=codec)
    assert once.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("name", ["o.gif", "o.webp"])
def test_animated_pictures(make, tmp_path: Path, name: str) -> None:
    """Sound that they cannot hold is told."""
    source = probe(make("s.mp4", audio=("aac",)))
    frames = np.stack(list(read_frames(source)))
    with VideoWriter(tmp_path / name, width=96, height=64, source=source) as writer:
        writer.write(frames)
    info = probe(tmp_path / name)
    back = np.stack(list(read_frames(info)))
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames)[:, 40:].mean() < 6
    assert any("holds no sound" in note for note in writer.notes)


def test_hevc_keeps_uneven_time_stamps(make, copy_video, seconds, tmp_path: Path) -> None:
    source = probe(make("s.mp4", pts=(0, 700, 1000, 1001, 4000, 4100, 4200, 9000)))
    with VideoWriter(tmp_path / "o.mp4", width=96, height=64, source=source, codec="hevc") as writer:
        for frame in read_frames(source):
            writer.write(frame)
    assert seconds(probe(tmp_path / "o.mp4")) == seconds(source)


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        ("o.webm", {"codec": "h264"}, "codec = 'h264' is not held by WebM; choose av1 or vp9"),
        ("o.mp4", {"codec": "prores"}, "is not held by MP4"),
        ("o.gif", {"codec": "vp9"}, "is not held by GIF; leave it out"),
        ("o.mp4", {"codec": "divx"}, "is not known; choose one of h264"),
        ("o.mp4", {"codec": "av1", "lossless": True}, "not possible with av1; choose one of h264, hevc, vp9, ffv1"),
        ("o.mp4", {"lossless": True, "bit_depth": 10}, "bit_depth = 10 does not go with lossless"),
        ("o.webm", {"bit_depth": 10}, "bit_depth = 10 is not possible with vp9"),
        ("o.mp4", {"pixel_format": "yuv999p"}, "pixel_format = yuv999p is not written by libx264; choose"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path: Path, name: str, how: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        VideoWriter(tmp_path / name, width=64, height=48, fps=25, **how)
    assert not list(tmp_path.iterdir())


def test_odd_sides(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="odd side, as 63×48"):
        VideoWriter(tmp_path / "o.mp4", width=63, height=48, fps=25, codec="av1")
    write(tmp_path / "o.mov", FRAMES[:, :47, :63], codec="prores")
    assert samples(tmp_path / "o.mov")[2] == "ap4h"


def test_samples_by_name(tmp_path: Path) -> None:
    write(tmp_path / "o.mp4", pixel_format="yuv444p")
    assert samples(tmp_path / "o.mp4")[1] == "yuv444p"
