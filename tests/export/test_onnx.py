"""Exported graphs: well-formed files of one checkpoint that compute, on other shapes, what torch computes."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.export.bases.stable_diffusion import UNetGraph, build_graph, graph_specs
from fairy.export.checkpoint import Checkpoint
from fairy.export.onnx import export as exporter
from fairy.export.onnx.attention import DOMAIN
from fairy.export.onnx.export import export_model, export_onnx
from fairy.export.onnx.onnx_files import MODEL, data_file
from fairy.export.onnx.parity import TOLERANCES, check_graph, default_shapes
from fairy.export.shapes import random_inputs
from fairy.kernels.errors import Cancelled, InputError, MachineError
from tests.export.small import small_export, small_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """All graphs but `unet`, for onnxruntime in float32, checked; and the phases that were told."""
    return small_export(tmp_path_factory.getbasetemp())


def _load(path: Path):
    return onnx.load(path, load_external_data=False)


def test_every_graph_computes_what_torch_computes(exported) -> None:
    report, told = exported
    assert [graph.name for graph in report.graphs] == [
        "text_encoder", "vae_encoder", "vae_decoder", "unet_anchor", "unet_frame"
    ]  # fmt: skip
    for graph in report.graphs:
        assert 0 < graph.relative_error < 1e-5, graph
        assert 0 < graph.max_abs_error < 1e-4, graph
        assert len(graph.shapes) == 3
        assert graph.bytes == graph.path.stat().st_size
    frame = report.graphs[-1].shapes
    assert {run["groups"] for run in frame} >= {1, 3}
    assert {run["frames"] for run in frame} >= {1, 5}
    assert any(run["height"] != run["width"] for run in frame)
    assert told[0] == ("export text_encoder", 0, 5)
    assert told[-1] == ("done", 5, 5)


def test_names_types_and_dimensions_are_those_of_the_spec(exported, small_checkpoint: Checkpoint) -> None:
    kinds = {"float": onnx.TensorProto.FLOAT, "float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    specs = graph_specs(small_checkpoint)
    for graph in exported[0].graphs:
        model, spec = _load(graph.path), specs[graph.name]
        for ends, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
            for end, tensor in zip(ends, tensors, strict=True):
                dims = tuple(d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim)
                assert (end.name, dims) == (tensor.name, tensor.dims)
                assert end.type.tensor_type.elem_type == kinds[tensor.dtype]


def test_one_node_an_attention_layer(exported, small_checkpoint: Checkpoint) -> None:
    found = {}
    for graph in exported[0].graphs:
        model = _load(graph.path)
        found[graph.name] = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
        assert {entry.domain for entry in model.opset_import} >= {"", DOMAIN}
    cross, layers = 3, len(graph_specs(small_checkpoint)["unet"].layers)
    assert layers == 3
    assert sorted(found["unet_frame"]) == ["AnchorAttention"] * layers + ["PlainAttention"] * cross
    assert found["unet_anchor"] == ["PlainAttention"] * (layers + cross)
    assert found["vae_decoder"] == found["vae_encoder"] == ["PlainAttention"]


def test_the_file_holds_nothing_of_this_machine(exported) -> None:
    root = str(Path(torch.__file__).parent).encode()
    for graph in exported[0].graphs:
        data = graph.path.read_bytes()
        assert root not in data
        assert not re.search(rb"stack_trace|site-packages|\.py\b", data)


def test_the_same_export_twice_gives_the_same_bytes(exported, small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = next(graph for graph in exported[0].graphs if graph.name == "vae_encoder")
    export_model(small_checkpoint, tmp_path, graphs=["vae_encoder"], check=False)
    assert (tmp_path / "vae_encoder" / MODEL).read_bytes() == first.path.read_bytes()
    assert [p.name for p in (tmp_path / "vae_encoder").iterdir()] == [MODEL]


def test_the_portable_flavour_in_half_precision(
    small_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard operators and plugin attributes only; large weights beside the file; no weight is left in float32."""
    monkeypatch.setattr(exporter, "_EXTERNAL_BYTES", 1 << 10)
    report = export_model(small_checkpoint, tmp_path, graphs=["unet_frame"], body="portable", precision="float16")
    (graph,) = report.graphs
    assert 1e-5 < graph.relative_error < TOLERANCES["float16"]
    data = data_file(graph.path)
    assert graph.bytes == graph.path.stat().st_size + data.stat().st_size
    assert data.stat().st_size > 10 * graph.path.stat().st_size / 11
    model = _load(graph.path)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert {a.name for node in nodes for a in node.attribute} == {"plugin_namespace", "plugin_version", "aot"}
    assert {node.domain for f in model.functions for node in f.node} == {""}
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 256]
    assert {t.data_type for t in large} == {onnx.TensorProto.FLOAT16}
    assert {p.dtype for p in small_checkpoint.unet.parameters()} == {torch.float32}  # the caller's is as it was


