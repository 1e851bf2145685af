"""The onnxruntime backend: torch's memory read and written in place, equal to eager, honest about its provider."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fairy.engines.eager import EagerBackend
from fairy.engines.engine import BuildOptions, Engine, EngineSpec, Shapes
from fairy.engines.onnxruntime import OnnxRuntimeBuilder, OnnxRuntimeEngine
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.onnx.onnx_files import MODEL
from fairy.export.shapes import random_inputs, shape_of, sizes_of
from fairy.kernels.errors import Cancelled, InputError, MachineError
from tests.export.small import small_export, small_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SHAPES = Shapes((64, 64, 64), (64, 64, 64), (1, 1, 1), anchors=1)
SIZES = {"groups": 3, "frames": 2, "height": 6, "width": 10, "tokens": 7, "batch": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {graph.name: graph.path.parent for graph in small_export(tmp_path_factory.getbasetemp())[0].graphs}


@pytest.fixture(scope="module")
def specs(checkpoint: Checkpoint) -> dict[str, EngineSpec]:
    return {name: EngineSpec(graph, "onnxruntime", "cpu", "float32") for name, graph in graph_specs(checkpoint).items()}


@pytest.fixture
def anchor(specs: dict[str, EngineSpec], folders: dict[str, Path]) -> Iterator[Engine]:
    engine = OnnxRuntimeBuilder().load(specs["unet_anchor"], folders["unet_anchor"], CPU)
    yield engine
    engine.close()


def _inputs(graph: GraphSpec, seed: int = 0, **changes: int) -> dict[str, Tensor]:
    sizes = SIZES | {"image_height": 64, "image_width": 96, "context_0": 61, "context_1": 16} | changes
    return random_inputs(graph, sizes, torch.float32, seed)


def _eager(checkpoint: Checkpoint, graph: GraphSpec, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return EagerBackend(checkpoint, CPU, torch.float32).engine(graph)(inputs)


def test_every_graph_equals_eager(checkpoint: Checkpoint, specs, folders) -> None:
    for name, folder in folders.items():
        graph = specs[name].graph
        engine = OnnxRuntimeBuilder().load(specs[name], folder, CPU)
        for seed, changes in enumerate(({}, {"groups": 1, "frames": 3, "height": 8, "tokens": 2, "batch": 1})):
            inputs = _inputs(graph, seed, **changes)
            found, expected = engine(inputs), _eager(checkpoint, graph, inputs)
            assert list(found) == list(expected)
            for tensor, t in expected.items():
                torch.testing.assert_close(found[tensor], t, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        engine.close()


def test_outputs_are_written_in_place(anchor: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values go into the caller's memory, a view into a larger bank, and nothing but `output` is allocated."""
    graph = anchor.spec.graph
    inputs = _inputs(graph)
    expected = anchor(inputs)
    sizes = sizes_of(graph, inputs, 8)
    bank = {t.name: torch.full((2, *shape_of(t, sizes)), float("nan")) for t in graph.outputs[1:]}
    targets = {name: t[1] for name, t in bank.items()}
    made = []
    monkeypatch.setattr(torch, "empty", lambda *a, _empty=torch.empty, **k: made.append(a) or _empty(*a, **k))
    found = anchor(inputs, targets)
    assert made == [(shape_of(graph.outputs[0], sizes),)]
    for name, target in targets.items():
        assert found[name] is target
        assert torch.equal(target, expected[name])
        assert bank[name][0].isnan().all()


def test_targets_that_cannot_be_written_in_place_are_filled_all_the_same(anchor: Engine) -> None:
    inputs = _inputs(anchor.spec.graph)
    expected = anchor(inputs)
    strided = torch.zeros(*expected["output"].shape, 2)[..., 1]
    name = anchor.spec.graph.outputs[1].name
    double = torch.zeros(expected[name].shape, dtype=torch.float64)
    found = anchor(inputs, {"output": strided, name: double})
    assert found["output"] is strided
    assert found[name] is double
    assert torch.equal(strided, expected["output"])
    assert torch.equal(double, expected[name].double())


