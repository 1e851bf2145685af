"""Many clips on Ray: the crew of editors on one that pretends, and a real cluster, of which one node is killed."""

import contextlib
import os
import re
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

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime import EditParams
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
from tests.runtime.conftest import make_frames, write_clip
from tests.runtime.ray_environment import ray_environment

PARAMS = EditParams("make it red", num_inference_steps=1)
PATIENT = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"}  # the minute that is usual is short for a busy machine


def _clips(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        write_clip(folder / f"{i}.mp4", make_frames(6, 32, 32, seed=i), sound=False)
    return folder


@pytest.fixture
def setup(checkpoint_folder: Path) -> EditorSetup:
    return EditorSetup(str(checkpoint_folder), device="cpu")


# -- the crew, on a Ray that only pretends -----------------------------------------------------------------------------


class _RayError(Exception):
    pass


class _PuppetRay:
    """The n-th editor answers as the n-th script says: ready, refuse, mute or die, then to items ok, hang or die."""

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
    values = ray_environment(folder) | PATIENT
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
    _none_left(values["RAY_AUTH_TOKEN"])


def _none_left(token: str) -> None:
    """No process of this cluster, of an editor or of its helpers is left, whoever is its parent now."""
    deadline = time.monotonic() + 20
    while (left := [process for process in psutil.process_iter() if _has(process, token)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.5)
    assert not left


def _has(process: psutil.Process, token: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("RAY_AUTH_TOKEN") == token
    except psutil.Error:
        return False


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
@pytest.mark.nightly
def test_a_node_killed_in_mid_run_changes_no_byte(cluster, tmp_path: Path, setup: EditorSetup, editor) -> None:
    params = replace(PARAMS, num_inference_steps=6, micro_batch=1)
    source = _clips(tmp_path / "in", 4)
    items = items_of_folder(source, tmp_path / "there", params)
    # Whoever is ready first is busy until the other one is.
    items = (replace(items[0], params=replace(params, num_inference_steps=24)), *items[1:])
    (tmp_path / "here").mkdir()
    expected = [editor.edit_file(item.video, tmp_path / "here" / item.out.name, item.params) for item in items]
    missing = WorkItem(source / "missing.mp4", tmp_path / "there" / "missing.mp4", params)
    killer = threading.Thread(target=_kill_in_mid_clip, args=(cluster, tmp_path / "there"))
    killer.start()
    done = edit_many([*items, missing], setup, FleetOptions(cluster.address, item_timeout_s=500))
    killer.join()
    assert not cluster.worker_nodes, "the node was never killed"
    assert [clip.status for clip in done.clips] == ["done"] * 4 + ["failed"], done
    assert "is not there on the node" in str(done.clips[4].error)
    (again,) = (clip.report for clip in done.clips if clip.redone)
    assert again is not None
    assert again.resumed_batches > 0
    for folder in (tmp_path / "here", tmp_path / "there"):
        assert sorted(path.name for path in folder.iterdir()) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    for mine, theirs in zip(expected, done.clips[:4], strict=True):
        assert theirs.report is not None
        assert mine.frames_sha256 == theirs.report.frames_sha256
        assert theirs.out.read_bytes() == (tmp_path / "here" / theirs.out.name).read_bytes()


def _kill_in_mid_clip(cluster: Any, out: Path) -> None:
    """Kill the second node, with all that runs on it, when its editor has finished a part of a clip, not the clip."""
    raylet = psutil.Process(cluster.worker.all_processes["raylet"][0].process.pid)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        processes = raylet.children(recursive=True)
        _to_all(processes, signal.SIGSTOP)  # nothing may be finished between the look and the kill
        if _parts_of(processes, out):
            cluster.remove_node(cluster.worker, allow_graceful=False)
            _to_all(processes, signal.SIGKILL)
            return
        _to_all(processes, signal.SIGCONT)
        time.sleep(0.1)


def _to_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _parts_of(processes: list[psutil.Process], out: Path) -> list[Path]:
    """Finished parts of the clip that these processes are writing."""
    found: list[Path] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for file in process.open_files():
                if (match := re.fullmatch(r"\.(.*)\.\w{8}\.part(\..*)", Path(file.path).name)) is not None:
                    found += (out / f"{match[1]}{match[2]}.job").glob("*.safetensors")
    return found


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_of_a_local_cluster(tmp_path: Path, checkpoint_folder: Path) -> None:
    pytest.importorskip("ray")
    source, out, home = _clips(tmp_path / "in", 1), tmp_path / "out", tmp_path / "home"
    home.mkdir()
    words = [source, "x", "-o", out, "--ray", "local", "--model", checkpoint_folder, "--steps", "1000", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # the names of Ray's sockets must stay short
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fairy.runtime.cli.main", "edit-many", *map(str, words)],
            env=os.environ | PATIENT | {"HOME": str(home), "TMPDIR": folder},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            _wait_for(lambda: out.is_dir() and list(out.glob(".*.part.mp4")), 300)
            started = psutil.Process(process.pid).children(recursive=True)
            places = {c.laddr.ip for p in started for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, error
        told = f"Interrupted; finished clips are in {out}; go on with --skip-existing --resume."
        assert error.splitlines()[-1] == f"error: {told}"
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