def test_a_file_that_computes_something_else_is_refused(exported, small_checkpoint: Checkpoint) -> None:
    spec = graph_specs(small_checkpoint)["vae_encoder"]
    path = exported[0].graphs[1].path
    weight = small_checkpoint.vae.encoder.conv_in.weight
    changed = replace(small_checkpoint, vae=small_checkpoint.vae.from_config(small_checkpoint.vae.config).eval())
    changed.vae.load_state_dict(small_checkpoint.vae.state_dict())
    changed.vae.encoder.conv_in.weight.data = weight * 1.01
    with pytest.raises(MachineError, match="does not compute what torch computes: relative error"):
        check_graph(changed, spec, path, "float32")
    assert check_graph(small_checkpoint, spec, path, "float32").relative_error < 1e-5


def test_a_broken_file_is_refused(exported, small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = graph_specs(small_checkpoint)["vae_encoder"]
    model = _load(exported[0].graphs[1].path)
    model.graph.node[3].input[0] = "nowhere"
    onnx.save(model, tmp_path / MODEL)
    with pytest.raises(MachineError, match="not a well-formed ONNX file"):
        check_graph(small_checkpoint, spec, tmp_path / MODEL, "float32")


def test_float64_agrees(exported, small_checkpoint: Checkpoint) -> None:
    """The whole phase-B graph against its module in float64, on a picture of another size than was checked."""
    spec = graph_specs(small_checkpoint)["unet_frame"]
    sizes = {**default_shapes(small_checkpoint, spec)[1], "frames": 2, "height": 10, "width": 6, "tokens": 1}
    inputs = random_inputs(spec, sizes, torch.float32, seed=8)
    unet = type(small_checkpoint.unet).from_config(small_checkpoint.unet.config)
    unet.load_state_dict(small_checkpoint.unet.state_dict())
    # The time embedding is cast to the sample's type from float32, as diffusers does; the rest is float64.
    with torch.no_grad():
        (expected,) = UNetGraph(unet.double().eval(), spec)(*(t.double() for t in inputs.values()))
    session = onnxruntime.InferenceSession(exported[0].graphs[-1].path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported_is_said(small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = graph_specs(small_checkpoint)["vae_encoder"]
    with pytest.raises(InputError, match="'fp8' is not known; choose one of float32"):
        export_onnx(small_checkpoint, spec, tmp_path / MODEL, body="portable", precision="fp8")
    with pytest.raises(InputError, match="'other' is not known"):
        export_onnx(small_checkpoint, spec, tmp_path / MODEL, body="other", precision="float32")
    with pytest.raises(InputError, match="bfloat16"):
        export_onnx(small_checkpoint, spec, tmp_path / MODEL, body="onnxruntime", precision="bfloat16")
    with pytest.raises(InputError, match="There is no graph named 'unit'; choose from text_encoder"):
        export_model(small_checkpoint, tmp_path, graphs=["unit"])
    with pytest.raises(Cancelled):
        export_model(small_checkpoint, tmp_path, on_progress=lambda *_: False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another folder"):
        export_model(small_checkpoint, tmp_path / "file", graphs=["vae_encoder"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    small_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_ir.save", full)
    with pytest.raises(MachineError, match="The disk is full"):
        export_model(small_checkpoint, tmp_path, graphs=["text_encoder"])
    assert not list((tmp_path / "text_encoder").iterdir())


def test_an_eager_graph_is_what_it_was(exported, small_checkpoint: Checkpoint) -> None:
    """Exporting leaves the checkpoint's modules computing: their attention is not the exporter's."""
    spec = graph_specs(small_checkpoint)["unet_frame"]
    inputs = random_inputs(spec, default_shapes(small_checkpoint, spec)[0], torch.float32, seed=1)
    with torch.no_grad():
        (found,) = build_graph(small_checkpoint, spec)(*inputs.values())
    session = onnxruntime.InferenceSession(exported[0].graphs[-1].path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
