"""What goes wrong while a file is written leaves one sentence and nothing else behind."""

import gc
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video import Clock, VideoWriter, helper_process, probe, read_frames

pytestmark = pytest.mark.slow


NOISE = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), np.uint8)
SIZE = {"width": 128, "height": 128}


def full_disk(writer: VideoWriter) -> None:
    for _ in range(150):
        writer.write(NOISE)
    writer.close()


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.avi"])
def test_a_file_size_limit_is_one_sentence_and_leaves_nothing(tmp_path, name):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    try:
        writer = VideoWriter(tmp_path / name, **SIZE, fps=25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    with pytest.raises(MachineError, match=r"Writing .* failed: the file is larger than this machine allows\.$"):
        full_disk(writer)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_nothing(small_disk):
    writer = VideoWriter(small_disk / "o.mp4", **SIZE, fps=25)
    with pytest.raises(MachineError, match=r"failed: no space is left on the disk\.$") as caught:
        full_disk(writer)
    assert caught.value.exit_code == 1
    assert not list(small_disk.iterdir())


def test_too_little_space_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 50_000))
    with pytest.raises(MachineError, match="0.1 MB free"):
        VideoWriter(tmp_path / "o.mp4", **SIZE, clock=Clock.constant(1000, 25))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        VideoWriter(tmp_path / "o.mp4", **SIZE, fps=25)


def test_a_killed_encoder_is_one_sentence_and_leaves_nothing(tmp_path):
    writer = VideoWriter(tmp_path / "o.mp4", **SIZE, fps=25)
    writer.write(NOISE)
    os.kill(writer.pid, 9)
    with pytest.raises(MachineError, match=r"helper process for writing .* died \(signal SIGKILL\)\.$"):
        full_disk(writer)
    assert not list(tmp_path.iterdir())


def test_what_the_encoder_says_at_the_end_is_what_is_told(tmp_path, monkeypatch):
    """It has removed its part by then, which is no news."""
    writer = VideoWriter(tmp_path / "o.mp4", **SIZE, fps=25)
    writer.write(NOISE)
    writer._part.unlink()
    monkeypatch.setattr(writer._worker, "receive", refused)
    with pytest.raises(MachineError, match="the disk quota is used up"):
        writer.close()
    assert not list(tmp_path.iterdir())


def refused(**_: object) -> None:
    raise MachineError("Writing failed: the disk quota is used up.")


def test_a_hung_encoder_is_ended_at_its_deadline(tmp_path, monkeypatch):
    writer = VideoWriter(tmp_path / "o.mp4", **SIZE, fps=25)
    monkeypatch.setattr(helper_process, "DEADLINE_S", 0.5)
    os.kill(writer.pid, 19)
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"Writing .* made no progress for 0.5 s"):
        full_disk(writer)
    assert time.monotonic() - started < 5
    assert not list(tmp_path.iterdir())


def _fail(path: Path, error: type[BaseException]) -> None:
    with VideoWriter(path, **SIZE, fps=25) as writer:
        writer.write(NOISE)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_in_the_parent_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        _fail(tmp_path / "o.mp4", error)
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_stays_until_the_new_file_is_whole(tmp_path):
    path = tmp_path / "o.mp4"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        _fail(path, RuntimeError)
    assert path.read_text() == "old"
    with VideoWriter(path, **SIZE, fps=25) as writer:
        writer.write(NOISE)
        assert path.read_text() == "old"
    assert probe(path).num_frames == 4
    assert list(tmp_path.iterdir()) == [path]


def test_a_forgotten_writer_leaves_nothing(tmp_path):
    writer = VideoWriter(tmp_path / "o.mp4", **SIZE, fps=25)
    writer.write(NOISE)
    helper = Path("/proc") / str(writer.pid)
    del writer
    gc.collect()
    assert _gone([helper])
    assert not list(tmp_path.iterdir())


