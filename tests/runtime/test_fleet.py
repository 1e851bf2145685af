"""Many clips: which ones, what becomes of each, and a real Ray cluster of two nodes, one of which is killed."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fairy.kernels.errors import Cancelled, InputError, MachineError
from fairy.runtime import EditParams, cli
from fairy.runtime.fleet import (
    ClipResult,
    EditorSetup,
    FleetOptions,
    FleetReport,
    WorkItem,
    edit_many,
    items_of_folder,
    on_ray,
)
from fairy.runtime.fleet.setup import room_for_editors, with_gpus
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


@pytest.mark.parametrize(
    ("names", "out", "ending", "words"),
    [
        ((), "out", None, "has no videos"),
        (("a.txt",), "out", None, "has no videos"),
        (("a.mp4",), "in", None, "folder of the clips itself"),
        (("a.mp4",), "in/../in", None, "folder of the clips itself"),
        (("a.mp4", "a.mov"), "out", ".mkv", "a.mov and a.mp4 would both be written to .*a.mkv"),
        (("a.ts", "a.mts"), "out", None, "a.mts and a.ts would both"),
        (("a.mp4",), "out", ".gif", "'.gif'"),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ray", "ray://host:1"], "--ray 'ray://host:1' is not served"),
        (["--editors", "2"], "--editors 2 is for Ray"),
        (["--ray", "local", "--editors", "0"], "--editors 0 is not possible"),
        (["--gpus-per-editor", "-1"], "--gpus-per-editor -1"),
        (["--gpus-per-editor", "1", "--device", "cpu"], "--gpus-per-editor 1 contradicts"),
        (["--item-timeout", "0"], "0.0 s is no possible deadline"),
        (["--start-timeout", "inf"], "inf s is no possible deadline"),
        (["--ending", ".gif"], "'.gif'"),
        (["--crf", "70"], "--crf 70"),
        (["--anchors", "some"], "'some' is neither"),
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


# -- the crew, on a Ray that only pretends -----------------------------------------------------------------------------


class _RayError(Exception):
    pass


class _PuppetRay:
    """The n-th editor answers as the n-th script says: ready, refuse, mute or die, and then to items ok, hang or die."""

    def __init__(self, *scripts: str) -> None:
        self.scripts, self.killed, self.started = list(scripts), [], 0
        self.exceptions = types.SimpleNamespace(RayError=_RayError)
        self._answers: dict[object, Any] = {}

    def remote(self, **_: object) -> Any:
        return lambda cls: types.SimpleNamespace(remote=self._start)

    def _start(self, *_: object) -> Any:
        number, self.started = self.started, self.started + 1
        words = iter(self.scripts[number].split())
        editor = types.SimpleNamespace(number=number)
        editor.ready = types.SimpleNamespace(remote=lambda: self._answer(next(words), None))
        editor.edit = types.SimpleNamespace(remote=lambda item: self._answer(next(words), item))
        editor.stop = types.SimpleNamespace(remote=lambda: None)
        return editor

    def _answer(self, word: str, item: WorkItem | None) -> object:
        refused = ("The model is not there.", 2)
        answers = {"ready": None, "refuse": refused, "die": _RayError("It died.\nAnd more.")}
        ref = object()
        if word == "ok":
            assert item is not None
            self._answers[ref] = ClipResult(item.video, item.out, "done")
        elif word in answers:
            self._answers[ref] = answers[word]
        return ref

    def wait(self, refs: list[object], *, num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        done = [ref for ref in refs if ref in self._answers][:num_returns]
        if not done:
            time.sleep(min(timeout, 0.01))
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: object) -> Any:
        answer = self._answers[ref]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, editor: Any, *, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(editor.number)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Edit three items with editors that do as scripted."""
    monkeypatch.setattr(on_ray, "_GRACE_S", 0.1)
    monkeypatch.setattr(on_ray, "_STOP_S", 0.1)

    def _pretend(*scripts: str, **options: Any) -> tuple[_PuppetRay, FleetReport]:
        puppet = _PuppetRay(*scripts)
        monkeypatch.setattr(on_ray, "connected", lambda address: contextlib.nullcontext(puppet))
        items = [WorkItem(tmp_path / f"{i}.mp4", tmp_path / "out" / f"{i}.mp4", PARAMS) for i in range(3)]
        given = {"item_timeout_s": 0.1, "start_timeout_s": 0.3, "ray": "auto"} | options
        return puppet, edit_many(items, EditorSetup(device="cpu"), FleetOptions(**given))

    return _pretend


@pytest.mark.parametrize(
    ("scripts", "statuses", "killed"),
    [
        (["ready ok ok", "ready ok"], "done done done", {0, 1}),
        (["ready ok ok ok", "mute"], "done done done", {0, 1}),
        (["ready ok ok ok", "refuse"], "done done done", {0, 1}),
        (["ready ok ok ok", "die"], "done done done", {0, 1}),
        (["ready die", "mute", "ready ok ok"], "failed done done", {0, 1, 2}),
        (["ready hang", "mute", "ready ok ok"], "failed done done", {0, 1, 2}),
        (["ready ok die", "refuse", "refuse"], "done failed failed", {0, 1, 2}),
    ],
)
def test_an_editor_that_is_lost_costs_one_clip(pretend, scripts: list[str], statuses: str, killed: set[int]) -> None:
    ray, done = pretend(*scripts)
    assert [clip.status for clip in done.clips] == statuses.split()
    assert set(ray.killed) == killed
    assert ray.started == len(scripts)


