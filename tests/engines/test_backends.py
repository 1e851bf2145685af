"""Which backend runs: "auto" with candidates that fail one by one, names that must serve, edits by the store."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.engines import build as builds
from fairy.engines.backend_names import BUILDABLE
from fairy.engines.backends import make_backend, make_builder
from fairy.engines.build import ANY_SHAPE, BuildRequest, plan_build, run_build
from fairy.engines.compiled import CompiledBackend
from fairy.engines.engine import Shapes
from fairy.engines.store.store import EngineStore
from fairy.engines.stored import StoredBackend
from fairy.engines.verify import Comparison
from fairy.export.bases.stable_diffusion import EDIT_GRAPHS, graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime import EditParams
from fairy.runtime.editor import Editor
from tests.engines.fake_builder import FakeBuilder
from tests.runtime.conftest import make_frames

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = Shapes((64, 64, 64), (64, 64, 64), (1, 3, 3), anchors=2, tokens=16)
PARAMS = EditParams("x", num_inference_steps=1, anchors=1)
FRAMES = make_frames(3)


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path):
    return load_checkpoint(checkpoint_folder)


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


@pytest.fixture
def builders(checkpoint) -> dict[str, FakeBuilder]:
    return {name: FakeBuilder(checkpoint, name) for name in BUILDABLE}


def _build(checkpoint, builder: FakeBuilder, store: EngineStore, device: torch.device, **changes: object):
    """Engines of the fake; all but onnxruntime's serve a range of shapes. Returns digests by graph."""
    shapes = {} if builder.name in ANY_SHAPE else {"shapes": SHAPES}
    request = BuildRequest(builder.name, device, changes.pop("dtype", torch.float32), **{**shapes, **changes})
    planned = plan_build(checkpoint, request, builder, store)
    with pytest.MonkeyPatch.context() as patch:
        if device == CUDA:  # what was built for a GPU cannot be compared without one
            patch.setattr(builds, "compare", lambda *_: (Comparison("output", "", 0.0, 0.0),))
        entries = run_build(planned, checkpoint, builder, store, command="x")
    return {entry.manifest.key["graph"]["name"]: entry for entry in entries}


def _make(name: str, checkpoint, device: torch.device, store: EngineStore, builders: dict, dtype=torch.float32):
    return make_backend(name, checkpoint, device, dtype, store=store, builders=builders.__getitem__)


def _fail(how: str, builder: FakeBuilder, entries: dict) -> str:
    """Break a backend; returns what its reason must say."""
    if how == "libraries":
        builder.environment_error = MachineError("The libraries do not work here.")
        return "The libraries do not work here"
    if how == "packages":
        builder.environment_error = ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return "needs the package onnx; install it"
    if how == "load":
        builder.load_error["vae_decoder"] = RuntimeError("bad plan")
        return r"vae_decoder cannot be loaded \(RuntimeError: bad plan\)"
    if how == "file":
        (entries["unet_frame"].folder / "engine.json").write_text("{}")
        return "The engine .* of unet_frame is broken"
    if how == "versions":
        builder.version = "2"
        return "has no engine of text_encoder .* that was built by the versions installed now"
    (entries["unet_anchor"].folder / "manifest.json").unlink()
    return "has no engine of unet_anchor"


FAILURES = ("libraries", "packages", "load", "file", "versions", "entry")


@pytest.mark.parametrize("how", FAILURES)
def test_auto_on_a_cpu(checkpoint, store, builders, caplog: pytest.LogCaptureFixture, how: str) -> None:
    entries = _build(checkpoint, builders["onnxruntime"], store, CPU)
    with caplog.at_level(logging.INFO, "fairy.engines.backends"):
        assert _make("auto", checkpoint, CPU, store, builders).name == "onnxruntime"
        assert [record.message for record in caplog.records] == [f"backend onnxruntime, engines of {store.root}"]
        reason = _fail(how, builders["onnxruntime"], entries)
        caplog.clear()
        backend = _make("auto", checkpoint, CPU, store, builders)
    assert backend.name == "eager"
    (fallback,) = backend.take_usage().fallbacks
    assert fallback.startswith("onnxruntime was not used: ")
    assert re.search(reason, fallback), fallback
    (line,) = [record.message for record in caplog.records if record.name == "fairy.engines.backends"]
    assert line == f"backend eager; {fallback}"


