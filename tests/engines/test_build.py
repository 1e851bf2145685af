"""Builds: planned, estimated, done once, compared with eager before they are published."""

import shutil
from pathlib import Path

import pytest
import torch

from fairy.engines import build as builds
from fairy.engines.build import BuildRequest, num_parameters, plan_build, run_build, stale_reason
from fairy.engines.engine import BuildOptions, EngineSpec, Shapes
from fairy.engines.store.store import EngineStore, StoredEngine
from fairy.engines.verify import compare, errors_by_output
from fairy.export.bases.stable_diffusion import EDIT_GRAPHS, graph_specs
from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import Cancelled, InputError, MachineError
from tests.engines.fake_builder import FakeBuilder, Spoiled

CPU = torch.device("cpu")
SHAPES = Shapes((64, 64, 128), (64, 64, 128), (1, 1, 2), anchors=1, tokens=16)


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path):
    return load_checkpoint(checkpoint_folder)


@pytest.fixture
def builder(checkpoint) -> FakeBuilder:
    return FakeBuilder(checkpoint)


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def _request(*graphs: str, backend: str = "onnxruntime", **changes: object) -> BuildRequest:
    return BuildRequest(backend, CPU, torch.float32, graphs=graphs or None, **changes)


def _run(request: BuildRequest, checkpoint, builder: FakeBuilder, store: EngineStore, **more: object):
    planned = plan_build(checkpoint, request, builder, store)
    return run_build(planned, checkpoint, builder, store, command="fairy build x", **more)


def test_a_build_makes_what_an_edit_needs_once(checkpoint, builder: FakeBuilder, store: EngineStore) -> None:
    first = _run(_request(), checkpoint, builder, store)
    assert builder.built == list(EDIT_GRAPHS)
    assert [entry.manifest.key["graph"]["name"] for entry in first] == list(EDIT_GRAPHS)
    assert _run(_request(), checkpoint, builder, store) == first
    assert builder.built == list(EDIT_GRAPHS)
    _run(_request("unet"), checkpoint, builder, store)
    assert builder.built[len(EDIT_GRAPHS) :] == ["unet"]


def test_the_manifest_says_how_it_was_made(checkpoint, builder: FakeBuilder, store: EngineStore) -> None:
    (entry,) = _run(_request("unet_anchor"), checkpoint, builder, store)
    made = entry.manifest.made
    assert made.command == "fairy build x"
    assert load_checkpoint(made.model).name == made.model
    assert set(made.timings_s) == {"build", "load", "verify"}
    outputs = {tensor.name for tensor in graph_specs(checkpoint)["unet_anchor"].outputs}
    assert set(made.errors) == outputs
    assert max(made.errors.values()) < 1e-6


@pytest.mark.parametrize(
    "change",
    [lambda t: t + 0.01 * t.std() * torch.randn(t.shape), lambda t: t * float("nan"), lambda t: t.roll(1, -1)],
    ids=["noise", "nan", "shifted"],
)
def test_an_engine_that_computes_something_else_is_not_stored(
    checkpoint, builder: FakeBuilder, store: EngineStore, change
) -> None:
    builder.changes["vae_decoder"] = change
    with pytest.raises(MachineError, match="engine of vae_decoder was not stored: its output image is"):
        _run(_request("vae_encoder", "vae_decoder"), checkpoint, builder, store)
    assert [entry.manifest.key["graph"]["name"] for entry in store.engines()] == ["vae_encoder"]


def test_errors_are_those_of_float64_arithmetic(checkpoint, builder: FakeBuilder) -> None:
    """The comparison itself, against norms computed here in float64 from an engine with a known offset."""
    graph = graph_specs(checkpoint)["vae_decoder"]
    spec = EngineSpec(graph, "x", "cpu", "float32")
    seen = []

    class _Offset:
        spec = EngineSpec(graph, "x", "cpu", "float32")

        def __call__(self, inputs, out=None):
            from fairy.engines.eager import EagerBackend

            exact = EagerBackend(checkpoint, CPU, torch.float32).engine(graph)(inputs)["image"]
            seen.append(exact.double())
            return {"image": exact + 0.25}

        def close(self) -> None: ...

    found = compare(_Offset(), checkpoint, None, CPU)
    assert len(found) == len(seen) == 2
    for comparison, exact in zip(found, seen, strict=True):
        assert comparison.largest == pytest.approx(0.25, rel=1e-4)
        assert comparison.relative == pytest.approx(0.25 * exact.numel() ** 0.5 / float(exact.norm()), rel=1e-4)
    assert errors_by_output(found) == {"image": max(c.relative for c in found)}
    assert spec == _Offset.spec


def test_a_build_is_stopped_between_steps(checkpoint, builder: FakeBuilder, store: EngineStore) -> None:
    told = []

    def stop_at_the_second(phase: str, done: int, total: int) -> bool:
        told.append((phase, done, total))
        return phase.startswith("vae_encoder")

    with pytest.raises(Cancelled):
        _run(_request("vae_encoder", "vae_decoder"), checkpoint, builder, store, on_progress=stop_at_the_second)
    assert told[0] == ("vae_encoder: make", 0, 2)
    assert told[-1] == ("vae_decoder: make", 0, 2)
    assert ("vae_encoder: verify", 1, 1) in told
    assert len(store.engines()) == 1
    assert not list((store.root / "building").iterdir())