def test_no_helper_and_no_file_outlives_a_killed_parent(tmp_path, make):
    script = f"""
        import os, time, numpy as np
        from fairy.runtime.video import VideoWriter, probe, read_frames
        frames = read_frames(probe({str(make("k.mp4", size=(640, 480)))!r}))
        next(frames)
        writer = VideoWriter({str(tmp_path / "o.mp4")!r}, width=64, height=64, fps=25)
        writer.write(np.zeros((3, 64, 64, 3), np.uint8))
        own = "/proc/self/task"
        print(*[pid for t in os.listdir(own) for pid in open(f"{{own}}/{{t}}/children").read().split()], flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    helpers = [Path("/proc") / pid for pid in parent.stdout.readline().split()]
    assert len(helpers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone(helpers)
    assert not list(tmp_path.iterdir())


def _gone(processes: list[Path]) -> bool:
    """Whether all of them end within ten seconds."""
    deadline = time.monotonic() + 10
    while any(_alive(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(_alive(p) for p in processes)


def _alive(process: Path) -> bool:
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(("written", "words"), [(0, "0 of 8"), (4, "4 of 8")])
def test_missing_frames_are_noticed(tmp_path, written, words):
    writer = VideoWriter(tmp_path / "o.mp4", **SIZE, clock=Clock.constant(8, 25))
    writer.write(NOISE[:written])
    with pytest.raises(MachineError, match=words):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_frames_too_many_or_of_another_shape_are_errors(tmp_path):
    with pytest.raises(ValueError, match="uint8"), VideoWriter(tmp_path / "o.mp4", **SIZE, fps=25) as writer:
        writer.write(NOISE.astype(np.float32))
    with (
        pytest.raises(ValueError, match="one more"),
        VideoWriter(tmp_path / "o.mp4", **SIZE, clock=Clock.constant(3, 25)) as writer,
    ):
        writer.write(NOISE)
    assert not list(tmp_path.iterdir())


def _memory_kb(pid: int | str, field: str) -> int:
    """0 for a helper that has just ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) if field in status else 0


_OTHERS = re.compile(rb"fairy\.runtime\.cli|playwright|resource_tracker")


def _children() -> set[int]:
    """The helper processes of this process; other tests may have left a service running."""
    tasks = Path("/proc/self/task").iterdir()
    pids = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return {pid for pid in pids if not _OTHERS.search(Path(f"/proc/{pid}/cmdline").read_bytes())}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(make, tmp_path):
    """Peak of each helper, and what the parent holds, for 60 and for 600 frames with sound."""
    peaks = {}
    for count in (60, 600):
        pts = tuple(range(0, count * 512, 512))
        info = probe(make("m.mp4", pts=pts, audio=("aac",), options={"preset": "ultrafast"}))
        seen = [0, 0, 0]
        with VideoWriter(tmp_path / f"{count}.mp4", width=96, height=64, source=info) as writer:
            for frame in read_frames(info):
                reader = (_children() - {writer.pid}).pop()
                writer.write(frame)
                now = _memory_kb(reader, "VmHWM"), _memory_kb(writer.pid, "VmHWM"), _memory_kb("self", "VmRSS")
                seen = [max(pair) for pair in zip(seen, now, strict=True)]
        peaks[count] = np.array(seen)
    # 60 frames do not yet fill the encoder's look-ahead of 40 and its delay: 8 MB for that.
    assert np.all(peaks[600] - peaks[60] < 8 * 1024), peaks


def test_a_helper_has_no_more_than_it_needs(make):
    frames = read_frames(probe(make("k.mp4", size=(640, 480))))
    next(frames)
    limits = Path(f"/proc/{_children().pop()}/limits").read_text()
    for name in ("Max file size", "Max core file size"):
        assert limits.split(name)[1].split()[0] == "0"
    assert int(limits.split("Max address space")[1].split()[0]) < 9 << 30
    assert int(limits.split("Max open files")[1].split()[0]) <= 64
    frames.close()
