"""Attention in an ONNX file: one node per attention layer, whose body is a function of the file's own.

Nodes (domain `fairy`, all tensors 4-D so that heads and head dimension can be read off the shapes; B batch rows,
S query tokens, T own tokens, U context tokens, H heads, D head dimension)

    PlainAttention(q, k, v)                              q [B, S, H, D], k and v [B, T, H, D] → [B, S, H, D]
    AnchorAttention(q, k, v, context_k, context_v)       as above, and context [G, U, H, D] where B = G·frames, row
                                                         g·frames + f of B reading row g of the context: the anchors'
                                                         keys and values are handed over by reference, never repeated

Scale 1/√D; keys in the order own, then context. Each node carries `plugin_namespace`, `plugin_version` and `aot`, by
which TensorRT finds a plugin of that name; where none is registered, the function's body is imported instead.

Bodies, exchanged without exporting again
    onnxruntime   com.microsoft.MultiHeadAttention, which never materialises the scores; its number of heads must be
                  an attribute, so these nodes carry `heads` as well
    portable      queries scaled first, then MatMul, Softmax, MatMul: standard operators in the form that TensorRT fuses
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

Body = Literal["onnxruntime", "portable"]

BODIES: tuple[Body, ...] = ("onnxruntime", "portable")
DOMAIN = "fairy"
OPSET = 20  # the oldest with Gelu; read by onnxruntime 1.17 and TensorRT 10.3 and later
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_namespace": "fairy", "plugin_version": "1", "aot": 1}


def attention_node(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor] = (),
    context_v: Sequence[Tensor] = (),
    *,
    heads: int,
) -> Tensor:
    """Leave one node in the graph that `torch.onnx.export` traces; shapes as in `fairy.kernels.anchor_attention`.

    It computes nothing: outside an export its result has the right shape and arbitrary values.
    """
    own_k, shared_k = _by_reach(k, context_k)
    own_v, shared_v = _by_reach(v, context_v)
    if not own_k:  # every frame reads the same keys: frames are folded into the queries, nothing is repeated
        rows = [q.flatten(1, 2), _join(shared_k)[:, 0], _join(shared_v)[:, 0]]
    else:
        rows = [t.flatten(0, 1) for t in (q, _join(own_k), _join(own_v))]
        if shared_k:
            rows += [_join(shared_k)[:, 0], _join(shared_v)[:, 0]]
    name = "AnchorAttention" if own_k and shared_k else "PlainAttention"
    return _node(name, [t.unflatten(-1, (heads, -1)) for t in rows], heads).reshape(q.shape)


def replaced_sdpa(
    q_BHSD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A decomposition of `scaled_dot_product_attention` [B, H, S, D] into a PlainAttention node where it is plain."""
    if attn_mask is not None or dropout_p or is_causal or scale is not None or enable_gqa:
        return cast(Tensor, NotImplemented)  # what a decomposition says to leave the operator as it is
    rows = [t.transpose(1, 2) for t in (q_BHSD, k_BHTD, v_BHTD)]
    return _node("PlainAttention", rows, int(q_BHSD.shape[1])).transpose(1, 2)


def attention_functions(body: Body) -> list[Any]:
    """The two functions as `onnx.FunctionProto`, with the body asked for."""
    import onnx.parser

    texts = _ONNXRUNTIME if body == "onnxruntime" else _PORTABLE
    imports = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "com.microsoft" : 1]>'
    return [onnx.parser.parse_function(f"{imports}\n{text}") for text in texts]