def test_strided_inputs_are_read_as_they_mean(anchor: Engine) -> None:
    inputs = _inputs(anchor.spec.graph)
    odd = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in inputs.items()}
    odd["timestep"] = torch.tensor(17.5).expand(2)
    assert not odd["sample"].is_contiguous()
    expected = anchor({**inputs, "timestep": torch.full((2,), 17.5)})["output"]
    assert torch.equal(anchor(odd)["output"], expected)


def test_calls_keep_nothing(anchor: Engine) -> None:
    first = anchor(_inputs(anchor.spec.graph))
    copies = {name: t.clone() for name, t in first.items()}
    anchor(_inputs(anchor.spec.graph, seed=5))
    anchor(_inputs(anchor.spec.graph, seed=5, frames=4))
    assert all(torch.equal(t, copies[name]) for name, t in first.items())
    again = anchor(_inputs(anchor.spec.graph))
    assert all(torch.equal(again[name], t) for name, t in copies.items())


def test_recorded_shapes_give_the_same_values(specs, folders) -> None:
    """What a CUDA graph needs, tensors at addresses that stay, without the graph: more shapes than are recorded."""
    builder = OnnxRuntimeBuilder()
    plain = builder.load(specs["unet_frame"], folders["unet_frame"], CPU)
    path = folders["unet_frame"] / MODEL
    replaying = OnnxRuntimeEngine(onnxruntime, specs["unet_frame"], path, CPU, replay=True)
    for seed, frames in enumerate((1, 2, 1, 3, 4, 5, 6, 1, 5)):
        inputs = _inputs(specs["unet_frame"].graph, seed, frames=frames)
        expected = plain(inputs)["output"]
        target = torch.full_like(expected, float("nan"))
        assert replaying(inputs, {"output": target})["output"] is target
        assert torch.equal(target, expected), (seed, frames)


def test_wrong_tensors_are_named(anchor: Engine) -> None:
    inputs = _inputs(anchor.spec.graph)
    with pytest.raises(InputError, match="text is missing or unknown"):
        anchor({name: t for name, t in inputs.items() if name != "text"})
    with pytest.raises(InputError, match=r"sample of unet_anchor must be torch.float32 on cpu, not torch.float64"):
        anchor({**inputs, "sample": inputs["sample"].double()})
    with pytest.raises(InputError, match=r"timestep of unet_anchor must be \[2\], but is \[3\]"):
        anchor({**inputs, "timestep": torch.zeros(3)})
    with pytest.raises(InputError, match=r"output of unet_anchor gives \[3, 2, 4, 6, 10\], not \[1\]"):
        anchor(inputs, {"output": torch.zeros(1)})
    anchor.close()
    with pytest.raises(InputError, match="was closed"):
        anchor(inputs)


def test_a_run_that_fails_is_one_sentence(anchor: Engine) -> None:
    inputs = _inputs(anchor.spec.graph, height=5, width=7)  # sides that the network cannot halve
    with pytest.raises(MachineError, match="ONNX Runtime failed to run unet_anchor"):
        anchor(inputs)


def test_the_provider_in_use_is_looked_at(specs, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, path = specs["vae_encoder"], folders["vae_encoder"] / MODEL
    fallen = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen)
    with pytest.raises(MachineError, match="fell back from CPUExecutionProvider to AzureExecutionProvider"):
        OnnxRuntimeEngine(onnxruntime, spec, path, CPU)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider"])
    with pytest.raises(MachineError, match="has no CPUExecutionProvider: pip install"):
        OnnxRuntimeEngine(onnxruntime, spec, path, CPU)


