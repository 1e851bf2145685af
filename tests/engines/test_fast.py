"""Engines of the compiled path: what they take, calls in pieces, prepared conditions, recorded calls."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from fairy.engines.compiled import CompiledBackend
from fairy.engines.conditions import prepare
from fairy.engines.cuda_graphs import MAX_RECORDINGS, MAX_SAMPLES, GraphRunner
from fairy.engines.eager import EagerBackend
from fairy.engines.fast import run_one_by_one
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.shapes import random_inputs
from fairy.export.steps import STEPS
from fairy.kernels.errors import InputError
from tests.conftest import make_unet
from tests.export.small import small_model

CPU = torch.device("cpu")
Call = Callable[[], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_model(tmp_path_factory.getbasetemp())


def _backend(checkpoint: Checkpoint, *off: str) -> CompiledBackend:
    return CompiledBackend(checkpoint, CPU, torch.float32, without=("inductor", *off))


def _inputs(graph: GraphSpec, frames: int = 2) -> dict[str, Tensor]:
    sizes = {"groups": 3, "frames": frames, "tokens": 7, "height": 4, "width": 6, "context_0": 48, "context_1": 12}
    return random_inputs(graph, sizes, torch.float32, seed=4)


@pytest.mark.parametrize("name", ["unet", "unet_anchor", "unet_frame"])
@pytest.mark.parametrize("off", [(), ("one-batch",), ("text-kv", "time-embeddings"), ("channels-last", "fused-qkv")])
def test_it_takes_what_eager_takes(name: str, off: tuple[str, ...], checkpoint: Checkpoint) -> None:
    graph = graph_specs(checkpoint)[name]
    inputs = _inputs(graph)
    inputs["timestep"] = torch.tensor([3.5, 800.0])
    expected = EagerBackend(checkpoint, CPU, torch.float32).engine(graph)(inputs)
    engine = _backend(checkpoint, *off).engine(graph)
    out = {graph.outputs[-1].name: torch.empty_like(expected[graph.outputs[-1].name])}
    found = engine(inputs, out)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=3e-5, rtol=3e-5)
    assert found[graph.outputs[-1].name] is out[graph.outputs[-1].name]


def test_prepared_conditions_say_the_same(checkpoint: Checkpoint) -> None:
    graph = graph_specs(checkpoint)["unet_frame"]
    inputs = _inputs(graph)
    times = torch.tensor([900.0, 501.5, 3.0])
    eager = EagerBackend(checkpoint, CPU, torch.float32).engine(graph)
    text, context = inputs["text"], {n: t for n, t in inputs.items() if n.startswith("context.")}
    for off in ((), ("text-kv",), ("time-embeddings",)):
        engine = _backend(checkpoint, *off).engine(graph)
        told, plain = prepare(engine, text, times, 2), prepare(eager, text, times, 2)
        assert ("text" in told.constant) == (off == ("text-kv",))
        assert ("timestep" in told.by_step[1]) == (off == ("time-embeddings",))
        for step in range(3):
            expected = eager({"sample": inputs["sample"], **plain.at(step), **context})["output"]
            found = engine({"sample": inputs["sample"], **told.at(step), **context})["output"]
            torch.testing.assert_close(found, expected, atol=3e-5, rtol=3e-5)


def test_wrong_inputs_are_named(checkpoint: Checkpoint) -> None:
    graph = graph_specs(checkpoint)["unet"]
    engine, inputs = _backend(checkpoint).engine(graph), _inputs(graph)
    with pytest.raises(InputError, match="text is missing or unknown"):
        engine({name: t for name, t in inputs.items() if name != "text"})
    with pytest.raises(InputError, match="timestep is missing or unknown"):
        engine({name: t for name, t in inputs.items() if name != "timestep"})
    with pytest.raises(InputError, match="depth is missing or unknown"):
        engine({**inputs, "depth": inputs["sample"]})
    with pytest.raises(InputError, match="1 groups of pictures and 3 of text"):
        engine({**inputs, "sample": inputs["sample"][:1]})
    engine.close()
    with pytest.raises(InputError, match="was closed"):
        engine(inputs)


def test_a_network_it_does_not_know_runs_plainly_and_says_so(checkpoint: Checkpoint) -> None:
    from dataclasses import replace

    odd = replace(checkpoint, unet=make_unet(seed=3, resnet_time_scale_shift="scale_shift"))
    graph = graph_specs(odd)["unet"]
    inputs = random_inputs(graph, {"groups": 2, "frames": 1, "tokens": 5, "height": 8, "width": 8}, torch.float32, 0)
    backend = _backend(odd)
    expected = EagerBackend(odd, CPU, torch.float32).engine(graph)(inputs)["output"]
    torch.testing.assert_close(backend.engine(graph)(inputs)["output"], expected)
    (sentence,) = backend.take_usage().fallbacks
    assert sentence.startswith("unet ran without the steps that change it: down_blocks.0.resnets.0 is a residual block")
    backend.close()


@pytest.mark.parametrize("pictures", [3, 2])
def test_pieces_are_single_branches_and_frames(pictures: int, checkpoint: Checkpoint) -> None:
    graph = graph_specs(checkpoint)["unet_frame"]
    inputs = _inputs(graph)
    inputs["sample"] = inputs["sample"][3 - pictures :]
    seen = []

    def run(piece: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        assert {t.shape[0] for name, t in piece.items() if name != "timestep"} == {1}
        assert piece["sample"].shape[1] == len(piece["timestep"]) == 1
        seen.append(piece["text"])
        return (piece["sample"] + piece["text"].mean() + piece["timestep"].mean(),)

    (found,) = run_one_by_one(run, graph, inputs)
    whole = inputs["sample"] if pictures == 3 else inputs["sample"][[0, 0, 1]]
    times = inputs["timestep"].reshape(1, -1, 1, 1, 1)
    torch.testing.assert_close(found, whole + inputs["text"].mean((1, 2)).reshape(3, 1, 1, 1, 1) + times)
    assert len(seen) == 6


def record_on_the_cpu(call: Call, _device: torch.device) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """What a CUDA graph does: the same addresses are read and written at every replay."""
    outputs = call()

    def replay() -> None:
        for kept, fresh in zip(outputs, call(), strict=True):
            kept.copy_(fresh)

    return replay, outputs


def test_pieces_of_a_recorded_call_do_not_overwrite_each_other(checkpoint: Checkpoint) -> None:
    graph = graph_specs(checkpoint)["unet_frame"]
    inputs = _inputs(graph)

    def run(piece: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (piece["sample"] + piece["text"].mean() + piece["timestep"].mean(),)

    (expected,) = run_one_by_one(run, graph, inputs)
    (found,) = run_one_by_one(GraphRunner(run, record_on_the_cpu), graph, inputs)
    assert torch.equal(found, expected)


def test_a_recorded_call_is_replayed_from_its_own_buffers() -> None:
    recorded: list[tuple[Tensor, ...]] = []

    def record(call: Call, device: torch.device) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        assert device == CPU
        replay, outputs = record_on_the_cpu(call, device)
        recorded.append(outputs)
        return replay, outputs

    runner = GraphRunner(lambda inputs: (inputs["sample"] * 2 + inputs["text"],), record)

    def inputs(frames: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        flat = torch.randn(2 * frames, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
        return {"sample": flat.unflatten(0, (2, frames)), "text": torch.tensor(float(seed))}

    for seed in (1, 2, 3):
        now = inputs(2, seed)
        (found,) = runner(now)
        assert torch.equal(found, now["sample"] * 2 + seed)
        assert found.data_ptr() == recorded[0][0].data_ptr()
    assert len(recorded) == 1
    runner(inputs(3, 1))
    assert len(recorded) == 2
    large = inputs(MAX_SAMPLES // 2 + 1, 1)
    assert torch.equal(runner(large)[0], large["sample"] * 2 + 1)
    assert len(recorded) == 2  # too large to be worth it
    for frames in (1, 4, 5, 6):
        runner(inputs(frames, 1))
    assert len(recorded) == 6 <= MAX_RECORDINGS


def test_every_step_says_where_it_runs(checkpoint: Checkpoint) -> None:
    backend = CompiledBackend(checkpoint, CPU, torch.float32, without=("text-kv",))
    usage = backend.take_usage()
    assert usage.steps == tuple(s.name for s in STEPS if s.exact and "cpu" in s.devices and s.name != "text-kv")
    assert "compiled on the spot" in usage.fallbacks[0]