def test_sentences_about_lost_editors(pretend) -> None:
    _, done = pretend("ready die", "mute", "ready hang", "ready ok")
    died, hung, _ = done.clips
    assert died.error == f"The editor of {died.video} was lost, and 2 times started again in vain (It died)."
    assert hung.error == f"{hung.video} was not done after 0.1 s; allow more with --item-timeout."
    assert done.exit_code == 1
    assert done.notes == (died.error,)


@pytest.mark.parametrize(
    ("scripts", "error", "words"),
    [
        (["refuse", "refuse"], InputError, "The model is not there"),
        (["die", "die"], MachineError, "could not be started .It died.; every node needs fairy-runtime"),
        (["mute", "mute"], MachineError, "No editor was ready after 0.3 s: each takes 0 GPU and 1 CPU"),
    ],
)
def test_a_job_without_any_editor_is_refused(pretend, scripts: list[str], error, words: str) -> None:
    with pytest.raises(error, match=words):
        pretend(*scripts)


# -- a real cluster -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this host with room for one editor each; on the loopback interface, with a token."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the names of Ray's sockets must stay short
    values = {
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node)
        try:
            made.worker = made.add_node(**node)
            yield made
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
    _none_left()


def _none_left() -> None:
    """No process of Ray, of an editor or of its helpers is left below this one."""
    deadline = time.monotonic() + 20
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


@pytest.mark.slow
def test_what_a_cluster_cannot_do_is_said(cluster, tmp_path: Path, setup: EditorSetup, monkeypatch) -> None:
    items = items_of_folder(_clips(tmp_path / "in", 1), tmp_path / "out", PARAMS)
    there = FleetOptions(cluster.address, start_timeout_s=1.0)
    with pytest.raises(MachineError, match="No editor was ready after 1 s: each takes 2 GPU and 1 CPU"):
        edit_many(items, replace(setup, device="cuda"), replace(there, gpus_per_editor=2))
    with pytest.raises(InputError, match="neither a folder"):
        edit_many(items, replace(setup, model=str(tmp_path / "none")), FleetOptions(cluster.address, editors=1))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_node_killed_in_mid_run_changes_no_byte(cluster, tmp_path: Path, setup: EditorSetup, editor) -> None:
    params = replace(PARAMS, num_inference_steps=8)
    source = _clips(tmp_path / "in", 3)
    items = items_of_folder(source, tmp_path / "there", params)
    (tmp_path / "here").mkdir()
    expected = [editor.edit_file(item.video, tmp_path / "here" / item.out.name, params) for item in items]
    missing = WorkItem(source / "missing.mp4", tmp_path / "there" / "missing.mp4", params)
    killer = threading.Thread(target=_kill_when_both_edit, args=(cluster, tmp_path / "there"))
    killer.start()
    done = edit_many([*items, missing], setup, FleetOptions(cluster.address, item_timeout_s=120))
    killer.join()
    assert not cluster.worker_nodes, "the node was never killed"
    assert [clip.status for clip in done.clips] == ["done"] * 3 + ["failed"], done
    assert "is not there on the node" in str(done.clips[3].error)
    assert [clip.redone for clip in done.clips].count(True) == 1
    assert _bytes(tmp_path / "there") == _bytes(tmp_path / "here")
    for mine, theirs in zip(expected, done.clips[:3], strict=True):
        assert theirs.report is not None
        assert mine.frames_sha256 == theirs.report.frames_sha256


def _kill_when_both_edit(cluster: Any, out: Path) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if out.is_dir() and len(list(out.glob(".*.part.mp4"))) == 2:
            cluster.remove_node(cluster.worker, allow_graceful=False)
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_of_a_local_cluster(tmp_path: Path, checkpoint_folder: Path) -> None:
    pytest.importorskip("ray")
    source, out, home = _clips(tmp_path / "in", 1), tmp_path / "out", tmp_path / "home"
    home.mkdir()
    words = [source, "x", "-o", out, "--ray", "local", "--model", checkpoint_folder, "--steps", "1000", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # the names of Ray's sockets must stay short
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fairy.runtime.cli", "edit-many", *map(str, words)],
            env=os.environ | {"HOME": str(home), "TMPDIR": folder},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            _wait_for(lambda: out.is_dir() and list(out.glob(".*.part.mp4")), 150)
            started = psutil.Process(process.pid).children(recursive=True)
            places = {c.laddr.ip for p in started for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, error
        assert error.splitlines()[-1] == f"error: Interrupted; the clips that were finished are in {out}."
        assert list(out.iterdir()) == []
        assert len(started) > 3
        assert not psutil.wait_procs(started, timeout=20)[1]
        assert places <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert list(Path(folder).iterdir()) == []
        assert list(home.iterdir()) == []


def _wait_for(happened: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
