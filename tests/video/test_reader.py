"""What reading finds: counts, times, colours, rotation; every trap of the containers has its own test."""

import json
import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fairy.kernels.errors import Cancelled, InputError, MachineError
from fairy.runtime.video import probe, read_frames

RED = np.array((200, 60, 40))


def lower_half(frame: np.ndarray) -> np.ndarray:
    """The mean colour of the plain red half, away from the noise."""
    return frame[frame.shape[0] * 3 // 4 :, 4:-4].reshape(-1, 3).mean(0)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("a.mkv", {"time_base": Fraction(1, 1000), "pts": tuple(range(0, 24 * 33, 33))}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
        ("a.mkv", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("a.mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}}),
        ("a.avi", {"codec": "mpeg4", "time_base": Fraction(1, 30), "pts": tuple(range(24))}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "time_base": Fraction(1, 30), "pts": tuple(range(24))}),
        ("a.ts", {}),
    ],
    ids=["h264-mp4", "prores-mov", "h264-mkv", "vp9-webm", "av1-mkv", "hevc-mp4", "mpeg4-avi", "mjpeg-avi", "h264-ts"],
)
def test_every_codec_and_container_is_read(make, name, how):
    info = probe(make(name, **how))
    assert (info.num_frames, info.width, info.height) == (24, 96, 64)
    frames = list(read_frames(info))
    assert len(frames) == 24
    assert all(frame.shape == (64, 96, 3) and frame.dtype == np.uint8 for frame in frames)
    assert np.abs(lower_half(frames[12]) - RED).max() < 4
    json.dumps(info.to_json())


def test_the_number_of_frames_is_counted_not_believed(make, tmp_path):
    """An edit list hides 15 of 60 frames: `stream.frames` says 60."""
    data = bytearray(make("e.mp4", pts=tuple(range(0, 60 * 512, 512)), options={"bf": "0", "g": "15"}).read_bytes())
    edit = data.index(b"elst")
    _, _, _, media_time = struct.unpack(">IIII", data[edit + 4 : edit + 20])
    struct.pack_into(">I", data, edit + 16, media_time + 15 * 512)
    (tmp_path / "trim.mp4").write_bytes(data)
    info = probe(tmp_path / "trim.mp4")
    assert info.num_frames == len(list(read_frames(info))) == 45
    assert info.start_s == 0


def test_matroska_ntsc_times_are_kept_and_recognised_as_constant(make):
    info = probe(make("n.mkv", rate=Fraction(30000, 1001), time_base=Fraction(1001, 30000), pts=tuple(range(60))))
    assert info.time_base == Fraction(1, 1000)
    assert set(np.diff(info.pts)) == {33, 34}
    assert info.frame_rate == Fraction(30000, 1001)
    assert not info.variable_frame_rate


def test_variable_rate_and_start_are_found(make):
    pts = (512, 1024, 3000, 3001, 9000)
    info = probe(make("v.mp4", pts=pts, muxer={"movie_timescale": "15360"}))
    assert info.pts.tolist() == list(pts)
    assert info.variable_frame_rate
    assert info.start_s == pytest.approx(512 / 15360)


def test_frames_can_be_picked(make):
    info = probe(make("p.mp4"))
    every = list(read_frames(info))
    for got, want in (
        (read_frames(info, indices=[20, 3, 3]), [3, 20]),
        (read_frames(info, 5, 8), [5, 6, 7]),
        (read_frames(info, 22), [22, 23]),
        (read_frames(info, 4, 4), []),
    ):
        got = list(got)
        assert len(got) == len(want)
        assert all(np.array_equal(a, every[i]) for a, i in zip(got, want, strict=True))
    with pytest.raises(InputError, match="Frame 24"):
        list(read_frames(info, indices=[24]))


