"""What an ONNX file may refer to, and sizes read off tensors: refused before anything opens the file."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.export.graphs import SelfAttention, frame_layers, unet_spec, vae_encoder_spec
from fairy.export.onnx.onnx_files import MODEL, check_references, data_file
from fairy.export.shapes import random_inputs, shape_of, sizes_of
from fairy.kernels.errors import InputError, MachineError

onnx = pytest.importorskip("onnx")


def _write(folder: Path, location: str, *, hidden: bool = False) -> None:
    """A file with one weight at `location`, in the graph or hidden in a node's attribute of a subgraph."""
    weight = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    node = onnx.helper.make_node("Constant", [], ["y"], value=weight)
    graph = onnx.helper.make_graph([node] if hidden else [], "g", [], [out], [] if hidden else [weight])
    if hidden:
        condition = onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
        graph = onnx.helper.make_graph([condition], "outer", [], [])
    (folder / MODEL).write_bytes(onnx.helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd", "other.data", "", "./model.onnx.data"])
def test_other_places_are_refused(tmp_path: Path, location: str, hidden: bool) -> None:
    data_file(tmp_path / MODEL).write_bytes(bytes(16))
    _write(tmp_path, location, hidden=hidden)
    with pytest.raises(MachineError, match="weights may only stand in model.onnx.data"):
        check_references(tmp_path)


def test_the_weights_beside_it_are_served(tmp_path: Path) -> None:
    _write(tmp_path, "model.onnx.data")
    with pytest.raises(MachineError, match="is not there"):
        check_references(tmp_path)
    data_file(tmp_path / MODEL).write_bytes(bytes(16))
    check_references(tmp_path)


@pytest.mark.parametrize("name", [MODEL, "model.onnx.data"])
def test_links_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    _write(folder, "model.onnx.data")
    data_file(folder / MODEL).write_bytes(bytes(16))
    os.link(folder / name, tmp_path / "second")
    with pytest.raises(MachineError, match="links are not followed"):
        check_references(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "second")
    with pytest.raises(MachineError, match="links are not followed"):
        check_references(folder)


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"\xff" * 100)
    with pytest.raises(MachineError, match="not a readable ONNX file"):
        check_references(tmp_path)


def _frame_spec():
    layers = tuple(SelfAttention(f"up_blocks.{i}.attn1", i, 2, 8) for i in range(2))
    return unet_spec("unet_frame", frame_layers(layers, "all"), in_channels=8, out_channels=4, text_channels=6)


def test_sizes_go_to_shapes_and_back() -> None:
    spec = _frame_spec()
    sizes = {"groups": 3, "frames": 5, "height": 6, "width": 10, "tokens": 7, "context_0": 61, "context_1": 15}
    inputs = random_inputs(spec, sizes, torch.float16, seed=0)
    assert inputs["timestep"].dtype == torch.float32
    assert inputs["sample"].dtype == torch.float16
    assert inputs["context.0.up_blocks.1.attn1.v"].shape == (3, 1, 15, 8)
    found = sizes_of(spec, inputs, 8)
    assert found == {**sizes, "own_0": 60, "own_1": 15}
    assert shape_of(spec.outputs[0], found) == (3, 5, 4, 6, 10)
    encoder = vae_encoder_spec(4)
    image = {"image": torch.zeros(2, 3, 64, 24)}
    assert shape_of(encoder.outputs[0], sizes_of(encoder, image, 8)) == (2, 4, 8, 3)


def test_shapes_that_do_not_fit_are_named() -> None:
    spec = _frame_spec()
    sizes = {"groups": 3, "frames": 5, "height": 6, "width": 10, "tokens": 7, "context_0": 61, "context_1": 15}
    inputs = random_inputs(spec, sizes, torch.float32, seed=0)
    with pytest.raises(InputError, match=r"timestep of unet_frame must be \[5\], but is \[4\]"):
        sizes_of(spec, {**inputs, "timestep": torch.zeros(4)}, 8)
    with pytest.raises(InputError, match=r"text of unet_frame must be \[3, tokens, 6\], but is \[3, 6\]"):
        sizes_of(spec, {**inputs, "text": torch.zeros(3, 6)}, 8)
    with pytest.raises(InputError, match=r"attn1.v of unet_frame must be \[3, 1, 61, 8\], but is \[3, 1, 60, 8\]"):
        sizes_of(spec, {**inputs, "context.0.up_blocks.0.attn1.v": torch.zeros(3, 1, 60, 8)}, 8)
    with pytest.raises(InputError, match="extra is missing or unknown"):
        sizes_of(spec, {**inputs, "extra": torch.zeros(1)}, 8)
