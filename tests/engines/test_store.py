"""The store: what was published is found whole, what is not what was published is a miss, and builds never mix."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairy.engines.engine import BuildOptions, Shapes
from fairy.engines.store import store as stores
from fairy.engines.store.key import EngineKey, canonical_digest, request_digest
from fairy.engines.store.manifest import MANIFEST, Provenance
from fairy.engines.store.store import Broken, EngineStore, StoredEngine, store_root
from fairy.export.graphs import vae_decoder_spec
from fairy.kernels.errors import Cancelled, InputError, MachineError

KEY = EngineKey("w", vae_decoder_spec(4), "tensorrt", "cuda", "float16", None, BuildOptions(), (("v", "1"),), "s")
OTHER = replace(KEY, weights="x")
MADE = Provenance("model", "fairy build", {"build": 1.5}, {"image": 1e-6})
DATA = bytes(range(256)) * 40
fork = multiprocessing.get_context("fork")


def _build(folder: Path, data: bytes = DATA) -> Provenance:
    (folder / "engine.bin").write_bytes(data)
    (folder / "parts").mkdir()
    (folder / "parts" / "weights.bin").write_bytes(data[::-1])
    return MADE


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


@pytest.fixture
def entry(store: EngineStore) -> StoredEngine:
    return store.publish(KEY, _build)


def _seen(folder: Path) -> dict[str, object]:
    """Every name below a folder, with its kind, mode and contents."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def test_what_was_published_is_found(store: EngineStore, entry: StoredEngine) -> None:
    found = EngineStore(store.root).find(KEY)
    assert found == entry
    assert entry.digest == KEY.digest
    assert (entry.folder / "engine.bin").read_bytes() == DATA
    assert (entry.folder / "parts" / "weights.bin").read_bytes() == DATA[::-1]
    assert entry.manifest.made == MADE
    assert entry.manifest.key == json.loads(json.dumps(KEY.to_json()))
    assert entry.manifest.num_bytes == 2 * len(DATA)
    assert store.find(OTHER) is None


