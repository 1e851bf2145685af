"""Many clips: which ones, how, and what becomes of each; on Ray see `test_fleet_on_ray.py`."""

import contextlib
import json
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime import EditParams
from fairy.runtime.cli import main as cli
from fairy.runtime.fleet import (
    ClipResult,
    EditorSetup,
    FleetOptions,
    FleetReport,
    WorkItem,
    edit_many,
    items_of_folder,
)
from fairy.runtime.fleet.fleet_options import room_for_editors, with_gpus
from tests.runtime.conftest import make_frames, write_clip

PARAMS = EditParams("make it red", num_inference_steps=1)


def _clips(folder: Path, count: int, *, length: int = 4) -> Path:
    folder.mkdir()
    for i in range(count):
        write_clip(folder / f"{i}.mp4", make_frames(length, 32, 32, seed=i), sound=False)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- which clips ----------------------------------------------------------------------------------------------------


def test_items_are_the_videos_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.MOV", "a.mp4", "c.m2ts", ".hidden.mp4", "notes.txt", "d.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    items = items_of_folder(tmp_path, tmp_path / "out", PARAMS)
    assert [item.video.name for item in items] == ["a.mp4", "b.MOV", "c.m2ts"]
    assert [item.out for item in items] == [tmp_path / "out" / name for name in ("a.mp4", "b.MOV", "c.ts")]
    items = items_of_folder(tmp_path, tmp_path / "out", PARAMS, ending=".mkv", crf=20)
    assert [item.out.name for item in items] == ["a.mkv", "b.mkv", "c.mkv"]
    assert {(item.params, item.crf) for item in items} == {(PARAMS, 20)}


def test_other_processes_find_a_setups_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders become absolute; hub ids, the model's own decoder and what is not given stay as they are."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "small"):
        (tmp_path / name).mkdir()
    made = EditorSetup("model", store=Path("engines"), decoder="small").absolute()
    assert (made.model, made.store, made.decoder) == (
        str(tmp_path / "model"),
        tmp_path / "engines",
        str(tmp_path / "small"),
    )
    for setup in (EditorSetup("owner/name", decoder="owner/taesd"), EditorSetup(decoder="tiny"), EditorSetup()):
        assert setup.absolute() == setup


@pytest.mark.parametrize(
    ("names", "out", "ending", "words"),
    [
        ((), "out", None, "has no videos"),
        (("a.txt",), "out", None, "has no videos"),
        (("a.mp4",), "in", None, "folder of the clips itself"),
        (("a.mp4",), "in/../in", None, "folder of the clips itself"),
        (("a.mp4", "a.mov"), "out", ".mkv", "a.mov and a.mp4 would both be written to .*a.mkv"),
        (("a.ts", "a.mts"), "out", None, "a.mts and a.ts would both"),
        (("a.mp4",), "out", ".rm", "'.rm'"),
        (("a.mp4",), "out", "mp4", "clipmp4|no extension"),
    ],
)
def test_folders_that_cannot_be_edited(tmp_path: Path, names, out: str, ending, words: str) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).touch()
    with pytest.raises(InputError, match=words):
        items_of_folder(tmp_path / "in", tmp_path / out, PARAMS, ending=ending)


# -- one after another ----------------------------------------------------------------------------------------------


@pytest.fixture
def setup(checkpoint_folder: Path) -> EditorSetup:
    return EditorSetup(str(checkpoint_folder), device="cpu")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, editor) -> None:
    """The editor that was loaded for all tests serves here; loading one takes longer than an edit."""
    monkeypatch.setattr(EditorSetup, "open", lambda self: contextlib.nullcontext(editor))


def test_a_clip_that_fails_does_not_stop_the_others(tmp_path: Path, setup: EditorSetup, editor) -> None:
    source = _clips(tmp_path / "in", 2)
    (source / "0bad.mp4").write_text("this is not a video")
    told: list[ClipResult] = []
    done = edit_many(items_of_folder(source, tmp_path / "out", PARAMS), setup, on_result=told.append)
    assert [clip.video.name for clip in done.clips] == ["0.mp4", "0bad.mp4", "1.mp4"]
    assert [clip.status for clip in done.clips] == ["done", "failed", "done"]
    assert done.exit_code == 2
    assert tuple(told) == done.clips
    assert "is not a video" in str(done.clips[1].error)
    (tmp_path / "by_hand").mkdir()
    for name in ("0.mp4", "1.mp4"):
        report = editor.edit_file(source / name, tmp_path / "by_hand" / name, PARAMS)
        (clip,) = (clip for clip in done.clips if clip.video.name == name)
        assert clip.report is not None
        assert clip.report.frames_sha256 == report.frames_sha256
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "by_hand")


def test_a_part_of_a_clip_is_an_item(tmp_path: Path, loaded: None) -> None:
    source = _clips(tmp_path / "in", 1, length=6)
    ranges = ((0.0, 0.08), (0.08, 0.24))
    items = [
        WorkItem(source / "0.mp4", tmp_path / "out" / f"{i}.mp4", replace(PARAMS, start=a, end=b))
        for i, (a, b) in enumerate(ranges)
    ]
    done = edit_many(items)
    assert [clip.report.num_frames for clip in done.clips if clip.report] == [2, 4]


