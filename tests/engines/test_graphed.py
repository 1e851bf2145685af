"""What runs on a GPU by default: recorded calls that were compared, kernels that were measured, rules of recording."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor

from fairy.engines import backends
from fairy.engines.backends import check_backend, make_backend, steps_of
from fairy.engines.compiled import CompiledBackend, attention
from fairy.engines.cuda_graphs import GraphRunner, Recorder
from fairy.engines.graphed import STEP_OF_OP, GraphedBackend, left_out
from fairy.export.bases.fast_unet import FastUNet
from fairy.export.bases.fast_vae import FastVaeDecoder, FastVaeEncoder
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.graphs import vae_decoder_spec
from fairy.export.shapes import random_inputs
from fairy.export.steps import ALL_STEPS, choose_steps
from fairy.kernels import gains
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams, embedded_model
from fairy.runtime.executor import InProcess
from tests.conftest import ROOT
from tests.engines.capture import away, broken_rules
from tests.engines.test_fast import record_on_the_cpu
from tests.runtime.conftest import make_frames

CPU = torch.device("cpu")
Call = Callable[[], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return load_checkpoint(embedded_model())


@pytest.mark.parametrize("name", ["unet", "unet_anchor", "unet_frame"])
@pytest.mark.parametrize("without", [(), ("text-kv", "time-embeddings"), ("anchor-attention", "folded-upsampling")])
def test_a_step_breaks_no_rule_of_recording(embedded: Checkpoint, name: str, without: tuple[str, ...]) -> None:
    steps = choose_steps(without, "cuda")
    graph = graph_specs(embedded)[name]
    context = {f"context_{level}": 64 >> 2 * level for level in range(4)}
    sizes = {"groups": 3, "frames": 2, "tokens": 7, "height": 8, "width": 8, **context}
    inputs = {name: t.to("meta") for name, t in random_inputs(graph, sizes, torch.float16, 0).items()}
    unet = away(FastUNet(embedded.unet, steps, attention(steps))).to(torch.float16)
    assert broken_rules(lambda: unet(inputs, graph)) == []


def test_the_autoencoder_breaks_no_rule_of_recording(embedded: Checkpoint) -> None:
    steps = choose_steps((), "cuda")
    encoder, decoder = away(FastVaeEncoder(embedded.vae, steps)), away(FastVaeDecoder(embedded.decoder, steps))
    assert broken_rules(lambda: encoder(torch.zeros(1, 3, 64, 64, device="meta"))) == []
    assert broken_rules(lambda: decoder(torch.zeros(1, 16, 8, 8, device="meta"))) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x + torch.tensor(3.0),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]).to(x.device),
    ],
)
def test_the_rules_are_seen_to_be_broken(call: Callable[[Tensor], object]) -> None:
    assert broken_rules(lambda: call(torch.zeros(4, device="meta")))
    assert broken_rules(lambda: torch.zeros(4, device="meta") * 2) == []


def inputs_of(value: float) -> dict[str, Tensor]:
    return {"sample": torch.full((1, 2, 3), value)}


def test_a_replay_that_differs_is_not_used_and_is_told() -> None:
    def stale(call: Call, device: torch.device) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        return lambda: None, tuple(torch.zeros_like(t) for t in call())  # replays nothing

    told: list[str] = []
    runner = GraphRunner(lambda inputs: (inputs["sample"] * 2,), stale, told.append)
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(runner(inputs_of(value))[0], inputs_of(2 * value)["sample"])
    assert told == ["A CUDA graph was not used, which is slower: the replay gave something else."]


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_recorded_runs_plainly(error: Exception) -> None:
    tries = []

    def fail(call: Call, device: torch.device) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        tries.append(1)
        raise error

    told: list[str] = []
    runner = GraphRunner(lambda inputs: (inputs["sample"] * 2,), fail, told.append)
    for value in (1.0, 2.0):
        assert torch.equal(runner(inputs_of(value))[0], inputs_of(2 * value)["sample"])
    assert len(tries) == len(told) == 1
    assert ("memory does not suffice" if isinstance(error, torch.OutOfMemoryError) else "not permitted") in told[0]


def test_a_failed_recording_gives_the_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, made, current, pools = MagicMock(), MagicMock(), [], []

    @contextmanager
    def graph(graph: object, *, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        current.append(stream)
        pools.append(pool)
        yield
        raise RuntimeError("the capture was invalidated")  # what CUDA's capture_end does

    fakes = {"device": MagicMock(), "current_stream": lambda device: before, "Stream": lambda device: made}
    fakes |= {"stream": MagicMock(), "CUDAGraph": MagicMock(), "graph": graph, "set_stream": current.append}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: object())
    recorder = Recorder()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="invalidated"):
            recorder(lambda: (), torch.device("cuda", 0))
    assert current == [made, before] * 2
    assert pools[0] is pools[1] is not None  # one pool for all recordings


def test_values_that_overflowed_are_compared_too() -> None:
    """The edit will notice and do it again; the recording is not to blame."""
    runner = GraphRunner(lambda inputs: (inputs["sample"] / 0,), record_on_the_cpu, pytest.fail)
    assert torch.isinf(runner(inputs_of(1.0))[0]).all()


def recorded_backend(checkpoint: Checkpoint, calls: list[int]) -> GraphedBackend:
    """The backend as on a GPU, its recordings on the CPU."""

    def record(call: Call, device: torch.device) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        calls.append(1)
        return record_on_the_cpu(call, device)

    backend = GraphedBackend(checkpoint, CPU, torch.float32, record=record)
    backend.steps = backend.steps | {"cuda-graphs"}
    return backend


def test_an_edit_of_recorded_calls_is_that_of_plain_ones(editor: Editor) -> None:
    checkpoint, networks, calls = editor._networks.checkpoint, editor._networks, list[int]()
    params = EditParams("make it red", num_inference_steps=3, anchors=2, micro_batch=2)
    frames, usual = make_frames(9), networks.backend
    try:
        networks.backend = CompiledBackend(checkpoint, CPU, torch.float32, without=("inductor",))
        expected = editor.edit(frames, params)
        networks.backend = backend = recorded_backend(checkpoint, calls)
        found = editor.edit(frames, params)
    finally:
        networks.backend = usual
    assert np.array_equal(found.frames, expected.frames)
    assert len(calls) == 7  # autoencoder: 2; each phase: first step without a branch, others; that branch, of one frame
    assert not [sentence for sentence in backend.take_usage().fallbacks if "CUDA graph" in sentence]
    assert isinstance(editor._executor, InProcess)


def test_what_overflowed_is_done_again_unrecorded(embedded: Checkpoint) -> None:
    calls: list[int] = []
    backend = recorded_backend(embedded, calls)
    graph = vae_decoder_spec(16)
    wide = backend.engine(graph, torch.float64)
    assert wide({"latents": torch.zeros(1, 16, 8, 8, dtype=torch.float64)})["image"].dtype == torch.float64
    assert calls == []


def test_kernels_are_on_where_they_were_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gains, "files", lambda package: tmp_path)
    (tmp_path / "configs").mkdir()
    gains._table.cache_clear()

    def write(capability: tuple[int, int], content: str) -> None:
        (tmp_path / "configs" / gains.gains_name(capability)).write_text(content)
        gains._table.cache_clear()

    def case(ours: float, plain: float) -> dict[str, object]:
        return {"case": "x", "ours_ms": ours, "plain_ms": plain}

    assert left_out((9, 0)) == {"inductor", *STEP_OF_OP.values()}
    ops = {
        "geglu": [case(1.0, 1.2)],
        "group_norm_silu": [case(1.0, 2.0), case(1.0, 0.4)],
        "guidance_step": [case(1, 1)],
    }
    table = {"capability": [9, 0], "ops": ops, "micro_batch": {"3": 10.0, "5": 9.5, "9": 9.1}}
    write((9, 0), json.dumps(table))
    assert left_out((9, 0)) == {"inductor", "group-norm-silu", "guidance-step", "folded-upsampling"}
    assert gains.best_micro_batch((9, 0)) == 5
    assert left_out((8, 9)) == {"inductor", *STEP_OF_OP.values()}
    assert gains.best_micro_batch((8, 9)) is None
    for broken in ("{", '{"ops": {"geglu": []}, "micro_batch": {}}', '{"ops": {}, "micro_batch": {"3": -1}}'):
        write((8, 0), broken)
        assert left_out((8, 0)) == {"inductor", *STEP_OF_OP.values()}
    gains._table.cache_clear()


def test_what_ships_was_measured_on_a_gpu_of_that_capability() -> None:
    tables = [p for p in (ROOT / "kernels" / "configs").glob("*.json") if p.name.startswith("gains-")]
    assert tables
    for path in tables:
        table = gains.parse_gains(path.read_text())
        capability = tuple(table["capability"])
        assert path.name == gains.gains_name(capability)
        assert gains.faster_ops(capability) == {op for op, cases in table["ops"].items() if gains.gain(cases) >= 1.02}
        assert str(gains.best_micro_batch(capability)) in table["micro_batch"]


def test_every_op_has_its_step() -> None:
    assert set(STEP_OF_OP) == set(gains.OPS)
    assert set(STEP_OF_OP.values()) <= ALL_STEPS


def test_auto_records_on_a_gpu_and_not_here(embedded: Checkpoint) -> None:
    assert backends._last_resort(torch.device("cuda")) is GraphedBackend
    assert make_backend("auto", embedded, CPU, torch.float32).name == "eager"
    for refuse in (check_backend, lambda name, device: make_backend(name, embedded, device, torch.float32)):
        with pytest.raises(InputError, match="needs a GPU; choose auto or eager"):
            refuse("cuda-graphs", CPU)
    assert "inductor" not in steps_of("cuda-graphs", CPU)
    assert steps_of("eager", CPU) == frozenset()