@pytest.mark.parametrize(("first", "second"), zip(FAILURES, FAILURES[2:] + FAILURES[:2], strict=True))
def test_auto_on_a_gpu_takes_the_next_best(
    checkpoint, store, builders, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    entries = {name: _build(checkpoint, builders[name], store, CUDA) for name in ("tensorrt", "compiled")}
    _build(checkpoint, builders["onnxruntime"], store, CUDA)  # only by name
    assert _make("auto", checkpoint, CUDA, store, builders).name == "tensorrt"
    _fail(first, builders["tensorrt"], entries["tensorrt"])
    assert _make("auto", checkpoint, CUDA, store, builders).name == "compiled"
    _fail(second, builders["compiled"], entries["compiled"])
    backend = _make("auto", checkpoint, CUDA, store, builders)
    assert backend.name == "cuda-graphs"
    reasons = backend.take_usage().fallbacks
    assert [reason.split(" was not used: ")[0] for reason in reasons] == ["tensorrt", "compiled"]
    assert builders["onnxruntime"].loaded == list(EDIT_GRAPHS)  # when it was built, never by auto


def test_auto_with_nothing_built_is_eager_and_says_nothing(checkpoint, store, builders) -> None:
    def fail(name: str) -> FakeBuilder:
        raise AssertionError("a builder was made for an empty store")

    backend = make_backend("auto", checkpoint, CPU, torch.float32, store=store, builders=fail)
    assert backend.name == "eager"
    assert backend.take_usage().fallbacks == ()
    _build(checkpoint, builders["tensorrt"], store, CUDA)  # engines of another device
    backend = _make("auto", checkpoint, CPU, store, builders)
    assert (backend.name, backend.take_usage().fallbacks) == ("eager", ())


@pytest.mark.parametrize("how", FAILURES)
def test_a_backend_asked_for_by_name_serves_or_says_why(checkpoint, store, builders, how: str) -> None:
    entries = _build(checkpoint, builders["onnxruntime"], store, CPU)
    reason = _fail(how, builders["onnxruntime"], entries)
    with pytest.raises((InputError, MachineError), match=reason):
        _make("onnxruntime", checkpoint, CPU, store, builders)


def test_what_was_never_built_names_the_command(checkpoint, store, builders) -> None:
    words = f"fairy build {checkpoint.name} --backend tensorrt --precision float32 --device cuda --store {store.root}"
    with pytest.raises(InputError, match=words):
        _make("tensorrt", checkpoint, CUDA, store, builders)
    with pytest.raises(InputError, match="'fastest' is not available"):
        _make("fastest", checkpoint, CPU, store, builders)
    with pytest.raises(InputError, match="'eager' are not built"):
        make_builder("eager")


def test_compiled_takes_its_packages_or_compiles_on_the_spot(checkpoint, store, builders) -> None:
    backend = _make("compiled", checkpoint, CPU, store, builders)
    assert isinstance(backend, CompiledBackend)
    _build(checkpoint, builders["compiled"], store, CPU)
    assert isinstance(_make("compiled", checkpoint, CPU, store, builders), StoredBackend)
    assert _make("auto", checkpoint, CPU, store, builders).name == "eager"  # auto never takes it on a CPU


def _edit(backend, checkpoint, params: EditParams = PARAMS, dtype: torch.dtype = torch.float32, frames=FRAMES):
    return Editor(checkpoint, backend, device=CPU, dtype=dtype).edit(frames, params)


def test_an_edit_through_the_store_equals_eager_and_names_its_engines(checkpoint, store, builders) -> None:
    entries = _build(checkpoint, builders["onnxruntime"], store, CPU)
    backend = _make("onnxruntime", checkpoint, CPU, store, builders)
    editor = Editor(checkpoint, backend, device=CPU, dtype=torch.float32)
    for _ in range(2):  # every job reports its own
        result = editor.edit(FRAMES, PARAMS)
        assert result.report.backend == "onnxruntime"
        assert result.report.engine_digests == {name: entry.digest for name, entry in entries.items()}
        assert result.report.fallbacks == ()
    expected = _edit(_make("eager", checkpoint, CPU, store, builders), checkpoint)
    assert np.array_equal(result.frames, expected.frames)
    assert expected.report.engine_digests == {}
    editor.close()


def test_engines_are_loaded_once_and_only_after_their_files_were_checked(checkpoint, store, builders) -> None:
    builder = builders["onnxruntime"]
    entries = _build(checkpoint, builder, store, CPU)
    builder.loaded.clear()
    (entries["text_encoder"].folder / "parts" / "weights.bin").write_bytes(b"x" * 12000)
    with pytest.raises(InputError):
        _make("onnxruntime", checkpoint, CPU, store, builders)
    assert "text_encoder" not in builder.loaded
    builder.loaded.clear()
    _build(checkpoint, builder, store, CPU)  # mends it
    builder.loaded.clear()
    backend = _make("onnxruntime", checkpoint, CPU, store, builders)
    _edit(backend, checkpoint)
    assert builder.loaded == list(EDIT_GRAPHS)


def test_sizes_that_no_engine_serves(checkpoint, store, builders) -> None:
    """By name that is an error with the command; "auto" lets eager run, and reports it."""
    _build(checkpoint, builders["onnxruntime"], store, CPU)
    wide = make_frames(3, 48, 120)
    ranged = FakeBuilder(checkpoint, "tensorrt")
    _build(checkpoint, ranged, store, CPU)
    by_name = _make("tensorrt", checkpoint, CPU, store, {**builders, "tensorrt": ranged})
    assert _edit(by_name, checkpoint).report.backend == "tensorrt"
    with pytest.raises(InputError, match=r"that serves height 64 width 128.*--height 64 --width 128"):
        _edit(by_name, checkpoint, frames=wide)
    many = EditParams("x", num_inference_steps=1, anchors=5)
    with pytest.raises(InputError, match=r"no engine of unet_anchor .* that serves .* anchors 5; run .* --anchors 5 "):
        _edit(by_name, checkpoint, many, frames=make_frames(7, 48, 64))


def test_auto_lets_eager_run_what_the_store_lacks(checkpoint, store, builders) -> None:
    entries = _build(checkpoint, builders["onnxruntime"], store, CPU)
    backend = _make("auto", checkpoint, CPU, store, builders)
    plain = EditParams("x", num_inference_steps=1, anchors=0)
    report = _edit(backend, checkpoint, plain).report
    assert set(report.engine_digests) == {"text_encoder", "vae_encoder", "vae_decoder"}
    (fallback,) = report.fallbacks
    assert fallback.startswith("eager ran unet in float32: The store")
    report = _edit(backend, checkpoint).report
    assert report.fallbacks == ()
    assert report.engine_digests["unet_frame"] == entries["unet_frame"].digest
    by_name = _make("onnxruntime", checkpoint, CPU, store, builders)
    with pytest.raises(
        InputError, match="no engine of unet for onnxruntime in float32; run `fairy build .*--graphs unet"
    ):
        _edit(by_name, checkpoint, plain)
    with pytest.raises(InputError, match="run `fairy build .*--layers decoder"):
        _edit(by_name, checkpoint, EditParams("x", num_inference_steps=1, anchors=1, layers="decoder"))


@pytest.mark.slow
@pytest.mark.parametrize("built", [False, True], ids=["float32 by eager", "float32 from the store"])
def test_overflow_in_16_bit_is_done_again_in_float32(checkpoint_folder, store, builders, built: bool) -> None:
    low = load_checkpoint(checkpoint_folder, dtype=torch.bfloat16)
    builder = FakeBuilder(low)
    entries = _build(low, builder, store, CPU, dtype=torch.bfloat16)
    if built:
        full = FakeBuilder(load_checkpoint(checkpoint_folder))
        exact = _build(full.checkpoint, full, store, CPU)
        builder.load_error = {}
    backend = _make("onnxruntime", low, CPU, store, {**builders, "onnxruntime": builder}, torch.bfloat16)
    for graph in ("unet_anchor", "unet_frame"):
        stored = backend.engine(graph_specs(low)[graph])
        stored.load()
        engine = stored._choices[0].engine
        stored._choices[0].engine = _NaN(engine)
    if built:
        builder.checkpoint = full.checkpoint  # what the fake loads in float32
    report = _edit(backend, low, dtype=torch.bfloat16).report
    assert report.engine_digests["unet_anchor"] == entries["unet_anchor"].digest
    assert any("computed again in float32" in fallback for fallback in report.fallbacks)
    by_eager = [fallback for fallback in report.fallbacks if fallback.startswith("eager ran unet_frame in float32")]
    assert bool(by_eager) != built
    if built:
        assert report.engine_digests["unet_frame in float32"] == exact["unet_frame"].digest


class _NaN:
    """An engine that overflows."""

    def __init__(self, engine) -> None:
        self.engine, self.spec = engine, engine.spec

    def __call__(self, inputs, out=None):
        return {name: tensor.fill_(float("nan")) for name, tensor in self.engine(inputs, out).items()}

    def close(self) -> None:
        self.engine.close()


def test_a_closed_backend_closes_its_engines(checkpoint, store, builders) -> None:
    _build(checkpoint, builders["onnxruntime"], store, CPU)
    backend = _make("onnxruntime", checkpoint, CPU, store, builders)
    engine = backend.engine(graph_specs(checkpoint)["vae_decoder"])
    inner = engine._choices[0].engine
    backend.close()
    with pytest.raises(InputError, match="was closed"):
        inner({"latents": torch.zeros(1, 4, 8, 8)})