def test_files_that_are_not_ours_do_not_load(specs, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / MODEL).write_bytes(b"\xff" * 10)
    with pytest.raises(MachineError, match="not a readable ONNX file"):
        OnnxRuntimeBuilder().load(specs["unet"], tmp_path, CPU)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    for domain, message in (("nowhere", "cannot load"), ("", "was not written by `fairy build`")):
        graph.node[0].domain = domain
        imports = [onnx.helper.make_opsetid(domain, 1), onnx.helper.make_opsetid("", 20)][: 2 if domain else 1]
        model = onnx.helper.make_model(graph, opset_imports=[*imports[:-1], onnx.helper.make_opsetid("", 20)])
        model.ir_version = 10
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
        onnx.save(model, tmp_path / MODEL)
        with pytest.raises(MachineError, match=message):
            OnnxRuntimeBuilder().load(specs["unet"], tmp_path, CPU)


def test_the_threads_are_torchs(specs, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = onnxruntime.InferenceSession

    def open_session(path: str, options: object, **rest: object) -> object:
        seen.append((options.intra_op_num_threads, options.inter_op_num_threads))
        return real(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    OnnxRuntimeEngine(onnxruntime, specs["text_encoder"], folders["text_encoder"] / MODEL, CPU)
    assert seen == [(2, 1)]


def test_a_build_is_an_export(checkpoint: Checkpoint, specs, folders, tmp_path: Path) -> None:
    builder, told = OnnxRuntimeBuilder(), []
    spec = specs["text_encoder"]
    builder.build(checkpoint, spec, SHAPES, BuildOptions(), tmp_path, lambda *phase: told.append(phase) or True)
    assert told == [("export", 0, 1), ("export", 1, 1)]
    assert [p.name for p in tmp_path.iterdir()] == [MODEL]
    assert (tmp_path / MODEL).read_bytes() == (folders["text_encoder"] / MODEL).read_bytes()
    with pytest.raises(Cancelled):
        builder.build(checkpoint, spec, SHAPES, BuildOptions(), tmp_path, lambda *_: False)
    assert builder.environment(CPU)["onnxruntime"] == onnxruntime.__version__


class _Mixed:
    """UNet graphs by onnxruntime, the rest by eager: what a test of an edit needs without exporting everything."""

    name = "onnxruntime"
    steps = frozenset()

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self._eager = EagerBackend(checkpoint, CPU, torch.float32)
        self._builder = OnnxRuntimeBuilder()
        self._checkpoint, self._folder = checkpoint, folder
        self._made: dict[str, Engine] = {}
        self.calls = 0

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        if not graph.layers:
            return self._eager.engine(graph, precision)
        assert precision in (None, torch.float32)
        if graph.name not in self._made:
            spec, folder = EngineSpec(graph, self.name, "cpu", "float32"), self._folder / graph.name
            folder.mkdir()
            self._builder.build(self._checkpoint, spec, SHAPES, BuildOptions(), folder, lambda *_: True)
            self._made[graph.name] = self._builder.load(spec, folder, CPU)
        self.calls += 1
        return self._made[graph.name]

    def take_usage(self):
        return self._eager.take_usage()

    def close(self) -> None:
        self._eager.close()


@pytest.mark.slow
@pytest.mark.nightly
def test_an_edit_equals_eagers(checkpoint_folder: Path, tmp_path: Path) -> None:
    """A random UNet of Stable Diffusion 1.5's topology in both phases: at most one step of 255 apart."""
    from fairy.runtime import Editor, EditParams

    checkpoint = load_checkpoint(checkpoint_folder)
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 120, 3), np.uint8)
    params = EditParams("make it sepia", num_inference_steps=2, anchors=2, long_side=120)
    results = []
    for backend in (_Mixed(checkpoint, tmp_path), EagerBackend(checkpoint, CPU, torch.float32)):
        with Editor(checkpoint, backend, device=CPU, dtype=torch.float32) as editor:
            results.append(editor.edit(frames, params).frames.astype(int))
        assert getattr(backend, "calls", 2) >= 2  # both phases ran
    difference = np.abs(results[0] - results[1])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert results[0].std() > 1
