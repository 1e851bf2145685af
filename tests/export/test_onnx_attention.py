"""Attention in ONNX files: both bodies against the definition in float64, run by onnxruntime."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fairy.export.onnx.attention import (
    BODIES,
    DOMAIN,
    OPSET,
    PLUGIN_ATTRIBUTES,
    attention_functions,
    attention_node,
    replaced_sdpa,
)
from fairy.kernels.anchor_attention import anchor_attention_reference

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# groups, frames, query tokens, own tokens, context tokens, heads, head dimension
SHAPES = [(1, 1, 1, 1, 1, 1, 8), (3, 2, 35, 35, 77, 8, 40), (2, 5, 7, 7, 13, 3, 16), (1, 3, 64, 64, 129, 2, 160)]


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _run(name: str, body: str, inputs: list[Tensor], heads: int) -> np.ndarray:
    """One node of a file that holds nothing else, on 4-D inputs."""
    formal = ["q", "k", "v", "ck", "cv"][: len(inputs)]
    value = onnx.helper.make_tensor_value_info
    attributes = PLUGIN_ATTRIBUTES | ({"heads": heads} if body == "onnxruntime" else {})
    node = onnx.helper.make_node(name, formal, ["out"], domain=DOMAIN, **attributes)
    ends = [value(n, onnx.TensorProto.FLOAT, [None] * 4) for n in (*formal, "out")]
    graph = onnx.helper.make_graph([node], "one", ends[:-1], ends[-1:])
    imports = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, functions=attention_functions(body), ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {n: t.numpy() for n, t in zip(formal, inputs, strict=True)})[0]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bodies_compute_attention(body: str, shape: tuple[int, ...]) -> None:
    groups, frames, queries, own, context, heads, dim = shape
    q, k, v = (_random(i, groups, frames, n, heads * dim) for i, n in enumerate((queries, own, own)))
    ck, cv = (_random(i, groups, 1, context, heads * dim) * 2 for i in (3, 4))
    rows = [t.flatten(0, 1).unflatten(-1, (heads, dim)) for t in (q, k, v)]
    shared = [t[:, 0].unflatten(-1, (heads, dim)) for t in (ck, cv)]
    double = [t.double() for t in (q, k, v, ck, cv)]
    for name, inputs, segments in (("PlainAttention", rows, 0), ("AnchorAttention", rows + shared, 1)):
        expected = anchor_attention_reference(*double[:3], [double[3]] * segments, [double[4]] * segments, heads)
        found = torch.from_numpy(_run(name, body, inputs, heads)).flatten(2).unflatten(0, (groups, frames))
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5, err_msg=f"{name} {shape}")


def test_the_portable_body_uses_standard_operators_alone() -> None:
    for function in attention_functions("portable"):
        assert {node.domain for node in function.node} == {""}
        assert not function.attribute  # heads are read off the shapes
        scaled = next(node.output[0] for node in function.node if node.op_type == "Mul")
        products = [node for node in function.node if node.op_type == "MatMul"]
        transposed = next(node.output[0] for node in function.node if node.input and node.input[0] == scaled)
        assert products[0].input[0] == transposed  # the scale is on the queries, not on the scores
    names = {name for body in BODIES for f in attention_functions(body) for name in f.input}
    assert all(name.startswith("fairy_") for name in names)


class _Layer(torch.nn.Module):
    """One call of the op with segments as `kinds` says, in the form that an export traces."""

    def __init__(self, own: bool, kinds: str, heads: int) -> None:
        super().__init__()
        self.own, self.kinds, self.heads = own, kinds, heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *context: Tensor) -> Tensor:
        keys, values = context[: len(self.kinds)], context[len(self.kinds) :]
        own = (k, v) if self.own else (None, None)
        return attention_node(q, *own, keys, values, heads=self.heads) + 0 * (k.mean() + v.mean())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:# The axis name")
@pytest.mark.parametrize(("own", "kinds"), [(True, "fs"), (False, "sfs")])
def test_every_pattern_becomes_one_node(own: bool, kinds: str, tmp_path: Path) -> None:
    """Segments shared ("s") or per frame ("f"), with own tokens or without; every size stays dynamic."""
    import onnx_ir

    def tensors(groups: int, frames: int, tokens: int, first: int, seed: int) -> list[Tensor]:
        lengths = [first + 2 * i for i in range(len(kinds))] * 2
        members = [1 if kind == "s" else frames for kind in kinds * 2]
        context = [
            _random(seed + 9 + i, groups, m, n, 24) for i, (m, n) in enumerate(zip(members, lengths, strict=True))
        ]
        return [*(_random(seed + i, groups, frames, tokens, 24) for i in range(3)), *context]

    dim = torch.export.Dim
    ends = {0: dim("groups", min=1), 1: dim("frames", min=1), 2: dim("tokens", min=1)}
    lengths = [dim(f"length_{i}", min=1) for i in range(len(kinds))] * 2
    segments = tuple(
        {0: ends[0], 2: length} | ({} if kind == "s" else {1: ends[1]})
        for kind, length in zip(kinds * 2, lengths, strict=True)
    )
    program = torch.onnx.export(
        _Layer(own, kinds, 3),
        tuple(tensors(2, 4, 6, 11, 0)),
        dynamo=True,
        dynamic_shapes=(ends, ends, ends, *([segments] if segments else [])),
        opset_version=OPSET,
        verbose=False,
    )
    nodes = [node for node in program.model.graph if node.domain == DOMAIN]
    mixed = "s" in kinds and (own or "f" in kinds)
    assert [node.op_type for node in nodes] == ["AnchorAttention" if mixed else "PlainAttention"]
    assert {name: nodes[0].attributes[name].value for name in PLUGIN_ATTRIBUTES} == PLUGIN_ATTRIBUTES
    for function in attention_functions("onnxruntime"):
        made = onnx_ir.serde.deserialize_function(function)
        program.model.functions[made.identifier()] = made
    program.model.opset_imports.setdefault(DOMAIN, 1)
    onnx_ir.save(program.model, tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    names = [end.name for end in session.get_inputs()]
    for groups, frames, tokens, first in itertools.product((1, 3), (1, 5), (9,), (1, 70)):
        given = tensors(groups, frames, tokens, first, 50)
        (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
        q, k, v, *context = (t.double() for t in given)
        half = len(kinds)
        expected = anchor_attention_reference(
            q, k if own else None, v if own else None, context[:half], context[half:], 3
        )
        np.testing.assert_allclose(found, expected, atol=5e-6, err_msg=str((groups, frames, tokens, first)))


def test_only_plain_sdpa_is_replaced() -> None:
    q = torch.zeros(1, 2, 3, 4)
    mask = torch.zeros(3, 3)
    assert replaced_sdpa(q, q, q, mask) is NotImplemented
    assert replaced_sdpa(q, q, q, is_causal=True) is NotImplemented
    assert replaced_sdpa(q, q, q, scale=0.5) is NotImplemented
    assert replaced_sdpa(q, q, q).shape == q.shape