def _by_reach(own: Tensor | None, context: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys (or values) that differ from frame to frame, and those that all frames share."""
    # A symbolic number of frames must not be compared with 1: that would fix it in the exported graph.
    shared = [t for t in context if isinstance(t.shape[1], int) and t.shape[1] == 1]
    frames = [t for t in context if not any(t is s for s in shared)]
    return [*([] if own is None else [own]), *frames], shared


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _node(name: str, inputs: Sequence[Tensor], heads: int) -> Tensor:
    q = inputs[0]
    attributes = {**PLUGIN_ATTRIBUTES, "heads": heads}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", inputs, attributes, dtype=q.dtype, shape=q.shape, version=1)


# Names of formal inputs start with fairy_: TensorRT's parser warns where they equal a name of the graph around them.
_REPEAT_CONTEXT = """
    fairy_rows = Shape <start = 0, end = 1> (fairy_q)
    fairy_groups = Shape <start = 0, end = 1> (fairy_context_k)
    fairy_rest = Shape <start = 1, end = 4> (fairy_context_k)
    fairy_frames = Div (fairy_rows, fairy_groups)
    fairy_one = Constant <value_ints = [1]> ()
    fairy_repeats = Concat <axis = 0> (fairy_one, fairy_frames, fairy_one, fairy_one, fairy_one)
    fairy_shape = Concat <axis = 0> (fairy_rows, fairy_rest)
    fairy_ck5 = Unsqueeze (fairy_context_k, fairy_one)
    fairy_cv5 = Unsqueeze (fairy_context_v, fairy_one)
    fairy_ck_each = Expand (fairy_ck5, fairy_repeats)
    fairy_cv_each = Expand (fairy_cv5, fairy_repeats)
    fairy_ck = Reshape (fairy_ck_each, fairy_shape)
    fairy_cv = Reshape (fairy_cv_each, fairy_shape)
    fairy_keys = Concat <axis = 1> (fairy_k, fairy_ck)
    fairy_values = Concat <axis = 1> (fairy_v, fairy_cv)
"""
_SCALED_SOFTMAX = """
    fairy_dim = Shape <start = 3, end = 4> (fairy_q)
    fairy_dim_float = Cast <to = 1> (fairy_dim)
    fairy_root = Sqrt (fairy_dim_float)
    fairy_scale_float = Reciprocal (fairy_root)
    fairy_scale = CastLike (fairy_scale_float, fairy_q)
    fairy_q_scaled = Mul (fairy_q, fairy_scale)
    fairy_q_BHSD = Transpose <perm = [0, 2, 1, 3]> (fairy_q_scaled)
    fairy_k_BHDT = Transpose <perm = [0, 2, 3, 1]> ({keys})
    fairy_v_BHTD = Transpose <perm = [0, 2, 1, 3]> ({values})
    fairy_scores = MatMul (fairy_q_BHSD, fairy_k_BHDT)
    fairy_weights = Softmax <axis = -1> (fairy_scores)
    fairy_out_BHSD = MatMul (fairy_weights, fairy_v_BHTD)
    fairy_out = Transpose <perm = [0, 2, 1, 3]> (fairy_out_BHSD)
"""
_MULTI_HEAD = """
    fairy_flat = Constant <value_ints = [0, 0, -1]> ()
    fairy_q_BSC = Reshape (fairy_q, fairy_flat)
    fairy_k_BTC = Reshape ({keys}, fairy_flat)
    fairy_v_BTC = Reshape ({values}, fairy_flat)
    fairy_out_BSC = com.microsoft.MultiHeadAttention <num_heads : int = @heads> (fairy_q_BSC, fairy_k_BTC, fairy_v_BTC)
    fairy_shape_q = Shape (fairy_q)
    fairy_out = Reshape (fairy_out_BSC, fairy_shape_q)
"""


def _texts(attributes: str, core: str) -> tuple[str, str]:
    """The two functions in ONNX's textual form, with attention on given keys and values as `core` computes it."""
    plain = core.format(keys="fairy_k", values="fairy_v")
    joined = _REPEAT_CONTEXT + core.format(keys="fairy_keys", values="fairy_values")
    context = "fairy_context_k, fairy_context_v"
    return (
        f"PlainAttention {attributes} (fairy_q, fairy_k, fairy_v) => (fairy_out) {{{plain}}}",
        f"AnchorAttention {attributes} (fairy_q, fairy_k, fairy_v, {context}) => (fairy_out) {{{joined}}}",
    )


_ONNXRUNTIME = _texts("<heads>", _MULTI_HEAD)
_PORTABLE = _texts("", _SCALED_SOFTMAX)
