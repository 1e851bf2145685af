"""Files that lie, are broken, or attack: each is refused in one sentence, in bounded memory and time."""

import contextlib
import os
import re
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video import Reading, helper_process, probe, read_frames
from fairy.runtime.video.boxes import is_cut_off

MS = Fraction(1, 1000)
MKV = {"time_base": MS, "pts": tuple(range(0, 4000, 33)), "options": {"preset": "ultrafast", "g": "10"}}


def refusal(path: Path, **how) -> str:
    """The sentence that refuses the file: one line, one full stop at its end, naming the file."""
    with pytest.raises(InputError) as caught:
        probe(path, **how)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert re.search(r"[^.]\.$", sentence)
    assert caught.value.exit_code == 2
    return sentence


def cut(path: Path, target: Path, part: float) -> Path:
    data = path.read_bytes()
    target.write_bytes(data[: int(len(data) * part)])
    return target


def test_a_concat_script_cannot_name_another_file(make, tmp_path):
    (tmp_path / "base.mp4").write_bytes(make("b.mp4").read_bytes())
    (tmp_path / "evil.mp4").write_text("ffconcat version 1.0\nfile 'base.mp4'\n")
    assert "not a video" in refusal(tmp_path / "evil.mp4")


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "hello\n" * 99,
        "\0" * 999,
    ],
    ids=["hls", "text", "zeros"],
)
def test_what_is_no_video_is_refused(tmp_path, text):
    (tmp_path / "x.mp4").write_text(text)
    assert "not a video" in refusal(tmp_path / "x.mp4")


def test_places_without_a_file_are_refused(tmp_path):
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is empty" in refusal(tmp_path / "empty.mp4")
    assert "no such file" in refusal(tmp_path / "missing.mp4")
    assert "is a folder" in refusal(tmp_path)
    assert "not a regular file" in refusal(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["concat:a.mp4|b.mp4", "http:__x.mp4", "-x.mp4", "pipe:0", "ü ö%d \udce4.mp4"])
