"""Our attention kernel inside TensorRT: a quickly deployable plugin whose code is compiled ahead of time.

The ONNX file's nodes `fairy::AnchorAttention` and `fairy::PlainAttention` (see `export/onnx/attention.py`) name
plugins; here stand those. They hand TensorRT the kernel's PTX, so the finished engine runs without Python and without
us. In a graph that the kernel does not serve, or where no plugin is asked for, the nodes lose the plugin's name and are
built from the function's body.

What TensorRT passes to the kernel: the inputs' pointers, int32 numbers, the outputs' pointers, and nothing else. So the
softmax scale is compiled in, heads are read off the 4-D shapes (there are no attributes), and the two further
parameters that Triton appends are taken out of the PTX.
"""

import functools
import importlib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fairy.engines.tensorrt.ptx import strip_parameters, without_line_info
from fairy.export.graphs import GraphSpec
from fairy.export.onnx.attention import DOMAIN, PLUGIN_ATTRIBUTES
from fairy.kernels.errors import MachineError

# Node to the kernel's entry and to what the kernel calls the node's inputs.
ENTRIES = {
    "AnchorAttention": ("own_and_shared", ("q", "k", "v", "context_k", "context_v")),
    "PlainAttention": ("shared", ("q", "context_k", "context_v")),
}
# PTX for these runs on every later GPU too; that of others only on the GPU it names.
_PORTABLE_TARGETS = (80, 86, 89)
_INT32 = 2**31

Shape = tuple[int, ...]


def kernel_target(capability: tuple[int, int]) -> int | None:
    """Which target of the kernel's serves a GPU of this compute capability; None where none does."""
    from fairy.kernels.ahead_of_time import TARGETS

    wanted = 10 * capability[0] + capability[1]
    if wanted in TARGETS:
        return wanted
    return max((target for target in _PORTABLE_TARGETS if target <= wanted), default=None)


