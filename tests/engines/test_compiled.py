"""The compiled backend: packages and modules compiled on the spot, equal to eager; errors in a sentence."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fairy.engines.compiled import CompiledBackend, CompiledBuilder, CompiledEngine, joined_attention, moved
from fairy.engines.conditions import prepare
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import BuildOptions, EngineSpec, Shapes
from fairy.engines.numerics import steady_compiler, steady_numerics
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.shapes import random_inputs
from fairy.kernels.anchor_attention import anchor_attention_reference
from fairy.kernels.errors import Cancelled, InputError, MachineError
from tests.export.small import tiny_model

CPU = torch.device("cpu")
SHAPES = Shapes((64, 64, 64), (64, 64, 96), (1, 2, 3), anchors=2, groups=3, tokens=7)


def _always(phase: str, done: int, total: int) -> bool:
    return True


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def spec(checkpoint: Checkpoint) -> EngineSpec:
    return EngineSpec(graph_specs(checkpoint)["unet_frame"], "compiled", "cpu", "float32")


@pytest.fixture(scope="module")
def package(checkpoint: Checkpoint, spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("package")
    CompiledBuilder().build(checkpoint, spec, SHAPES, BuildOptions(), folder, _always)
    return folder


@pytest.fixture
def engine(spec: EngineSpec, package: Path) -> Iterator[CompiledEngine]:
    made = CompiledBuilder().load(spec, package, CPU)
    yield made
    made.close()


def _inputs(graph: GraphSpec, checkpoint: Checkpoint, groups: int, frames: int, width: int) -> dict[str, Tensor]:
    shapes = Shapes((64,) * 3, (width,) * 3, (frames,) * 3, anchors=1 if frames == 1 else 2, groups=groups, tokens=7)
    return random_inputs(graph, shapes.sizes(graph, checkpoint.vae_factor), torch.float32, seed=groups + frames)


def _eager(checkpoint: Checkpoint, graph: GraphSpec, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return EagerBackend(checkpoint, CPU, torch.float32).engine(graph)(inputs)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("groups", "frames", "width"), [(3, 2, 64), (3, 3, 96), (2, 2, 64)])
def test_package_equals_eager_over_its_range(
    engine: CompiledEngine, checkpoint: Checkpoint, groups: int, frames: int, width: int
) -> None:
    inputs = _inputs(engine.spec.graph, checkpoint, groups, frames, width)
    expected = _eager(checkpoint, engine.spec.graph, inputs)["output"]
    out = {"output": torch.full_like(expected, float("nan"))}
    found = engine(inputs, out)
    assert found["output"] is out["output"]
    torch.testing.assert_close(found["output"], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.nightly
def test_package_names_what_does_not_fit(engine: CompiledEngine, checkpoint: Checkpoint) -> None:
    inputs = _inputs(engine.spec.graph, checkpoint, 3, 2, 64)
    with pytest.raises(InputError, match="timestep is missing or unknown"):
        engine({name: t for name, t in inputs.items() if name != "timestep"})
    with pytest.raises(InputError, match=r"sample of unet_frame must be torch.float32, not torch.float64"):
        engine({**inputs, "sample": inputs["sample"].double()})
    engine.close()
    with pytest.raises(InputError, match="was closed"):
        engine(inputs)


@pytest.mark.slow
@pytest.mark.nightly
def test_damaged_package_is_one_sentence(spec: EngineSpec, package: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes((package / "model.pt2").read_bytes()[:1000])
    with pytest.raises(MachineError, match="does not load"):
        CompiledBuilder().load(spec, tmp_path, CPU)


def test_build_stops_when_asked_and_knows_no_options(checkpoint: Checkpoint, spec: EngineSpec, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        CompiledBuilder().build(checkpoint, spec, SHAPES, BuildOptions(), tmp_path, lambda *_: False)
    with pytest.raises(InputError, match="know no build options"):
        CompiledBuilder().build(checkpoint, spec, SHAPES, BuildOptions(optimization_level=3), tmp_path, _always)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compiled_on_the_spot(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    graph = graph_specs(checkpoint)["vae_decoder"]
    inputs = random_inputs(graph, {"frames": 1, "height": 4, "width": 6}, torch.float32, seed=0)
    backend = CompiledBackend(checkpoint, CPU, torch.float32)
    engine = backend.engine(graph)
    found = [engine(inputs)["image"] for _ in range(2)]
    torch.testing.assert_close(found[0], _eager(checkpoint, graph, inputs)["image"], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)
    assert backend.engine(graph) is engine
    assert len([record for record in caplog.records if "compiled vae_decoder in" in record.message]) == 1
    assert any("compiled on the spot" in sentence for sentence in backend.take_usage().fallbacks)
    backend.close()


@pytest.mark.slow
def test_a_unet_with_all_steps_compiled_on_the_spot(checkpoint: Checkpoint) -> None:
    """What an edit calls: prepared text and times, two branches that share a picture, keys and values emitted."""
    graph = graph_specs(checkpoint)["unet_anchor"]
    inputs = _inputs(graph, checkpoint, 3, 2, 64)
    inputs["sample"][0] = inputs["sample"][1]
    inputs["timestep"][:] = 501.5
    expected = _eager(checkpoint, graph, inputs)
    backend = CompiledBackend(checkpoint, CPU, torch.float32)
    engine = backend.engine(graph)
    told = prepare(engine, inputs["text"], torch.tensor([900.0, 501.5]), 2).at(1)
    found = engine({"sample": inputs["sample"][1:], **told})
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=5e-5, rtol=5e-5, msg=name)
    assert {"inductor", "shared-first-block", "text-kv"} <= set(backend.take_usage().steps)
    backend.close()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("lengths", [[(1, 5)], [(1, 3), (3, 4), (1, 2)], []])
def test_joined_attention_is_the_op(own: bool, lengths: list[tuple[int, int]]) -> None:
    if not own and not lengths:
        return
    generator = torch.Generator().manual_seed(0)

    def draw(frames: int, length: int) -> Tensor:
        return torch.randn(2, frames, length, 24, generator=generator, dtype=torch.float64)

    q, k, v = draw(3, 7), draw(3, 7), draw(3, 7)
    context = [[draw(*size) for size in lengths] for _ in range(2)]
    own_k, own_v = (k, v) if own else (None, None)
    expected = anchor_attention_reference(q, own_k, own_v, *context, 3)
    found = joined_attention(q, own_k, own_v, *context, heads=3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_module_that_moves_leaves_the_checkpoint_where_it_was() -> None:
    layer = torch.nn.Linear(2, 2)
    there = moved(layer, torch.device("meta"))
    assert {p.device.type for p in there.parameters()} == {"meta"}
    assert {p.device.type for p in layer.parameters()} == {"cpu"}
    assert moved(layer, CPU) is layer


@pytest.mark.parametrize("raised", [torch.OutOfMemoryError("no room"), RuntimeError("CUDA out of memory. Tried to …")])
def test_a_full_memory_is_told_as_such(raised: RuntimeError, checkpoint: Checkpoint) -> None:
    """So that callers go on with a smaller batch."""
    spec = EngineSpec(graph_specs(checkpoint)["vae_decoder"], "compiled", "cpu", "float32")

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        raise raised

    inputs = {tensor.name: torch.zeros(1) for tensor in spec.graph.inputs}
    with pytest.raises(torch.OutOfMemoryError):
        CompiledEngine(spec, run, CPU)(inputs)


@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("float16", True)])
def test_no_algorithm_is_chosen_by_time_and_float32_is_not_rounded(
    precision: str, rounded: bool, checkpoint: Checkpoint
) -> None:
    spec = EngineSpec(graph_specs(checkpoint)["vae_decoder"], "compiled", "cpu", precision)
    seen, cudnn = [], torch.backends.cudnn

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))
        return inputs[:1]

    before = cudnn.benchmark
    cudnn.benchmark = True
    assert cudnn.allow_tf32
    CompiledEngine(spec, run, CPU)({t.name: torch.zeros(1, dtype=getattr(torch, precision)) for t in spec.graph.inputs})
    assert seen == [(rounded, True, False)]
    assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark) == (True, False, True)
    cudnn.benchmark = before


def test_settings_outlive_whoever_leaves_first() -> None:
    first, second = steady_numerics("float32"), steady_numerics("float32")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.deterministic
    second.__exit__(None, None, None)
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32


def test_inductor_chooses_nothing_by_time() -> None:
    from torch._inductor import config

    with steady_compiler():
        assert config.deterministic
    assert not config.deterministic


def test_environment_names_what_code_is_generated_for() -> None:
    found = CompiledBuilder().environment(CPU)
    assert found["torch"].startswith("2.")
    assert {"machine", "vectors"} <= set(found)
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="this machine has none"):
            CompiledBuilder().environment(torch.device("cuda"))


def test_dims_of_one_size_are_constants(checkpoint: Checkpoint) -> None:
    from fairy.engines.compiled import _example

    graph = graph_specs(checkpoint)["unet_frame"]
    fixed = replace(SHAPES, width=(64, 64, 64), frames=(2, 2, 2))
    sizes, dims = _example(graph, fixed, checkpoint)
    assert "frames" not in dims
    assert "height" not in dims
    assert {"groups", "context_0"} <= set(dims)
    assert sizes["frames"] == 2
