"""Whatever happens to a store's files: no crash, nothing loaded that was not published, nothing written outside."""

import json
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairy.engines.store.key import request_digest
from fairy.engines.store.manifest import MANIFEST, Manifest, Untrusted
from fairy.engines.store.store import EngineStore
from tests.engines.test_store import DATA, KEY, OTHER, _build, _seen

FILES = (MANIFEST, "engine.bin", "parts/weights.bin")
paths = st.sampled_from(
    [
        "../outside",
        "/etc/passwd",
        "..",
        ".",
        "",
        "parts",
        "a/../b",
        "a//b",
        "\\..\\b",
        "a\0b",
        "\ud800",
        "~",
        "x" * 5000,
    ]
) | st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | paths,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(paths, inner, max_size=3),
    max_leaves=8,
)
damages = st.one_of(
    st.tuples(st.just("flip"), st.sampled_from(FILES), st.integers(0, 1 << 20), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.sampled_from(FILES), st.integers(0, 1 << 20), st.just(0)),
    st.tuples(st.just("insert"), st.sampled_from(FILES), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("swap"), st.sampled_from(FILES), st.sampled_from(FILES), st.just(0)),
    st.tuples(st.just("set"), st.lists(st.integers(0, 20), max_size=5), values, st.just(0)),
    st.tuples(st.just("rename"), paths, st.just(0), st.just(0)),
)


def _damage(folder: Path, kind: str, a: object, b: object, c: object) -> None:
    if kind in ("flip", "cut", "insert"):
        path = folder / str(a)
        data = bytearray(path.read_bytes())
        place = int(b) % max(1, len(data))
        if kind == "flip" and data:
            data[place] ^= c
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = c
        path.write_bytes(data)
    elif kind == "swap":
        one, two = (folder / str(a)).read_bytes(), (folder / str(b)).read_bytes()
        (folder / str(a)).write_bytes(two)
        (folder / str(b)).write_bytes(one)
    else:
        _damage_manifest(folder / MANIFEST, kind, a, b)


def _damage_manifest(path: Path, kind: str, a: object, b: object) -> None:
    """Put a value somewhere into the manifest's tree, or give a file another name there."""
    try:
        tree = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return
    if kind == "rename" and isinstance(tree, dict) and isinstance(tree.get("files"), dict) and tree["files"]:
        tree["files"][a] = tree["files"].pop(sorted(tree["files"])[0])
    elif kind == "set":
        _set(tree, list(a), b)
    path.write_text(json.dumps(tree))


def _set(tree: object, steps: list[int], value: object) -> None:
    for i, step in enumerate(steps):
        if not isinstance(tree, dict | list) or not tree:
            return
        name = sorted(tree)[step % len(tree)] if isinstance(tree, dict) else step % len(tree)
        if i == len(steps) - 1:
            tree[name] = value
        else:
            tree = tree[name]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(damages, min_size=1, max_size=3))
def test_damaged_entries_never_crash_never_load_never_reach_outside(damaged: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outside, root = Path(folder) / "outside", Path(folder) / "store"
        outside.write_text("untouched")
        store = EngineStore(root)
        entry = store.publish(KEY, _build)
        other = store.publish(OTHER, _build)
        for damage in damaged:
            _damage(entry.folder, *damage)
        for found in (store.find(KEY), *store.serving(request_digest(KEY.to_json()))):
            if found is not None and store.check(found):
                assert (found.folder / "engine.bin").read_bytes() == DATA
                assert (found.folder / "parts" / "weights.bin").read_bytes() == DATA[::-1]
                assert found.manifest.key == entry.manifest.key
                assert found.manifest.files == entry.manifest.files
        store.list()
        store.prune(lambda e: None)
        assert store.find(OTHER) == other
        store.publish(KEY, _build)
        assert store.find(KEY) is not None
        assert sorted(os.listdir(folder)) == ["outside", "store"]
        assert outside.read_text() == "untouched"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_manifest_or_refused(text: bytes) -> None:
    try:
        manifest = Manifest.parse(text, KEY.digest)
    except Untrusted:
        return
    raise AssertionError(f"{text!r} was taken for the manifest {manifest}")


def test_undamaged_entries_load(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    store.publish(KEY, _build)
    before = _seen(store.root)
    assert store.find(KEY) is not None
    assert store.prune(lambda e: None) == {}
    assert {name: seen for name, seen in before.items() if "locks/" not in name} == {
        name: seen for name, seen in _seen(store.root).items() if "locks/" not in name
    }