def test_a_name_is_never_a_url(make, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(make("b.mp4").read_bytes())
    info = probe(name)
    assert info.num_frames == len(list(read_frames(info))) == 24


@pytest.mark.parametrize("name", ["https://example.org/x.mp4", "file:/etc/hostname", "concat:/etc/hostname"])
def test_a_url_is_a_missing_file(name):
    assert "no such file" in refusal(Path(name))


@pytest.mark.parametrize("part", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("faststart", [True, False], ids=["index-first", "index-last"])
def test_truncated_mp4(make, tmp_path, faststart, part):
    whole = make("t.mp4", muxer={"movflags": "+faststart"} if faststart else {})
    sentence = refusal(cut(whole, tmp_path / "t.mp4", part))
    assert "cut off" in sentence or "damaged" in sentence


@pytest.mark.parametrize("part", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("name", ["t.mkv", "t.webm"])
def test_truncated_matroska_does_not_just_end_early(make, tmp_path, name, part):
    how = (
        MKV if name == "t.mkv" else {**MKV, "codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}
    )
    assert "cut off" in refusal(cut(make(name, **how), tmp_path / name, part))


def test_every_cut_of_a_matroska_file_is_seen(make, tmp_path):
    """Also between two clusters, where nothing looks broken to the demuxer."""
    whole = make("t.mkv", **MKV)
    data, path = whole.read_bytes(), tmp_path / "t.mkv"
    assert not is_cut_off(whole)
    for end in range(len(data) // 3, len(data), len(data) // 97):
        path.write_bytes(data[:end])
        assert is_cut_off(path), end


def test_a_live_matroska_recording_without_its_length_is_cut_off_by_the_demuxer_s_word(make, tmp_path):
    whole = make("live.mkv", **MKV, muxer={"live": "1"})
    assert probe(whole).num_frames == len(MKV["pts"])
    assert "cut off" in refusal(cut(whole, tmp_path / "live.mkv", 0.6))


def test_truncated_avi(make, tmp_path):
    whole = make("t.avi", codec="mpeg4", time_base=Fraction(1, 30), pts=tuple(range(24)))
    assert "cut off" in refusal(cut(whole, tmp_path / "t.avi", 0.7))


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv"])
def test_damage_in_the_middle_names_its_time(make, tmp_path, name):
    data = bytearray(make(name, **MKV).read_bytes())
    at = len(data) // 2
    data[at : at + 3000] = bytes(3000)
    (tmp_path / name).write_bytes(data)
    time_s = re.search(r"at (\d+\.\d\d) s", refusal(tmp_path / name, reading=Reading(strict=True)))
    assert time_s
    assert 1 < float(time_s[1]) < 3
    info = probe(tmp_path / name)
    assert len(MKV["pts"]) > info.num_frames > 0.9 * len(MKV["pts"])
    assert any(f"frames, at {time_s[1]}" in note for note in info.notes)
    once, again = (np.stack(list(read_frames(info))) for _ in range(2))
    assert np.array_equal(once, again)
    part = probe(tmp_path / name, reading=Reading(strict=True, end_s=1.0))
    assert not any("damaged" in note for note in part.notes)
    assert part.pts[:30].tolist() == info.pts[:30].tolist()


def count_or_refusal(path: Path) -> int | str:
    """How many frames are used of a damaged file, which says so; else why it is not."""
    try:
        info = probe(path)
    except InputError as error:
        return str(error)
    assert any("is damaged in" in note for note in info.notes)
    return len(list(read_frames(info)))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("v.webm", "libvpx-vp9", "yuv420p"), ("j.mkv", "mjpeg", "yuvj420p")]
)
def test_frames_that_a_demuxer_leaves_out_are_missed(make, tmp_path, name, codec, pix_fmt):
    """Every frame that is left decodes: only the demuxer's word tells that others are gone."""
    options = {"cpu-used": "8", "deadline": "realtime"} if codec == "libvpx-vp9" else {}
    whole = make(name, **{**MKV, "codec": codec, "pix_fmt": pix_fmt, "options": options})
    data, path = whole.read_bytes(), tmp_path / name
    assert probe(whole).num_frames == len(MKV["pts"])
    for at in np.linspace(0.2, 0.8, 5):
        bad = bytearray(data)
        start = int(at * len(bad))
        bad[start : start + 3000] = bytes(3000)
        path.write_bytes(bad)
        assert "damaged at" in refusal(path, reading=Reading(strict=True))
        told = count_or_refusal(path)
        assert "s cannot be read" in str(told) or 0.7 * len(MKV["pts"]) < int(told) < len(MKV["pts"])


def test_frames_that_an_avi_file_lost_are_missed(make, tmp_path):
    how = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "time_base": Fraction(1, 30), "pts": tuple(range(120))}
    data = bytearray(make("j.avi", **how).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8000] = bytes(8000)
    (tmp_path / "j.avi").write_bytes(data)
    assert "damaged" in refusal(tmp_path / "j.avi")


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 48000
        for packet in [*stream.encode(sound), *stream.encode()]:
            output.mux(packet)
    assert "no video stream" in refusal(path)


@pytest.mark.parametrize("name", ["none.mp4", "none.mkv"])
def test_a_video_of_0_frames(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        output.start_encoding()
    assert "0 frames" in refusal(path)


_OTHERS = re.compile(rb"fairy\.runtime\.cli|playwright|resource_tracker")


def children() -> list[int]:
    """The helper processes of this process; other tests may have left a service running."""
    own = Path("/proc/self/task")
    pids = [int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if not _OTHERS.search(Path(f"/proc/{pid}/cmdline").read_bytes())]


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12000 × 12000 pixels in a few hundred kilobytes."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"preset": "ultrafast", "threads": "2"})
        stream.width = stream.height = 12000
        stream.pix_fmt = "gray"
        frame = av.VideoFrame(12000, 12000, "gray")
        np.frombuffer(frame.planes[0], np.uint8)[:] = 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            output.mux(packet)
    return path


def peak_bytes(path: Path) -> tuple[str, int]:
    """What refuses the file, and the most memory that a helper held meanwhile (sampled every millisecond)."""
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            for pid in children():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    if "decoder" in Path(f"/proc/{pid}/cmdline").read_text():
                        peaks.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sentence = refusal(path)
    finally:
        done.set()
        watcher.join()
    return sentence, max(peaks)


@pytest.mark.slow
def test_a_picture_bomb_is_refused_in_bounded_memory(bomb):
    sentence, peak = peak_bytes(bomb)
    assert "12000×12000" in sentence
    assert "max_pixels" in sentence
    assert peak < 300e6


@pytest.mark.slow
def test_a_bomb_whose_header_lies_is_refused_in_bounded_memory(bomb, tmp_path):
    """The container says 64 × 64: only the decoder's own limit stops it."""
    data = bytearray(bomb.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd"))
    struct.pack_into(">HH", data, entry + 28, 64, 64)
    (tmp_path / "small.mp4").write_bytes(data)
    sentence, peak = peak_bytes(tmp_path / "small.mp4")
    assert "max_pixels" in sentence
    assert peak < 300e6


def test_the_limit_can_be_set(make):
    clip = make("b.mp4")
    assert "96×64" in refusal(clip, max_pixels=96 * 64 - 1)
    assert probe(clip, max_pixels=96 * 64).num_frames == 24


def test_a_change_of_size_on_the_way_is_refused(make, tmp_path):
    pieces = [make("s.ts", size=size).read_bytes() for size in ((96, 64), (128, 64))]
    (tmp_path / "two.ts").write_bytes(b"".join(pieces))
    assert "96×64 to 128×64 at 0.80 s" in refusal(tmp_path / "two.ts")
    info = probe(tmp_path / "two.ts", reading=Reading(end_s=0.7))
    assert len(list(read_frames(info, 0, 21))) == 21


def test_damage_after_the_part_that_is_wanted_is_not_looked_at(make, tmp_path):
    """Neither a picture that is too large nor an end that is missing."""
    pieces = [make("s.ts", size=size).read_bytes() for size in ((96, 64), (640, 480))]
    (tmp_path / "two.ts").write_bytes(b"".join(pieces))
    assert "max_pixels" in refusal(tmp_path / "two.ts", max_pixels=10000)
    info = probe(tmp_path / "two.ts", max_pixels=10000, reading=Reading(end_s=0.7))
    assert len(list(read_frames(info, 0, 21, max_pixels=10000))) == 21
    path = cut(make("t.mkv", **MKV), tmp_path / "cut.mkv", 0.6)
    info = probe(path, reading=Reading(end_s=1.5))
    assert len(list(read_frames(info, 0, 45))) == 45
    assert "cut off" in refusal(path, reading=Reading(end_s=3.9))


def test_lost_packets_of_a_transport_stream_are_told(make, tmp_path):
    """The frames are those that the decoder gives, the same in every run."""
    ticks = {"time_base": Fraction(1, 90000), "pts": tuple(range(0, 90000, 3000))}
    data = bytearray(make("l.ts", size=(256, 192), options={"bf": "0", "g": "15"}, **ticks).read_bytes())
    count = len(data) // 188
    del data[188 * (count // 2) : 188 * (count // 2 + 3)]
    (tmp_path / "l.ts").write_bytes(data)
    info = probe(tmp_path / "l.ts")
    assert info.num_frames >= 28
    assert any(re.search(r"damaged in 1 place of its \d+ frames, at 0\.\d\d s", note) for note in info.notes)
    runs = {np.stack(list(read_frames(info))).tobytes() for _ in range(4)}
    assert len(runs) == 1
    assert "damaged at 0." in refusal(tmp_path / "l.ts", reading=Reading(strict=True))


@pytest.mark.slow
def test_random_bytes_never_crash_the_parent(make, tmp_path):
    """Every outcome is a video or a sentence."""
    data, rng, sentences = make("b.mp4").read_bytes(), np.random.default_rng(0), []
    for turn in range(9):
        bad = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, len(bad), 40)
        bad[where] = rng.integers(0, 256, 40)
        (tmp_path / f"{turn}.mp4").write_bytes(bad.tobytes())
        try:
            info = probe(tmp_path / f"{turn}.mp4")
            assert len(list(read_frames(info))) == info.num_frames
        except (InputError, MachineError) as error:
            sentences.append(str(error))
    assert all("\n" not in sentence for sentence in sentences)


def test_a_killed_decoder_is_one_sentence(make):
    frames = read_frames(probe(make("k.mp4", size=(640, 480))))
    next(frames)
    os.kill(children()[-1], 9)
    with pytest.raises(MachineError, match=r"helper process for reading .* died \(signal SIGKILL\)\.$"):
        list(frames)
    assert not children()


def test_a_hung_decoder_is_ended_at_its_deadline(make, monkeypatch):
    frames = read_frames(probe(make("k.mp4", size=(640, 480))))
    next(frames)
    os.kill(children()[-1], 19)
    monkeypatch.setattr(helper_process, "DEADLINE_S", 0.5)
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"Reading .* made no progress for 0.5 s"):
        list(frames)
    assert time.monotonic() - started < 5
    assert not children()


def test_closing_the_generator_ends_the_helper(make):
    frames = read_frames(probe(make("k.mp4", size=(640, 480))))
    next(frames)
    assert len(children()) == 1
    frames.close()
    assert not children()