def test_everything_is_private(store: EngineStore, entry: StoredEngine) -> None:
    for path in (store.root, *store.root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_a_lax_umask_opens_nothing(store: EngineStore) -> None:
    before = os.umask(0)
    try:
        store.publish(KEY, _build)
    finally:
        os.umask(before)
    assert store.find(KEY) is not None
    assert all(path.stat().st_mode & 0o077 == 0 for path in (store.root / "entries").rglob("*"))


def test_looking_creates_nothing(store: EngineStore) -> None:
    assert store.find(KEY) is None
    assert store.list() == ()
    assert store.serving("x") == ()
    assert not store.root.exists()


def test_it_is_built_once(store: EngineStore, entry: StoredEngine) -> None:
    def build(folder: Path) -> Provenance:
        raise AssertionError("built again")

    assert store.publish(KEY, build) == entry


def _build_slowly(root: Path, log: Path, started: object) -> None:
    def build(folder: Path) -> Provenance:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        started.set()  # type: ignore[attr-defined]
        time.sleep(0.5)
        return _build(folder)

    EngineStore(root).publish(KEY, build)


def test_processes_that_want_the_same_engine_build_it_once(store: EngineStore, tmp_path: Path) -> None:
    log, started = tmp_path / "log", fork.Event()
    workers = [fork.Process(target=_build_slowly, args=(store.root, log, started)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(log.read_text().split()) == 1
    assert store.find(KEY) is not None
    assert not list((store.root / "building").iterdir())


def test_waiting_for_another_process_can_be_given_up(store: EngineStore, tmp_path: Path) -> None:
    started = fork.Event()
    worker = fork.Process(target=_build_slowly, args=(store.root, tmp_path / "log", started))
    worker.start()
    assert started.wait(30)
    with pytest.raises(Cancelled, match="another process"):
        store.publish(KEY, _build, lambda: False)
    assert store.prune(lambda entry: None) == {}  # what is being built is left alone
    worker.join(30)
    assert worker.exitcode == 0
    assert store.find(KEY) is not None


def _build_and_die(root: Path, when: str) -> None:
    def build(folder: Path) -> Provenance:
        _build(folder)
        if when == "building":
            os.kill(os.getpid(), signal.SIGKILL)
        return MADE

    if when == "sealed":
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    EngineStore(root).publish(KEY, build)


@pytest.mark.parametrize("when", ["building", "sealed"])
@pytest.mark.parametrize("tidied_by", ["the next build", "prune"])
def test_a_killed_build_leaves_nothing_that_loads(store: EngineStore, when: str, tidied_by: str) -> None:
    worker = fork.Process(target=_build_and_die, args=(store.root, when))
    worker.start()
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL
    assert list((store.root / "building").iterdir())
    assert store.find(KEY) is None
    assert store.list() == ()
    if tidied_by == "prune":
        store.prune(lambda entry: None)
        assert not list((store.root / "locks").iterdir())
    else:
        store.publish(KEY, _build)
        assert store.find(KEY) is not None
    assert not list((store.root / "building").iterdir())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), MachineError, "Nothing was stored in .* disk is full"),
        (OSError(errno.EIO, "Input/output error"), MachineError, "Nothing was stored in .*: Input/output error."),
        (Cancelled("Stopped."), Cancelled, "Stopped."),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failed_build_leaves_nothing(store: EngineStore, error: BaseException, kind: type, words: str | None) -> None:
    def build(folder: Path) -> Provenance:
        _build(folder)
        raise error

    with pytest.raises(kind, match=words):
        store.publish(KEY, build)
    assert store.list() == ()
    assert not list((store.root / "building").iterdir())
    store.publish(KEY, _build)


def _build_beyond_the_limit(root: Path, pipe: object) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        EngineStore(root).publish(KEY, _build)
    except MachineError as error:
        pipe.send(str(error))  # type: ignore[attr-defined]


def test_a_file_that_cannot_grow_is_one_sentence(store: EngineStore) -> None:
    receive, send = fork.Pipe(duplex=False)
    worker = fork.Process(target=_build_beyond_the_limit, args=(store.root, send))
    worker.start()
    worker.join(30)
    assert receive.poll(5)
    assert receive.recv() == f"Nothing was stored in {store.root}: File too large."
    assert store.list() == ()


def _flip(path: Path, place: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def _edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _replace_by_link(path: Path, target: Path) -> None:
    shutil.move(path, target)
    path.symlink_to(target)


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _rename_file(folder: Path, name: str) -> None:
    """The same file under another name, in the manifest too."""
    _edit_manifest(folder, lambda m: m["files"].update({name: m["files"].pop("engine.bin")}))


BREAKS: dict[str, Callable[[Path, Path], object]] = {
    "a bit flipped": lambda e, out: _flip(e / "engine.bin"),
    "a bit flipped in a subfolder": lambda e, out: _flip(e / "parts" / "weights.bin"),
    "truncated": lambda e, out: os.truncate(e / "engine.bin", 100),
    "grown": lambda e, out: (e / "engine.bin").write_bytes(DATA + b"x"),
    "a file missing": lambda e, out: (e / "engine.bin").unlink(),
    "a file too many": lambda e, out: (e / "engine.bin.data").write_bytes(b"x"),
    "two files swapped": lambda e, out: (
        (e / "engine.bin").write_bytes(DATA[::-1]),
        (e / "parts" / "weights.bin").write_bytes(DATA),
    ),
    "a link": lambda e, out: _replace_by_link(e / "engine.bin", out / "elsewhere"),
    "a subfolder that is a link": lambda e, out: _replace_by_link(e / "parts", out / "elsewhere"),
    "a second name": lambda e, out: os.link(e / "engine.bin", out / "elsewhere"),
    "a pipe": lambda e, out: _replace_by_pipe(e / "engine.bin"),
    "writable by the group": lambda e, out: (e / "engine.bin").chmod(0o620),
    "writable by all": lambda e, out: (e / "parts" / "weights.bin").chmod(0o602),
    "a folder writable by all": lambda e, out: e.chmod(0o707),
    "a subfolder writable by the group": lambda e, out: (e / "parts").chmod(0o770),
    "no manifest": lambda e, out: (e / MANIFEST).unlink(),
    "an empty manifest": lambda e, out: (e / MANIFEST).write_bytes(b""),
    "a manifest that is a list": lambda e, out: (e / MANIFEST).write_text("[1]"),
    "a deep manifest": lambda e, out: (e / MANIFEST).write_text("[" * 100_000),
    "a manifest that is a link": lambda e, out: _replace_by_link(e / MANIFEST, out / "elsewhere"),
    "a manifest that is a pipe": lambda e, out: _replace_by_pipe(e / MANIFEST),
    "a manifest writable by all": lambda e, out: (e / MANIFEST).chmod(0o666),
    "another format": lambda e, out: _edit_manifest(e, lambda m: m.update(format=2)),
    "another key": lambda e, out: _edit_manifest(e, lambda m: m["key"].update(weights="x")),
    "another digest": lambda e, out: _edit_manifest(e, lambda m: m.update(digest=OTHER.digest)),
    "no files": lambda e, out: _edit_manifest(e, lambda m: m.update(files={})),
    "files of an odd kind": lambda e, out: _edit_manifest(e, lambda m: m.update(files=[["engine.bin", 1]])),
    "a negative size": lambda e, out: _edit_manifest(e, lambda m: m["files"]["engine.bin"].update(bytes=-1)),
    "a size that is a truth": lambda e, out: _edit_manifest(e, lambda m: m["files"]["engine.bin"].update(bytes=True)),
    "an odd hash": lambda e, out: _edit_manifest(e, lambda m: m["files"]["engine.bin"].update(sha256="0" * 64)),
    "a path upwards": lambda e, out: _rename_file(e, "../engine.bin"),
    "a path up and down": lambda e, out: _rename_file(e, f"parts/../../{KEY.digest}/engine.bin"),
    "an absolute path": lambda e, out: _rename_file(e, str(e / "engine.bin")),
    "a path with a dot": lambda e, out: _rename_file(e, "./engine.bin"),
    "an empty path": lambda e, out: _rename_file(e, ""),
    "a path with a null": lambda e, out: _rename_file(e, "engine.bin\0"),
    "the folder is a file": lambda e, out: (shutil.rmtree(e), e.write_text("x")),
    "the folder is a link": lambda e, out: _replace_by_link(e, out / "elsewhere"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_whatever_is_not_what_was_published_is_a_miss(
    store: EngineStore, entry: StoredEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    BREAKS[name](entry.folder, outside)
    kept = _seen(outside)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert store.find(KEY) is None
            assert [e for e in store.serving(request_digest(KEY.to_json())) if store.check(e)] == []
    (line,) = caplog.messages
    assert line.startswith(f"the engine {KEY.digest[:12]} in {store.root} is not used: ")
    assert "\n" not in line
    with pytest.raises(InputError, match="is broken"):
        store.verify(KEY.digest[:10])
    again = store.publish(KEY, _build)
    assert (again.folder / "engine.bin").read_bytes() == DATA
    assert store.find(KEY) == again
    if "second name" not in name:
        assert _seen(outside) == kept


@pytest.mark.parametrize("name", BREAKS)
def test_prune_removes_what_is_broken_and_nothing_else(
    store: EngineStore, entry: StoredEngine, tmp_path: Path, name: str
) -> None:
    whole = store.publish(OTHER, _build)
    outside = tmp_path / "outside"
    outside.mkdir()
    BREAKS[name](entry.folder, outside)
    kept = _seen(outside)
    removed = store.prune(lambda entry: None)
    assert list(removed) == [KEY.digest]
    assert not os.path.lexists(entry.folder)
    assert store.list() == (whole,)
    assert _seen(outside) == kept


def test_what_belongs_to_somebody_else_is_a_miss(
    store: EngineStore, entry: StoredEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert store.find(KEY) is None
    assert store.list() == ()
    with pytest.raises(InputError, match="belongs to another user"):
        store.publish(KEY, _build)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize("name", [".", "engine.bin", "parts", "parts/weights.bin", MANIFEST])
def test_a_file_of_another_user_is_a_miss(store: EngineStore, entry: StoredEngine, name: str) -> None:
    os.chown(entry.folder / name, 12345, -1)
    assert store.find(KEY) is None


def test_an_entry_under_another_name_is_a_miss(store: EngineStore, entry: StoredEngine) -> None:
    shutil.copytree(entry.folder, store.root / "entries" / OTHER.digest)
    (store.root / "entries" / "notes.txt").write_text("x")
    assert store.find(OTHER) is None
    problems = {e.digest: e.problem for e in store.list() if isinstance(e, Broken)}
    assert problems == {
        OTHER.digest: "its manifest is that of another engine",
        "notes.txt": "its name is not a digest",
    }
    assert set(store.prune(lambda e: None)) == {OTHER.digest, "notes.txt"}
    assert store.list() == (entry,)


def test_an_odd_name_stays_in_its_line(store: EngineStore, entry: StoredEngine, caplog) -> None:
    (store.root / "entries" / "a\n\x1b[2Jb").mkdir(mode=0o700)
    assert store.engines() == (entry,)
    assert caplog.messages == [f"the engine a\\n\\x1b[2Jb in {store.root} is not used: its name is not a digest"]
    assert list(store.prune(lambda e: None)) == ["a\n\x1b[2Jb"]


def test_an_open_store_is_not_used(store: EngineStore, entry: StoredEngine) -> None:
    store.root.chmod(0o755)
    assert store.find(KEY) is None
    with pytest.raises(InputError, match=f"open to other users.*chmod 700 {store.root}"):
        store.publish(OTHER, _build)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="open to other users"):
        EngineStore(tmp_path / "mine").publish(KEY, _build)
    assert list(_seen(tmp_path / "mine")) == ["notes.txt"]


def test_an_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    EngineStore(tmp_path / "mine").publish(KEY, _build)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700


@pytest.mark.parametrize("part", ["", "entries", "building", "locks"])
def test_nothing_is_written_through_a_link(store: EngineStore, tmp_path: Path, part: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    if part:
        store.root.mkdir(mode=0o700)
    (store.root / part).symlink_to(outside)
    assert store.find(KEY) is None
    with pytest.raises(InputError, match="is not a folder"):
        store.publish(KEY, _build)
    with pytest.raises(InputError, match="is not a folder"):
        store.prune(lambda entry: "all")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_builder_may_not_leave_links(store: EngineStore, tmp_path: Path, link: Callable) -> None:
    (tmp_path / "elsewhere").write_bytes(DATA)

    def build(folder: Path) -> Provenance:
        link(tmp_path / "elsewhere", folder / "engine.bin")
        return MADE

    with pytest.raises(MachineError, match=r"cannot be stored: the file 'engine.bin' (is a link|has more than one)"):
        store.publish(KEY, build)
    assert store.list() == ()


def test_the_newest_engine_that_serves_a_request_comes_first(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = Shapes((64, 64, 64), (64, 64, 64), (1, 1, 1), anchors=1)

    class _Clock:
        years = iter((2030, 2020, 2025))

        @classmethod
        def now(cls, zone: object):
            return stores_datetime(next(cls.years), 1, 1, tzinfo=stores.UTC)

    stores_datetime = stores.datetime
    monkeypatch.setattr(stores, "datetime", _Clock)
    keys = [KEY, replace(KEY, shapes=shapes), replace(KEY, options=BuildOptions(optimization_level=5))]
    for key in keys:
        store.publish(key, _build)
    found = store.serving(request_digest(KEY.to_json()))
    assert [entry.digest for entry in found] == [keys[i].digest for i in (0, 2, 1)]
    assert found[2].manifest.shapes == shapes


def test_an_engine_is_named_by_the_beginning_of_its_digest(store: EngineStore, entry: StoredEngine) -> None:
    assert store.verify(KEY.digest[:6]) == entry
    for wrong, words in (("zz", "is no engine"), ("", "is no engine")):
        with pytest.raises(InputError, match=words):
            store.verify(wrong)


def test_prune_removes_what_it_is_given_a_reason_for(store: EngineStore, entry: StoredEngine) -> None:
    other = store.publish(OTHER, _build)
    assert store.prune(lambda e: "old" if e.digest == KEY.digest else None) == {KEY.digest: "old"}
    assert store.list() == (other,)


def test_prune_looks_again_at_what_was_built_anew_meanwhile(store: EngineStore, entry: StoredEngine) -> None:
    """Another process may rebuild an engine between the first look, which reads all files, and the lock."""
    whole = {path: path.read_bytes() for path in entry.folder.rglob("*") if path.is_file()}
    damaged = next(path for path in whole if path.name == "engine.bin")
    damaged.write_bytes(b"broken")
    locked = stores.locked_if_free

    @contextmanager
    def rebuilt_first(path: Path) -> Iterator[bool]:
        damaged.write_bytes(whole[damaged])
        with locked(path) as held:
            yield held

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "locked_if_free", rebuilt_first)
        assert store.prune(lambda entry: None) == {}
    assert store.check(entry)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["key"].pop("backend"),
        lambda tree: tree["key"].update(more=1),
        lambda tree: tree["key"].update(device="toaster"),
        lambda tree: tree["key"].update(precision=["float32"]),
        lambda tree: tree["made"].update(model="\ud800x"),
        lambda tree: tree["made"].update(command="fairy build \x1b[2J"),
        lambda tree: tree["made"].update(timings_s={"build": 10**400}),
    ],
)
def test_an_entry_that_agrees_with_itself_and_is_none_of_ours_can_be_pruned(
    store: EngineStore, entry: StoredEngine, change: Callable[[dict[str, Any]], object]
) -> None:
    tree = json.loads((entry.folder / MANIFEST).read_text())
    change(tree)
    tree["digest"] = canonical_digest(tree["key"])
    (entry.folder / MANIFEST).write_text(json.dumps(tree))
    entry.folder.rename(entry.folder.with_name(tree["digest"]))
    (found,) = store.list()
    assert isinstance(found, Broken)
    assert list(store.prune(lambda entry: None)) == [tree["digest"]]
    assert store.list() == ()


def test_folders_within_folders_do_not_end_the_process(store: EngineStore, entry: StoredEngine) -> None:
    deep = entry.folder.joinpath(*["d"] * 200)
    deep.mkdir(parents=True, mode=0o700)
    assert not store.check(entry)
    assert list(store.prune(lambda entry: None)) == [KEY.digest]


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAIRY_STORE", str(tmp_path / "a"))
    assert store_root() == tmp_path / "a"
    assert store_root(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("FAIRY_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert store_root() == tmp_path / "c" / "fairy" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_root() == tmp_path / ".cache" / "fairy" / "engines"
