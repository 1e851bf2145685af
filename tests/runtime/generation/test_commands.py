"""`fairy generate`, `interpolate` and `upscale` as commands: results, refusals, and how they end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fairy.runtime.cli.main import run
from fairy.runtime.video import probe

PATIENCE_S = 300.0


def until(what, patience_s: float = PATIENCE_S) -> None:
    limit = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fairy.runtime.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def test_generate_writes_a_video_a_preview_and_a_report(small_generator: Path, tmp_path: Path, capsys) -> None:
    out, preview, report = (tmp_path / name for name in ("clip.mp4", "first.png", "report.json"))
    arguments = ["generate", "a red ball", "-o", str(out), "--model", str(small_generator), "--frames", "5", "--quiet"]
    assert run([*arguments, "--preview", str(preview), "--report", str(report), "--steps", "2"]) == 0
    assert probe(out).num_frames == 5
    assert preview.exists()
    assert json.loads(report.read_text())["params"]["num_inference_steps"] == 2
    assert "5 frames, 64×64" in capsys.readouterr().out


def test_the_stages_take_a_video(small_generator: Path, clip: Path, tmp_path: Path) -> None:
    model = ["--model", str(small_generator), "--quiet"]
    assert run(["interpolate", str(clip), "-o", str(tmp_path / "smooth.mkv"), "--times", "4", *model]) == 0
    assert run(["upscale", str(clip), "-o", str(tmp_path / "large.mp4"), "--start", "0.04", *model]) == 0
    assert probe(tmp_path / "smooth.mkv").num_frames == 17
    large = probe(tmp_path / "large.mp4")
    assert (large.num_frames, large.width, large.height) == (4, 2 * probe(clip).width, 2 * probe(clip).height)


def test_a_folder_of_images_needs_a_rate(small_generator: Path, tmp_path: Path, capsys) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 24), (80 * number, 0, 0)).save(folder / f"{number}.png")
    arguments = [
        "interpolate",
        str(folder),
        "-o",
        str(tmp_path / "out.mp4"),
        "--model",
        str(small_generator),
        "--quiet",
    ]
    assert run(arguments) == 2
    assert "how many frames a second" in capsys.readouterr().err
    assert run([*arguments, "--source-fps", "10"]) == 0
    assert probe(tmp_path / "out.mp4").frame_rate == 20


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", " ", "-o", "a.mp4"], "The prompt is empty"),
        (["generate", "a ball", "-o", "a.txt"], "a.txt"),
        (["generate", "a ball", "-o", "a.mp4", "--model", "nowhere"], "is no folder"),
        (["generate", "a ball", "-o", "a.mp4", "--size", "12x"], "--size ''"),
        (["generate", "a ball", "-o", "a.mp4", "--workers", "99"], "--workers 99"),
        (["interpolate", "nothing.mp4", "-o", "a.mp4"], "does not exist"),
        (["interpolate", "nothing.mp4", "-o", "a.mp4", "--times", "2", "--fps", "30"], "--fps 30"),
        (["upscale", "nothing.mp4", "-o", "a.mp4", "--times", "1"], "--times 1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert sentence in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_command(number: signal.Signals, small_generator: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    how = ["--model", str(small_generator), "--workers", "2", "--frames", "60", "--quiet"]
    with command("generate", "a red ball", "-o", str(out), *how) as process:
        until(lambda: process.poll() is not None or (tmp_path / "clip.mp4.job").is_dir())
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2
        process.send_signal(number)
        process.wait(PATIENCE_S)
        assert not psutil.wait_procs(started, timeout=20)[1]
    assert not out.exists()
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert (tmp_path / "clip.mp4.job").is_dir()
    if number == signal.SIGTERM:
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
