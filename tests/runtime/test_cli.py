"""The command line: whole runs, and for every mistake one sentence, the right exit code and no file left behind."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from fairy.runtime.cli import main as cli
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.video import probe
from tests.runtime.conftest import make_frames, write_clip


@pytest.fixture
def run(checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]):
    """Run `fairy` in this process; returns exit code, stdout and stderr."""

    def _run(*arguments: object, model: bool = True) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        if words and words[0] == "edit" and model:
            words += ["--model", str(checkpoint_folder), "--quiet"]
        code = cli.run(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return _run


def _one_sentence(error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    assert "Traceback" not in error
    return lines[0]


def test_edit_writes_everything_that_was_asked_for(run, clip: Path, tmp_path: Path) -> None:
    out, side, anchors, report = (tmp_path / name for name in ("out.mp4", "side.mp4", "anchors.png", "report.json"))
    code, told, error = run(
        "edit", clip, "make it red", "-o", out, "--steps", 1, "--anchors", "0,3", "--seed", 4, "--crf", 20,
        "--compare", side, "--preview", anchors, "--report", report,
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert str(out) in told
    assert "5 frames" in told
    for path in (out, side, anchors, report):
        assert path.is_file()
        assert str(path) in told
    loaded = json.loads(report.read_text())
    assert loaded["anchors"] == [0, 3]
    assert loaded["params"]["seed"] == 4
    assert probe(out).num_frames == 5


def test_the_progress_bar_goes_to_stderr(checkpoint_folder: Path, clip: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.mp4"
    assert cli.run(["edit", str(clip), "x", "-o", str(out), "--steps", "1", "--model", str(checkpoint_folder)]) == 0
    said = capsys.readouterr()
    assert "editing the frames" in said.err
    assert "editing" not in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "--steps 0 is not possible"),
        (["--steps", "many"], "'many'"),
        (["--anchors", "9"], "9 anchors are more than the video's 5 frames"),
        (["--anchors", "0,7"], "Anchor 7 is not a frame"),
        (["--anchors", "some"], "'some' is neither a number"),
        (["--nonsense", "1"], "--nonsense"),
        (["--sampler", "heun"], "'heun'"),
        (["--noise", "loud"], "'loud'"),
        (["--layers", "none"], "'none'"),
        (["--size", "huge"], "'huge'"),
        (["--backend", "fastest"], "--backend 'fastest' is not known"),
        (["--gpus", "2"], "--gpus 2"),
        (["--device", "cuda:9"], "cuda:9"),
        (["--dtype", "int4"], "'int4'"),
        (["--threads", "0"], "--threads 0"),
        (["--crf", "99"], "99"),
        (["--fps", "25"], "has its own time stamps"),
        (["--fps", "fast"], "'fast' is not a rate"),
        (["--start", "soon"], "'soon' is not a time"),
        (["--start", "99"], "No frame is shown"),
        (["--start", "3", "--end", "2"], "--end 2 s must be later"),
        (["--long-side", "2"], "--long-side 2"),
        (["--max-pixels", "100"], "pixels"),
        (["--micro-batch", "0"], "--micro-batch 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--guidance-scale", "nan"], "--guidance-scale nan"),
        (["--strength", "1.5"], "--strength 1.5"),
        (["--mask-from", "the car"], "--mask-from 'the car' needs a segmenter; name a CLIPSeg"),
        (["--mask-from", "the car", "--mask", "m.png"], "--mask-from 'the car' goes without a mask"),
        (["--mask", "{tmp}/nothing.png"], "does not exist"),
        (["--control", "canny"], "--control belongs to a ControlNet or a T2I adapter; load one"),
        (["--style", "{tmp}/a.png"], "belongs to an IP-Adapter; load one"),
        (["--lora", "{tmp}/nothing.safetensors"], "nothing.safetensors"),
        (
            ["--codec", "exr", "--lossless"],
            "--lossless (True )?does not fit codec = exr",
        ),
        (["--anchors", "0", "--preview", "{tmp}/a.png"], "anchors = 0"),
        (["--preview", "{tmp}/a.gif"], "must end in .png"),
        (["--report", "{tmp}/out.mp4"], "two outputs"),
        (["--report", "{tmp}/r.txt"], "must end in .json"),
        (["--compare", "{tmp}/out.mp4"], "two outputs"),
        (["--compare", "{tmp}/nowhere/side.mp4"], "does not exist"),
        (["--report", "{tmp}/nowhere/r.json"], "does not exist"),
    ],
)
def test_wrong_options_are_one_sentence(run, clip: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    code, told, error = run("edit", clip, "make it red", "-o", tmp_path / "out.mp4", *given)
    assert code == 2, error
    assert re.search(words, _one_sentence(error)), error
    assert told == ""
    assert list(tmp_path.iterdir()) == []


def _text(folder: Path) -> Path:
    (folder / "in.mp4").write_text("this is not a video")
    return folder / "in.mp4"


def _concat(folder: Path) -> Path:
    write_clip(folder / "secret.mp4", make_frames(2), sound=False)
    (folder / "in.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    return folder / "in.mp4"


def _truncated(ending: str):
    def make(folder: Path) -> Path:
        whole = write_clip(folder / f"whole{ending}", make_frames(60))
        data = whole.read_bytes()
        whole.unlink()
        (folder / f"in{ending}").write_bytes(data[: len(data) // 2])
        return folder / f"in{ending}"

    return make


def _no_frames(folder: Path) -> Path:
    path = folder / "in.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    return path


def _hdr(folder: Path) -> Path:
    path = folder / "in.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        video.codec_context.color_trc = 16
        video.codec_context.color_primaries = video.codec_context.colorspace = 9
        for picture in make_frames(2, 32, 32):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return path


def _odd_codec(folder: Path) -> Path:
    path = folder / "in.avi"
    with av.open(str(path), "w") as container:
        video = container.add_stream("magicyuv", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "gbrp"
        for picture in make_frames(2, 32, 32):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return path


def _missing(folder: Path) -> Path:
    return folder / "in.mp4"


def _empty_folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    return folder / "in"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "does not exist"),
        (_text, "in.mp4 is not a video|cannot be (read|opened)|no video"),
        (_concat, "is not a video|cannot be (read|opened)|no video"),
        (_truncated(".mp4"), "cut off|damaged"),
        (_truncated(".mkv"), "cut off|damaged"),
        (_no_frames, "0 frames"),
        (_hdr, "high dynamic range"),
        (_odd_codec, "magicyuv, which is not decoded; convert it first: ffmpeg"),
        (_empty_folder, "no (image|picture)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_videos_are_one_sentence(run, tmp_path: Path, make, words: str) -> None:
    (tmp_path / "source").mkdir()
    video = make(tmp_path / "source")
    rate = ["--fps", 25] if video.is_dir() else []
    code, told, error = run("edit", video, "make it red", "-o", tmp_path / "out.mp4", *rate)
    assert code == 2, error
    assert re.search(words, _one_sentence(error), re.IGNORECASE), error
    assert told == ""
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("nowhere/out.mp4", "does not exist"),
        ("out.xyz", "extension '.xyz'"),
        ("out", "no extension"),
        (".", "is a folder"),
        ("clip.mp4", "is the input itself"),
        ("link.mp4", "is the input itself"),
        ("out.webm", "aac"),
    ],
)
def test_bad_outputs_are_refused_before_anything_is_computed(
    run, tmp_path: Path, out: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_clip(tmp_path / "clip.mp4", make_frames(2))
    before = video.read_bytes()
    (tmp_path / "link.mp4").symlink_to(video)
    computed = []
    monkeypatch.setattr(Networks, "encode_text", lambda self, job: computed.append(job))
    code, _, error = run("edit", video, "make it red", "-o", tmp_path / out)
    assert code == 2, error
    assert re.search(words, _one_sentence(error)), error
    assert not computed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "link.mp4"]
    assert video.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit"], "IN"),
        (["edit", "a.mp4", "x"], "-o|--out"),
        (["paint", "a.mp4"], "paint"),
        (["probe", "missing.mp4"], "missing.mp4"),
    ],
)
def test_wrong_commands_are_one_sentence(run, arguments: list[str], words: str) -> None:
    code, _, error = run(*arguments, model=False)
    assert code == 2
    assert re.search(words, _one_sentence(error))


@pytest.mark.parametrize("instruction", ["", "  "])
def test_an_empty_instruction_is_refused(run, clip: Path, tmp_path: Path, instruction: str) -> None:
    code, _, error = run("edit", clip, instruction, "-o", tmp_path / "out.mp4")
    assert code == 2
    assert "instruction is empty" in _one_sentence(error)


def test_a_missing_model_is_refused(run, clip: Path, tmp_path: Path) -> None:
    code, _, error = run("edit", clip, "x", "-o", tmp_path / "o.mp4", "--model", tmp_path / "none", model=False)
    assert code == 2
    assert "neither a folder" in _one_sentence(error)


def test_an_image_folder_is_edited(run, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, frame in enumerate(make_frames(3)):
        Image.fromarray(frame).save(folder / f"{i}.png")
    out = tmp_path / "out.mp4"
    code, _, error = run("edit", folder, "x", "-o", out, "--steps", 1)
    assert code == 2
    assert "frames a second" in _one_sentence(error)
    code, _, error = run("edit", folder, "x", "-o", out, "--steps", 1, "--fps", "30000/1001")
    assert (code, error) == (0, "")
    assert abs(float(probe(out).frame_rate) - 29.97) < 0.01


def test_no_output_may_replace_the_input(run, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mp4", make_frames(2))
    before = video.read_bytes()
    for option, name in (("--compare", "clip.mp4"), ("--report", "clip.json"), ("--preview", "clip.png")):
        target = tmp_path / name
        if name != "clip.mp4":
            target.symlink_to(video)
        code, _, error = run("edit", video, "x", "-o", tmp_path / "out.mp4", option, target)
        assert code == 2
        assert "is the input itself" in _one_sentence(error)
    assert video.read_bytes() == before


def test_fairy_alone_shows_its_help(run) -> None:
    code, told, error = run()
    assert code == 2
    assert error == ""
    assert "edit" in told
    assert "doctor" in told


def test_probe_prints_facts_and_json(run, clip: Path) -> None:
    code, told, _ = run("probe", clip)
    assert code == 0
    assert "h264" in told
    assert "aac" in told
    code, told, _ = run("probe", clip, "--json")
    assert json.loads(told)["num_frames"] == 5


def test_probe_looks_into_folders(run, checkpoint_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        Image.fromarray(make_frames(1, 32, 48)[0]).save(tmp_path / f"{number}.png")
    facts = json.loads(run("probe", tmp_path, "--json")[1])
    assert (facts["num_frames"], facts["width"], facts["height"]) == (3, 48, 32)
    facts = json.loads(run("probe", checkpoint_folder, "--json")[1])
    assert (facts["sees"], facts["variants"]["vae"]) == ("picture", ["default"])
    code, told, _ = run("probe", checkpoint_folder)
    assert code == 0
    assert "InstructPix2Pix" in told


def test_doctor_names_what_is_missing_and_the_command(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy.runtime import doctor

    code, told, _ = run("doctor")
    assert code == 0
    assert "torch" in told
    assert "embedded model" in told
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "diffusers" else "999")
    code, told, _ = run("doctor")
    assert code == 1
    assert f"{shlex.quote(sys.executable)} -m pip install 'diffusers>=0.42.1'" in told
    code, told, _ = run("doctor", "--json")
    assert {"what", "works", "found", "remedy", "remark", "required"} == set(json.loads(told)[0])


def test_version_and_help(run) -> None:
    code, told, _ = run("--version")
    assert code == 0
    assert re.match(r"fairy \d+\.\d+", told)
    code, told, _ = run("edit", "--help", model=False)
    assert code == 0
    for option in ("--anchors", "--negative-prompt", "--compare", "--preview", "--report", "--threads", "--crf"):
        assert option in told


# -- faults of the machine, in a process of its own -----------------------------------------------------------------


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fairy.runtime.cli.main", *[str(argument) for argument in arguments]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_full_disk_is_one_sentence_exit_1_and_no_file(checkpoint_folder: Path, tmp_path: Path, workers: int) -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    video = write_clip(tmp_path / "clip.mp4", noisy, sound=False)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        _command(
            "edit",
            video,
            "x",
            "-o",
            tmp_path / "out" / "out.mp4",
            "--model",
            checkpoint_folder,
            "--steps",
            1,
            "--crf",
            0,
            "--workers",
            workers,
        ),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert re.search("space|disk|full|large", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"out.mp4.job"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, 1), (signal.SIGHUP, 129, 2)])
def test_a_signal_ends_it_without_traces(
    checkpoint_folder: Path, tmp_path: Path, number: int, code: int, workers: int
) -> None:
    """Not even a folder for temporary files, nor a process, is left."""
    video = write_clip(tmp_path / "clip.mp4", make_frames(40), sound=False)
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        _command(
            "edit",
            video,
            "x",
            "-o",
            out / "out.mp4",
            "--model",
            checkpoint_folder,
            "--steps",
            200,
            "--workers",
            workers,
        ),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        deadline = time.monotonic() + 90
        while not list(out.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(out.iterdir()), "the job never began to write"
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert list(out.iterdir()) == []
    assert not list(tmp_path.glob("fairy-*"))
    assert not _running_in_session(process.pid)


def _running_in_session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader and "Z" not in (entry / "stat").read_text().split(")")[1][:3]:
                    found.append(int(entry.name))
            except (ProcessLookupError, FileNotFoundError):
                continue
    return found
