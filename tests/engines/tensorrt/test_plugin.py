"""Our attention kernel as a TensorRT plugin: what it serves, its numbers, and the real `tensorrt.plugin`."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from fairy.engines.engine import Shapes
from fairy.engines.tensorrt.plugin import drop_plugins, kernel_serves, kernel_target
from fairy.export.graphs import GraphSpec, SelfAttention, unet_spec
from fairy.export.onnx.attention import PLUGIN_ATTRIBUTES, attention_functions


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        *[((7, 5), None), ((8, 0), 80), ((8, 6), 86), ((8, 7), 86), ((8, 9), 89)],
        *[((9, 0), 90), ((10, 0), 100), ((10, 3), 89), ((12, 0), 120), ((12, 1), 89)],
    ],
)
def test_target_of_a_gpu(capability: tuple[int, int], target: int | None) -> None:
    assert kernel_target(capability) == target


def _graph(*head_dims: int) -> GraphSpec:
    layers = tuple(
        SelfAttention(f"layer{level}", level, heads=8, channels=8 * dim, segments=("shared",))
        for level, dim in enumerate(head_dims)
    )
    return unet_spec("unet_frame", layers, in_channels=8, out_channels=4, text_channels=768)


def test_what_the_kernel_serves() -> None:
    shapes = Shapes(height=(384, 384, 512), width=(512, 512, 512), frames=(1, 15, 60), anchors=3)

    def serves(graph: GraphSpec, dtype: torch.dtype, shapes: Shapes = shapes) -> bool:
        return kernel_serves(graph, dtype, shapes.ranges(graph, 8))

    assert serves(_graph(40, 80, 160), torch.float16)
    assert serves(_graph(64, 128), torch.bfloat16)
    assert not serves(_graph(40, 80, 160), torch.float32)
    assert not serves(_graph(40, 72), torch.float16)
    # 3 groups · 60 frames · 200·192 tokens · 320 channels are more than 2^31 elements
    assert not serves(_graph(40), torch.float16, replace(shapes, height=(384, 384, 1600), width=(512, 512, 1536)))


def _attention_model(path: Path) -> None:
    """One node of each kind, as an exported graph has them."""
    float32 = onnx.TensorProto.FLOAT
    named = {
        "q": ["b", "s", 2, 8],
        "k": ["b", "t", 2, 8],
        "v": ["b", "t", 2, 8],
        "ck": ["g", "u", 2, 8],
        "cv": ["g", "u", 2, 8],
    }
    inputs = [onnx.helper.make_tensor_value_info(name, float32, dims) for name, dims in named.items()]
    result = onnx.helper.make_tensor_value_info("out", float32, named["q"])
    make = onnx.helper.make_node
    nodes = [
        make("AnchorAttention", list(named), ["middle"], domain="fairy", **PLUGIN_ATTRIBUTES),
        make("PlainAttention", ["middle", "k", "v"], ["out"], domain="fairy", **PLUGIN_ATTRIBUTES),
    ]
    graph = onnx.helper.make_graph(nodes, "attention", inputs, [result])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("fairy", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, functions=attention_functions("portable"), ir_version=10
    )
    onnx.save(model, path)


def test_without_the_plugin_the_body_computes_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    _attention_model(path)
    before = onnx.load(path)
    drop_plugins(path)
    after = onnx.load(path)
    assert all(len(node.attribute) == len(PLUGIN_ATTRIBUTES) for node in before.graph.node)
    assert not any(node.attribute for node in after.graph.node)
    onnx.checker.check_model(after)
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(4, 5, 2, 8, generator=generator) for name in ("q", "k", "v")}
    given |= {name: torch.randn(2, 7, 2, 8, generator=generator) for name in ("ck", "cv")}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    q, k, v, ck, cv = (given[name].double() for name in ("q", "k", "v", "ck", "cv"))
    joined = [torch.cat([own, shared.repeat_interleave(2, 0)], 1) for own, shared in ((k, ck), (v, cv))]
    middle = _attention(q, *joined)
    torch.testing.assert_close(torch.from_numpy(found).double(), _attention(middle, k, v), rtol=1e-5, atol=1e-5)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = (torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhst,bthd->bshd", weights, v)


@pytest.mark.slow
def test_registration_and_launch(bindings: dict[str, str], run_script: Callable[..., str]) -> None:
    assert "version" in run_script("drive_plugin.py", bindings)


@pytest.mark.slow
def test_values_in_the_interpreter(run_script: Callable[..., str]) -> None:
    run_script("interpret_plugin.py", {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