def turned(path: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an MP4 whose track header asks for another orientation."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (v << 16 for v in matrix)
    struct.pack_into(">iiiiii", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("matrix", "rotation", "shown"),
    [
        ((0, 1, -1, 0), 270, lambda f: np.rot90(f, -1)),
        ((-1, 0, 0, -1), 180, lambda f: np.rot90(f, 2)),
        ((0, -1, 1, 0), 90, np.rot90),
        ((-1, 0, 0, 1), 0, np.fliplr),
        ((1, 0, 0, -1), 180, np.flipud),
    ],
    ids=["phone-upright", "upside-down", "other-side", "mirrored", "flipped"],
)
def test_orientation_is_baked_in(make, tmp_path, matrix, rotation, shown):
    plain = make("r.mp4", aspect=Fraction(4, 3))
    info = probe(turned(plain, tmp_path / "t.mp4", matrix))
    assert info.rotation == rotation
    expected = [shown(frame) for frame in read_frames(probe(plain))]
    got = list(read_frames(info))
    assert got[0].shape == expected[0].shape == (info.height, info.width, 3)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert info.sample_aspect_ratio == (Fraction(3, 4) if rotation in (90, 270) else Fraction(4, 3))


COLOURS = {
    "601": {"tags": (6, 6, 6, 1), "matrix": 5},
    "709": {"tags": (1, 1, 1, 1), "matrix": 1},
    "709-full": {"tags": (1, 1, 1, 2), "matrix": 1},
    "2020-sdr": {"tags": (9, 9, 14, 1), "matrix": 9},
}


@pytest.mark.parametrize("how", COLOURS.values(), ids=COLOURS)
def test_tagged_colours_are_honoured(make, how):
    info = probe(make("c.mp4", options={"crf": "4"}, **how))
    assert np.abs(lower_half(next(read_frames(info))) - RED).max() <= 2
    tags = info.color
    assert (tags.matrix, tags.primaries, tags.transfer, 2 if tags.full else 1) == how["tags"]
    assert not info.color_assumed
    assert not info.notes


@pytest.mark.parametrize(("size", "matrix", "name"), [((1280, 720), 1, "709"), ((640, 360), 5, "601")])
def test_untagged_colours_follow_the_usual_rule(make, size, matrix, name):
    info = probe(make("u.mp4", size=size, matrix=matrix, pts=(0, 512), options={"crf": "4", "preset": "ultrafast"}))
    assert np.abs(lower_half(next(read_frames(info))) - RED).max() <= 2
    assert info.color_assumed
    assert any(name in note for note in info.notes)


def test_ten_bits_become_eight_and_are_reported(make):
    how = {"codec": "libx265", "pix_fmt": "yuv420p10le"}
    info = probe(make("10.mp4", options={"preset": "ultrafast", "x265-params": "log-level=none"}, **how))
    assert info.bit_depth == 10
    assert any("10 bits" in note for note in info.notes)
    assert np.abs(lower_half(next(read_frames(info))) - RED).max() <= 4


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused(make, transfer, name):
    with pytest.raises(InputError, match=name):
        probe(make("h.mp4", tags=(9, 9, transfer, 1), matrix=9))


def test_audio_and_other_streams_are_listed(make):
    info = probe(make("s.mkv", audio=("aac", "libopus"), time_base=Fraction(1, 1000), pts=tuple(range(0, 800, 33))))
    assert info.audio == ("aac", "opus")
    assert info.other == ()


def test_progress_is_told_and_cancelling_ends_the_helper(make):
    clip, told, cancel = (
        make("long.mp4", pts=tuple(range(0, 300 * 512, 512)), options={"preset": "ultrafast"}),
        [],
        threading.Event(),
    )
    probe(clip, on_progress=told.append)
    assert told
    assert told == sorted(told)
    cancel.set()
    with pytest.raises(Cancelled):
        probe(clip, cancel=cancel)


def test_a_file_that_changes_is_noticed(make, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(make("x.mp4").read_bytes())
    info = probe(path)
    path.write_bytes(make("y.mp4", pts=tuple(range(0, 12 * 512, 512))).read_bytes())
    with pytest.raises((MachineError, InputError), match=r"x\.mp4"):
        list(read_frames(info))


def test_the_package_and_its_helpers_do_without_torch_and_pillow():
    code = (
        "import sys; from fairy.runtime.video import decoder, encoder; "
        "bad = {'torch', 'PIL', 'diffusers', 'triton'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stderr == ""
