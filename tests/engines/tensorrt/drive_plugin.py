"""Our plugins through the real `tensorrt.plugin`: registration, and what TensorRT asks of a plugin during a build.

The symbolic shapes are numbers here, so that grid and arguments can be compared with what they have to be.
"""

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest
import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt
import tensorrt.plugin as trtp  # noqa: E402
from ptx_kinds import parameter_kinds  # noqa: E402
from tensorrt.plugin import _lib, _plugin_class  # noqa: E402

from fairy.engines.tensorrt.plugin import ENTRIES, use_plugins  # noqa: E402
from fairy.kernels.errors import MachineError  # noqa: E402

TARGET = 90
O = trt.DimensionOperation  # noqa: E741
OPERATIONS = {
    O.SUM: lambda a, b: a + b,
    O.PROD: lambda a, b: a * b,
    O.SUB: lambda a, b: a - b,
    O.FLOOR_DIV: lambda a, b: a // b,
    O.CEIL_DIV: lambda a, b: -(-a // b),
}


class Number:
    """Stands for an IDimensionExpr."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value

    def is_size_tensor(self) -> bool:
        return False


class Numbers:
    """Stands for an IExprBuilder."""

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, operation: object, a: Number, b: Number) -> Number:
        return Number(OPERATIONS[operation](a.value, b.value))


class Arguments(dict):
    """Stands for an ISymExprs."""

    nbSymExprs = 0


def dynamic(shape: tuple[int, ...], dtype: object) -> object:
    tensor = trt.DynamicPluginTensorDesc()
    tensor.desc.type, tensor.desc.format = dtype, trt.TensorFormat.LINEAR
    return tensor


def drive(name: str, shapes: list[tuple[int, ...]], dtype: object) -> None:
    """What TensorRT does with a plugin while it builds, in its order."""
    creator = _lib._TemplatePluginCreator(name, "fairy", {})
    fields = trt.PluginFieldCollection([])
    aot = trt.QuickPluginCreationRequest.STRICT_AOT
    plugin = creator.create_plugin(name, "fairy", fields, trt.TensorRTPhase.BUILD, aot)
    types = [dtype] * len(shapes)
    assert plugin.get_output_data_types(types, [len(shape) for shape in shapes]) == [dtype]
    (result,) = plugin.get_output_shapes([[Number(n) for n in shape] for shape in shapes], [], Numbers())
    assert [expression.value for expression in result] == list(shapes[0])
    tensors = [dynamic(shape, dtype) for shape in (*shapes, shapes[0])]
    combination = plugin.get_supported_format_combinations(tensors, len(shapes))
    assert [(tensor.type, tensor.format) for tensor in combination] == [(dtype, trt.TensorFormat.LINEAR)] * len(tensors)
    plugin.configure_plugin(tensors[:-1], tensors[-1:])
    plugin.set_tactic(0)
    launch, arguments = SimpleNamespace(), Arguments()
    plugin.get_launch_params([], tensors, len(shapes), launch, arguments, Numbers())
    symbol, code = plugin.get_kernel([tensor.desc for tensor in tensors[:-1]], [tensors[-1].desc])
    check(name, shapes, symbol, code.decode(), launch, [arguments[i].value for i in range(arguments.nbSymExprs)])


def check(name: str, shapes: list[tuple[int, ...]], symbol: str, code: str, launch: object, numbers: list[int]) -> None:
    rows, tokens, heads, _ = shapes[0]
    groups, context = shapes[-1][:2]
    frames = rows // groups
    own = [shapes[1][1]] if name == "AnchorAttention" else []
    assert numbers == [frames, tokens, *own, context, heads], numbers
    assert parameter_kinds(code) == ["u64"] * len(shapes) + ["u32"] * len(numbers) + ["u64"]
    assert f".entry {symbol}(" in code
    threads = int(code.split(".reqntid ")[1].split()[0])
    block = 128 if shapes[0][3] < 128 else 64
    assert launch.grid_x.value == -(-tokens // block) * rows * heads
    assert launch.block_x.value == threads
    assert (launch.grid_y.value, launch.grid_z.value, launch.block_y.value, launch.block_z.value) == (1, 1, 1, 1)
    assert 0 < launch.shared_mem.value <= 48 * 1024


library = ctypes.CDLL(os.environ["FAKE_LIBRARY"])
library.script.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
library.script(1, 0, 0)  # the registry has no creator of ours yet
use_plugins(trt, TARGET)
use_plugins(trt, TARGET)  # once more does nothing
library.script(0, 0, 0)
with pytest.raises(MachineError, match="builds for sm_90 already"):
    use_plugins(trt, 80)
for plugin_name in ENTRIES:
    definition = getattr(trtp.op.fairy, plugin_name)
    assert definition.aot_impl_func is not None
    assert not definition.input_attrs

# Numbers instead of the library's own expressions, whose arithmetic is the library's.
trt.IDimensionExpr = Number
trt.DimsExprs = lambda length: [None] * length
_plugin_class.SymInt32.__call__ = lambda self: self._expr
half, bfloat = trt.DataType.HALF, trt.DataType.BF16
q = (6, 201, 8, 40)
drive("AnchorAttention", [q, q, q, (3, 500, 8, 40), (3, 500, 8, 40)], half)
drive("PlainAttention", [(3, 77, 4, 160), (3, 1000, 4, 160), (3, 1000, 4, 160)], bfloat)
print("version", trt.__version__)
sys.stdout.flush()
os._exit(0)