def kernel_serves(graph: GraphSpec, precision: torch.dtype, ranges: Mapping[str, Sequence[Shape]]) -> bool:
    """Whether the kernel computes every attention layer of a UNet graph.

    Cross-attention has the heads of the self-attention beside it, so the layers of the spec speak for all.

    Args:
        ranges: smallest, best and largest shape of every input; the kernel counts elements in 32 bits.
    """
    from fairy.kernels.ahead_of_time import DTYPES, HEAD_DIMS

    groups, frames, _, height, width = ranges["sample"][-1] if graph.layers else (0, 0, 0, 0, 0)
    tokens = {layer.level: (height >> layer.level) * (width >> layer.level) for layer in graph.layers}
    elements = [groups * frames * tokens[layer.level] * layer.channels for layer in graph.layers]
    elements += [math.prod(shapes[-1]) for shapes in ranges.values()]
    return (
        bool(graph.layers)
        and precision in DTYPES
        and all(layer.channels // layer.heads in HEAD_DIMS for layer in graph.layers)
        and max(elements) < _INT32
    )


def drop_plugins(model: Path) -> None:
    """Take the plugins' names off the attention nodes of an ONNX file, so that their bodies are built."""
    import onnx

    proto = onnx.load(model, load_external_data=False)
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            rest = [attribute for attribute in node.attribute if attribute.name not in PLUGIN_ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(rest)
    onnx.save(proto, model)


def use_plugins(trt: Any, target: int) -> None:
    """Make the plugins known to TensorRT in this process, for GPUs of one kernel target.

    Raises:
        MachineError: the process builds for another target already, or TensorRT does not take the plugins.
    """
    plugins = _plugins(trt)
    if plugins.target not in (None, target):
        raise MachineError(
            f"This process builds for sm_{plugins.target} already; build for sm_{target} in another process."
        )
    plugins.target = target
    plugins.register()


class AttentionPlugins:
    """The plugins of one process; TensorRT keeps one table of them, by name."""

    def __init__(self, module: Any) -> None:
        self.target: int | None = None
        self._trtp = module
        self._registered: set[str] = set()

    def register(self) -> None:
        """Register every plugin that is not yet known."""
        namespace = PLUGIN_ATTRIBUTES["plugin_namespace"]
        for name in sorted(ENTRIES.keys() - self._registered):
            try:
                self._trtp.register(f"{namespace}::{name}")(self._description(name))
                self._trtp.aot_impl(f"{namespace}::{name}")(self._implementation(name))
            except (RuntimeError, ValueError, TypeError) as error:
                raise MachineError(f"TensorRT does not take the plugin {name}: {error}; build without it.") from error
            self._registered.add(name)

    def _description(self, name: str) -> Callable[..., Any]:
        """Tells TensorRT that the output is like q."""

        def describe(*tensors: Any) -> Any:
            return tensors[0].like()

        return _signed(describe, dict.fromkeys(ENTRIES[name][1], self._trtp.TensorDesc), self._trtp.TensorDesc)

    def _implementation(self, name: str) -> Callable[..., Any]:
        """Tells TensorRT the kernel, its launch and its numbers."""
        names = ENTRIES[name][1]

        def launch(*arguments: Any) -> Any:
            return self._launch(name, dict(zip(names, arguments, strict=False)))  # outputs and tactic follow

        returned = types.GenericAlias(tuple, (str, str, self._trtp.KernelLaunchParams, self._trtp.SymIntExprs))
        empty = inspect.Parameter.empty
        return _signed(launch, dict.fromkeys((*names, "outputs", "tactic"), empty), returned)

    def _launch(self, name: str, tensors: Mapping[str, Any]) -> tuple[str, str, Any, Any]:
        shapes = {tensor: tuple(described.shape_expr) for tensor, described in tensors.items()}
        rows, tokens, heads, head_dim = shapes["q"]
        dtype = _torch_type(tensors["q"].dtype)
        kernel = compiled_kernel(ENTRIES[name][0], head_dim.constant_value(), dtype, self.target or 0)
        numbers = kernel_numbers(shapes)
        wanted = [number for number, kind in kernel.params if kind == "i32"]
        extra = self._trtp.SymIntExprs.from_tuple([self._trtp.SymInt32(numbers[number]) for number in wanted])
        launch = self._trtp.KernelLaunchParams(
            grid_x=self._trtp.cdiv(tokens, kernel.blocks.m) * rows * heads,
            block_x=kernel.threads,
            shared_mem=kernel.shared_bytes,
        )
        return kernel.variant.name, plugin_ptx(kernel), launch, extra


def kernel_numbers(shapes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The kernel's whole numbers by name, from its inputs' shapes [batch rows, tokens, heads, head dimension].

    A row of the context serves the batch rows of one group; where a row is a group of its own, it has one frame.
    """
    rows, tokens, heads, _ = shapes["q"]
    groups, context_length = shapes["context_k"][:2]
    own = {"own_length": shapes["k"][1]} if "k" in shapes else {}
    return {"frames": rows // groups, "tokens": tokens, "context_length": context_length, "heads": heads, **own}


def compiled_kernel(entry: str, head_dim: int, dtype: torch.dtype, target: int) -> Any:
    """The kernel's `Binary`, with the PTX version pinned to one that drivers of CUDA 12.8 and later read.

    Raises:
        MachineError: it needs more shared memory than every GPU grants without being asked.
    """
    from fairy.kernels.ahead_of_time import PTX_VERSION, SHARED_LIMIT_BYTES, Variant, compile_variant

    kernel = compile_variant(Variant(head_dim, dtype, target, entry), ptx_version=PTX_VERSION)
    if kernel.shared_bytes > SHARED_LIMIT_BYTES:
        raise MachineError(f"{kernel.variant.name} needs {kernel.shared_bytes} bytes of shared memory, above 48 KiB.")
    return kernel


def plugin_ptx(kernel: Any) -> str:
    """A kernel's PTX as TensorRT launches it: named as its variant, taking its own parameters and no others."""
    stripped = strip_parameters(without_line_info(kernel.ptx), len(kernel.params))
    return stripped.replace(kernel.symbol, kernel.variant.name)


@functools.cache
def _plugins(trt: Any) -> AttentionPlugins:
    return AttentionPlugins(importlib.import_module("tensorrt.plugin"))


def _signed(function: Callable[..., Any], parameters: Mapping[str, Any], returned: Any) -> Callable[..., Any]:
    """The function with the signature that TensorRT inspects: it wants every input by name and annotated."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()],
        return_annotation=returned,
    )
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _torch_type(dtype: Any) -> torch.dtype:
    import tensorrt as trt

    types: dict[Any, torch.dtype] = {trt.DataType.HALF: torch.float16, trt.DataType.BF16: torch.bfloat16}
    return types[dtype]
