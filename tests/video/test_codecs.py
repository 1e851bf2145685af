"""Every codec and container that is read gives the right pictures, and a sentence where its bytes are random."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video import probe, read_frames
from tests.video import write_matrix
from tests.video.conftest import RED, picture

TICKS = {"rate": Fraction(25), "time_base": Fraction(1, 25), "pts": tuple(range(12))}
MS = {"rate": Fraction(25), "time_base": Fraction(1, 1000), "pts": tuple(range(0, 480, 40))}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vp8.webm": ("libvpx", "vp8", {**MS, "options": {"b": "4000000", "cpu-used": "8", "deadline": "realtime"}}),
    "mpeg2.mpg": ("mpeg2video", "mpeg2", TICKS),
    "mpeg2.ts": ("mpeg2video", "mpeg2", TICKS),
    "mpeg1.mpg": ("mpeg1video", "mpeg1", TICKS),
    "h263.3gp": ("h263", "h263", {**TICKS, "size": (176, 144)}),
    "flv1.flv": ("flv", "flv1", TICKS),
    "h264.flv": ("libx264", "h264", TICKS),
    "wmv1.wmv": ("wmv1", "wmv1", TICKS),
    "wmv2.wmv": ("wmv2", "wmv2", TICKS),
    "msmpeg4v2.avi": ("msmpeg4v2", "msmpeg4v2", TICKS),
    "msmpeg4.avi": ("msmpeg4", "msmpeg4v3", TICKS),
    "dv.dv": ("dvvideo", "dv", {**TICKS, "size": (720, 576)}),
    "dv.avi": ("dvvideo", "dv", {**TICKS, "size": (720, 576)}),
    "dv.mov": ("dvvideo", "dv", {**TICKS, "size": (720, 576)}),
    "dnxhd.mov": (
        "dnxhd",
        "dnxhd",
        {**TICKS, "size": (256, 128), "pix_fmt": "yuv422p", "matrix": 1, "options": {"profile": "dnxhr_sq"}},
    ),
    "ffv1.mkv": ("ffv1", "ffv1", MS),
    "huffyuv.avi": ("huffyuv", "huffyuv", {**TICKS, "pix_fmt": "yuv422p"}),
    "ffvhuff.avi": ("ffvhuff", "ffvhuff", TICKS),
    "raw.avi": ("rawvideo", "raw", TICKS),
    "raw-bgr.avi": ("rawvideo", "raw", {**TICKS, "pix_fmt": "bgr24"}),
    "raw-422.mov": ("rawvideo", "raw", {**TICKS, "pix_fmt": "uyvy422"}),
    "raw.y4m": ("wrapped_avframe", "raw", TICKS),
    "v210.mov": ("v210", "v210", {**TICKS, "pix_fmt": "yuv422p10le"}),
    "qtrle.mov": ("qtrle", "qtrle", {**TICKS, "pix_fmt": "rgb24"}),
    "png.mov": ("png", "png", {**TICKS, "pix_fmt": "rgb24"}),
    "web.gif": ("gif", "gif", {**TICKS, "pix_fmt": "rgb8"}),
    "web.apng": ("apng", "apng", {**TICKS, "pix_fmt": "rgb24"}),
}
"""File -> FFmpeg's encoder, our name of the codec, and how it is made."""


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read(make, name: str) -> None:
    encoder, codec, how = KINDS[name]
    info = probe(make(name, codec=encoder, **how))
    width, height = how.get("size", (96, 64))
    assert (info.codec, info.num_frames, info.width, info.height) == (codec, 12, width, height)
    assert (info.frame_rate, info.variable_frame_rate, info.start_s) == (25, False, 0)
    assert info.duration_s == pytest.approx(0.48, abs=1e-4)
    frames = list(read_frames(info))
    off = 24 if name == "web.gif" else 5  # the palette of rgb8 has 4 steps of blue
    for index, frame in enumerate(frames):
        assert np.abs(frame[height * 3 // 4 :].reshape(-1, 3).mean(0) - RED).max() < off
        bar = picture(index, width, height)[height // 4 : height // 2].astype(int)
        assert np.abs(frame[height // 4 : height // 2] - bar).mean() < 20, f"frame {index} shows another one"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_random_bytes_end_in_a_video_or_in_a_sentence(make, tmp_path: Path, name: str) -> None:
    encoder, _, how = KINDS[name]
    data, rng = make(name, codec=encoder, **how).read_bytes(), np.random.default_rng(0)
    for turn in range(2):
        bad = np.frombuffer(data, np.uint8).copy()
        first = 0 if turn == 1 else len(bad) // 20  # the last one breaks the headers too
        where = rng.integers(first, len(bad), 30)
        bad[where] = rng.integers(0, 256, 30)
        path = tmp_path / f"{turn}-{name}"
        path.write_bytes(bad.tobytes())
        _is_a_video_or_a_sentence(path)


def _is_a_video_or_a_sentence(path: Path) -> None:
    told = str(path)
    try:
        info = probe(path)
        assert len(list(read_frames(info))) == info.num_frames
    except (InputError, MachineError) as error:
        told = str(error)
    assert str(path) in told
    assert "\n" not in told
    assert "died" not in told


def animation(path: Path, durations: tuple[int, ...] = (40, 90, 5), **how: Any) -> Path:
    pictures = [Image.fromarray(picture(index, 96, 64)) for index in range(len(durations))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, lossless=True, **how)
    return path


@pytest.mark.parametrize("part", [0.4, 0.9])
def test_a_webp_that_is_cut_off_or_broken_is_refused(tmp_path: Path, part: float) -> None:
    data = bytearray(animation(tmp_path / "a.webp").read_bytes())
    (tmp_path / "cut.webp").write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match="cut off"):
        probe(tmp_path / "cut.webp")
    at = int(part * len(data))
    data[at : at + 60] = bytes(60)
    (tmp_path / "bad.webp").write_bytes(data)
    _is_a_video_or_a_sentence(tmp_path / "bad.webp")


def test_a_webp_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    data = bytearray(animation(tmp_path / "a.webp").read_bytes())
    data[24:30] = struct.pack("<I", 16382)[:3] * 2
    (tmp_path / "bomb.webp").write_bytes(data)
    with pytest.raises(InputError, match=r"16383×16383 pixels, more than max_pixels"):
        probe(tmp_path / "bomb.webp")


@pytest.mark.parametrize("codec", ["magicyuv", "cinepak"])
def test_what_is_not_decoded_names_the_command_that_converts_it(make, codec: str) -> None:
    pix_fmt = {"magicyuv": "gbrp", "cinepak": "rgb24"}[codec]
    clip = make(f"my {codec}.avi", codec=codec, pix_fmt=pix_fmt, **TICKS | {"pts": (0, 1)})
    with pytest.raises(InputError, match=rf"is coded in {codec}, .*: ffmpeg -i '{clip.name}' -c:v libx264 .*\.mkv'\.$"):
        probe(clip)


@pytest.mark.parametrize(("magic", "title"), [(b"OggS", "an Ogg file"), (b".RMF", "a RealMedia file")])
def test_a_known_container_that_is_not_read_names_the_command_too(tmp_path: Path, magic: bytes, title: str) -> None:
    (tmp_path / "a.video").write_bytes(magic + bytes(500))
    with pytest.raises(InputError, match=rf"is {title}, which is not read; convert it first: ffmpeg -i a\.video"):
        probe(tmp_path / "a.video")


def documented(name: str) -> str:
    """One of the tables of docs/files.md."""
    return (
        write_matrix.DOCS.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")[2].partition("\n<!-- end -->")[0]
    )


def test_the_page_about_files_says_what_is_read(tmp_path: Path) -> None:
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in documented("read").splitlines()]
    assert {row[0] for row in rows} == set(write_matrix.CODECS)
    told = {(row[0], container): cell for row in rows for container, cell in zip(head, row, strict=True)}
    for name, (_, codec, _) in KINDS.items():
        container = name.rpartition(".")[2]
        if container != "mov" or codec != "raw":  # as 4:2:2 only
            assert told[codec, container] == "yes", name
    for codec, container in (("h264", "mp4"), ("mpeg4", "mkv"), ("mjpeg", "mov"), ("h264", "dv"), ("raw", "mov")):
        assert write_matrix.is_read(codec, container, tmp_path) == told[codec, container]


@pytest.mark.slow
def test_the_page_about_files_says_what_outputs_keep(tmp_path: Path) -> None:
    assert write_matrix.features(tmp_path) == documented("features")