def test_results_are_encoded_as_asked(tmp_path: Path, loaded: None) -> None:
    source = _clips(tmp_path / "in", 1)
    (item,) = items_of_folder(source, tmp_path / "out", PARAMS, ending=".mkv", codec="ffv1", lossless=True)
    assert edit_many([item]).exit_code == 0
    with av.open(str(tmp_path / "out" / "0.mkv")) as file:
        assert file.streams.video[0].codec_context.name == "ffv1"
    (item,) = items_of_folder(source, tmp_path / "out", PARAMS, codec="png")
    assert edit_many([item]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out" / "0").iterdir())[0] == "000000.png"
    assert edit_many([item], skip_existing=True).clips[0].status == "skipped"


def test_existing_results_are_replaced_or_skipped(tmp_path: Path, loaded: None) -> None:
    items = items_of_folder(_clips(tmp_path / "in", 2), tmp_path / "out", PARAMS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.mp4").write_text("from before")
    done = edit_many(items, skip_existing=True)
    assert [clip.status for clip in done.clips] == ["skipped", "done"]
    assert (done.exit_code, (tmp_path / "out" / "0.mp4").read_text()) == (0, "from before")
    done = edit_many(items[:1])
    assert (done.exit_code, done.clips[0].status) == (0, "done")
    assert (tmp_path / "out" / "0.mp4").read_bytes() != b"from before"


def test_a_clip_that_takes_too_long_is_given_up(tmp_path: Path, loaded: None) -> None:
    slow = replace(PARAMS, num_inference_steps=1000)
    (item,) = items_of_folder(_clips(tmp_path / "in", 1), tmp_path / "out", slow)
    done = edit_many([item], None, FleetOptions(item_timeout_s=0.5))
    assert done.exit_code == 1
    assert done.clips[0].error == f"{item.video} was not done after 0.5 s; allow more with --item-timeout."
    assert list((tmp_path / "out").iterdir()) == []


def test_a_job_is_cancelled_between_and_within_clips(tmp_path: Path, loaded: None) -> None:
    items = items_of_folder(_clips(tmp_path / "in", 3), tmp_path / "out", PARAMS)
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        edit_many(items, on_result=lambda _: cancel.set(), cancel=cancel)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.mp4"]


def test_an_interrupted_clip_goes_on(tmp_path: Path, loaded: None) -> None:
    params = replace(PARAMS, num_inference_steps=6, micro_batch=1)
    items = items_of_folder(_clips(tmp_path / "in", 1, length=6), tmp_path / "out", params)
    (whole,) = edit_many(items).clips
    expected = _bytes(tmp_path / "out")
    cancel = threading.Event()
    watcher = threading.Thread(target=_cancel_after_a_part, args=(tmp_path / "out" / "0.mp4.job", cancel))
    watcher.start()
    with pytest.raises(Cancelled):
        edit_many(items, cancel=cancel)
    watcher.join()
    (again,) = edit_many(items, options=FleetOptions(resume=True)).clips
    assert whole.report is not None
    assert again.report is not None
    assert again.report.resumed_batches > 0 == whole.report.resumed_batches
    assert _bytes(tmp_path / "out") == expected


def _cancel_after_a_part(journal: Path, cancel: threading.Event) -> None:
    deadline = time.monotonic() + 60
    while not list(journal.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    cancel.set()


@pytest.mark.parametrize(
    ("statuses", "code"),
    [("", 0), ("done skipped", 0), ("done 2 2", 2), ("2 1", 1), ("done 1", 1), ("2 130", 1)],
)
def test_exit_codes(statuses: str, code: int) -> None:
    clips = tuple(
        ClipResult(Path("in"), Path("out"), word, exit_code=0)  # type: ignore[arg-type]
        if word.isalpha()
        else ClipResult(Path("in"), Path("out"), "failed", "why", int(word))
        for word in statuses.split()
    )
    assert FleetReport(clips, 1.0).exit_code == code


# -- who edits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "gpus", "at_hand", "expected"),
    [
        ("auto", None, True, ("cuda", 1)),
        ("auto", None, False, ("cpu", 1)),
        ("auto", 0, True, ("cpu", 1)),
        ("auto", 4, False, ("cuda", 4)),
        ("cpu", None, True, ("cpu", 1)),
        ("cuda", None, False, ("cuda", 1)),
        ("cuda", 2, True, ("cuda", 2)),
        ("cpu", 1, True, "contradicts"),
        ("cuda", 0, True, "contradicts"),
        ("cuda:1", None, True, "Ray chooses"),
    ],
)
def test_gpus_of_an_editor(device: str, gpus: int | None, at_hand: bool, expected) -> None:
    setup = EditorSetup(device=device)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            with_gpus(setup, gpus, gpus_at_hand=at_hand, placed_by_ray=True)
    else:
        made = with_gpus(setup, gpus, gpus_at_hand=at_hand, placed_by_ray=True)
        assert (made.device, made.gpus) == expected


def test_room_is_counted_node_by_node() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 3.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 7.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert room_for_editors(nodes, cpus=1, gpus=0) == 16 + 2 + 7
    assert room_for_editors(nodes, cpus=4, gpus=0) == 4 + 0 + 1
    assert room_for_editors(nodes, cpus=1, gpus=1) == 3 + 2
    assert room_for_editors(nodes, cpus=1, gpus=2) == 1 + 2
    assert room_for_editors(nodes, cpus=1, gpus=16) == 0


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def _run(*arguments: object) -> tuple[int, str, str]:
        words = ["edit-many", str(tmp_path / "in"), "make it red", "-o", str(tmp_path / "out"), "--steps", "1"]
        code = cli.run([*words, "--model", str(checkpoint_folder), "--quiet", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return _run


def test_the_command_says_what_became_of_every_clip(run, tmp_path: Path) -> None:
    source = _clips(tmp_path / "in", 2)
    (source / "bad.mp4").write_text("this is not a video")
    (tmp_path / "more.json").write_text('{"layers": "decoder", "seed": 3, "anchors": 2}')
    report = tmp_path / "out" / "report.json"
    code, told, error = run("--report", report, "--params", tmp_path / "more.json", "--anchors", "0,1")
    assert code == 2
    assert error == "error: 1 of 3 clips could not be edited; see the table.\n"
    assert [line.split()[:2] for line in told.splitlines()[:3]] == [
        ["done", "0.mp4"],
        ["done", "1.mp4"],
        ["failed", "bad.mp4"],
    ]
    assert "2 of 3 clips are in" in told
    loaded = json.loads(report.read_text())
    assert (loaded["done"], loaded["failed"], loaded["skipped"]) == (2, 1, 0)
    params = loaded["clips"][0]["report"]["params"]
    assert (params["layers"], params["seed"], params["anchors"]) == ("decoder", 3, [0, 1])
    assert "is not a video" in loaded["clips"][2]["error"]
    (source / "bad.mp4").unlink()
    code, told, error = run("--skip-existing")
    assert (code, error) == (0, "")
    assert told.count("it was there before") == 2


def test_the_command_takes_methods_and_shots(run, tmp_path: Path) -> None:
    _clips(tmp_path / "in", 1)
    report = tmp_path / "out" / "report.json"
    assert run("--method", "per_frame", "--shots", "2", "--report", report)[0] == 0
    done = json.loads(report.read_text())["clips"][0]["report"]
    assert (done["params"]["method"], done["params"]["shots"]) == ("per_frame", [2])
    assert len(done["segments"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ray", "ray://host:1"], "--ray 'ray://host:1' is not served"),
        (["--editors", "2"], "--editors 2 is for Ray"),
        (["--ray", "local", "--editors", "0"], "--editors 0 is not possible"),
        (["--gpus-per-editor", "-1"], "--gpus-per-editor -1"),
        (["--gpus-per-editor", "1", "--device", "cpu"], "--gpus-per-editor 1 contradicts"),
        (["--item-timeout", "0"], "--item-timeout 0 is not possible"),
        (["--start-timeout", "inf"], "--start-timeout inf is not possible"),
        (["--ending", ".rm"], "'.rm'"),
        (["--crf", "70"], "--crf 70"),
        (["--codec", "prores"], "--codec 'prores' is not held by MP4; choose"),
        (["--codec", "png", "--ending", ".mov"], "--ending '.mov' does not go with codec = png"),
        (["--bit-depth", "9"], "--bit-depth 9"),
        (["--anchors", "some"], "'some' is neither"),
        (["--shots", "some"], "'some' is not known"),
        (["--method", "other"], "other"),
        (["--decoder", "{tmp}/nothing"], "nothing"),
        (["--seed", "-1"], "--seed -1"),
        (["--report", "{tmp}/report.txt"], "must end in .json"),
        (["--params", "{tmp}/none.json"], "cannot be read"),
        (["--params", "{tmp}/in/0.mp4"], "cannot be read|is not JSON"),
        (["--params", "{tmp}/odd.json"], "names 'stepz', which is none of"),
        (["--params", "{tmp}/list.json"], "holds no JSON object"),
        (["-o", "{tmp}/no/where"], "does not exist; create it"),
        (["-o", "{tmp}/odd.json"], "is not a folder"),
        (["--model", "{tmp}/none"], "neither a folder"),
        (["--ray", "127.0.0.1:9"], r"Ray is not installed; run: pip install 'fairy-runtime\[ray\]'"),
    ],
)
def test_wrong_options_are_one_sentence(
    run, tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    _clips(tmp_path / "in", 1)
    (tmp_path / "odd.json").write_text('{"stepz": 3}')
    (tmp_path / "list.json").write_text("[3]")
    code, told, error = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert told == ""


def test_torchrun_does_not_edit_a_folder_several_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert cli.run(["edit-many", str(tmp_path), "make it snow", "-o", str(tmp_path / "out")]) == 2
    assert "start edit-many without it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