def test_estimates_follow_the_weights_and_then_the_clock(checkpoint, builder: FakeBuilder, store: EngineStore) -> None:
    (plan,) = plan_build(checkpoint, _request("unet_frame"), builder, store)
    weights = sum(p.numel() for p in checkpoint.unet.parameters())
    assert num_parameters(checkpoint, plan.spec.graph) == weights
    assert 4 * weights < plan.estimate.disk_bytes < 4 * weights + (8 << 20)
    assert plan.estimate.memory_bytes > 8 * weights
    assert not plan.estimate.measured
    assert plan.stored is None
    assert not store.root.exists()  # planning writes nothing
    graphs = graph_specs(checkpoint)
    vae = [num_parameters(checkpoint, graphs[name]) for name in ("vae_encoder", "vae_decoder")]
    assert sum(vae) < sum(p.numel() for p in checkpoint.vae.parameters())


def test_an_estimate_prefers_what_was_measured(
    checkpoint, builder: FakeBuilder, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "_GRAPH_BYTES", 0)
    monkeypatch.setattr(builds, "num_parameters", lambda *_: 2000)  # as large as what the fake writes
    (entry,) = _run(_request("vae_encoder"), checkpoint, builder, store)
    (plan,) = plan_build(checkpoint, _request("vae_encoder"), builder, store)
    assert plan.stored == entry
    assert plan.estimate.measured
    assert plan.estimate.seconds == entry.manifest.made.timings_s["build"]


def test_a_full_disk_is_noticed_beforehand(
    checkpoint, builder: FakeBuilder, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(MachineError, match=r"engines need about .* GB, but .* has 0\.0 GB left"):
        _run(_request(), checkpoint, builder, store)
    assert builder.built == []


def test_shapes_are_asked_only_where_they_matter(checkpoint, builder: FakeBuilder, store: EngineStore) -> None:
    with pytest.raises(InputError, match="onnxruntime serve every shape"):
        _request(shapes=SHAPES)
    with pytest.raises(InputError, match="onnxruntime serve every shape"):
        _request(options=BuildOptions(optimization_level=1))
    with pytest.raises(InputError, match="tensorrt need shapes"):
        plan_build(checkpoint, _request(backend="tensorrt"), builder, store)
    with pytest.raises(InputError, match="eager' has no engines"):
        _request(backend="eager")
    with pytest.raises(InputError, match="no graph named 'unets'"):
        plan_build(checkpoint, _request("unets"), builder, store)
    odd = Shapes((72, 72, 72), (64, 64, 64), (1, 1, 1), anchors=1)
    with pytest.raises(InputError, match="height = 72 is not possible"):
        plan_build(checkpoint, _request(backend="tensorrt", shapes=odd), builder, store)


def test_shapes_are_part_of_a_key_only_where_they_matter(checkpoint, store: EngineStore) -> None:
    dynamic = plan_build(checkpoint, _request(), FakeBuilder(checkpoint), store)
    ranged = plan_build(checkpoint, _request(backend="tensorrt", shapes=SHAPES), FakeBuilder(checkpoint), store)
    assert {plan.key.shapes for plan in dynamic} == {None}
    assert {plan.key.shapes for plan in ranged} == {SHAPES}


def test_engines_of_other_versions_are_stale(
    checkpoint, builder: FakeBuilder, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = _run(_request("vae_encoder"), checkpoint, builder, store)

    def reason(builder: FakeBuilder) -> str | None:
        return stale_reason(entry, lambda name: builder)

    assert reason(builder) is None
    assert reason(FakeBuilder(checkpoint, version="2")) == "it was built with another fake"
    broken = FakeBuilder(checkpoint, environment_error=MachineError("Not installed."))
    assert reason(broken) is None
    absent = FakeBuilder(checkpoint, environment_error=ModuleNotFoundError("No module", name="onnx"))
    assert reason(absent) is None  # nothing can be said against it here
    monkeypatch.setattr(builds, "source_fingerprint", lambda module: "changed")
    assert reason(builder) == "it was built by another version of fairy"


def test_a_spoiled_engine_writes_where_it_is_told(checkpoint, builder: FakeBuilder, store: EngineStore) -> None:
    """The fake used above keeps the contract of engines."""
    (entry,) = _run(_request("vae_decoder"), checkpoint, builder, store)
    assert isinstance(entry, StoredEngine)
    graph = graph_specs(checkpoint)["vae_decoder"]
    builder.changes["vae_decoder"] = lambda t: t + 1
    engine = builder.load(EngineSpec(graph, "onnxruntime", "cpu", "float32"), entry.folder, CPU)
    assert isinstance(engine, Spoiled)
    latents, out = torch.zeros(1, 4, 8, 8), torch.empty(1, 3, 64, 64)
    assert engine({"latents": latents}, {"image": out})["image"] is out
