"""A TensorRT made of Python: it answers as the library documents, and computes a given function at the bound addresses.

By itself it stands in for the module where only our logic matters; behind `checked.py` it decides what NVIDIA's real
bindings answer.
"""

import ctypes
import json
from collections.abc import Callable
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec

Compute = Callable[[dict[str, Tensor]], dict[str, Tensor]]
HANDLE = 0x5150


def _enum(name: str, *members: str) -> Any:
    return Enum(name, {member: auto() for member in members})


class Base:
    """What callbacks derive from."""

    def __init__(self) -> None:
        pass


class Flag(Enum):
    """A flag whose bit is not its position in any real version."""

    STRONGLY_TYPED = 5

    def __int__(self) -> int:
        return self.value


class ScriptedTensorRT:
    """The module. `fails` names the one call that is to fail; everything that was called is in `log`."""

    __version__ = "11.4.0.106"
    __name__ = "scripted_tensorrt"
    IProgressMonitor = IErrorRecorder = Base
    NetworkDefinitionCreationFlag = Flag
    BuilderFlag = _enum("BuilderFlag", "TF32")
    MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
    LayerType = _enum("LayerType", "SOFTMAX", "ATTENTION_INPUT")
    ErrorCodeTRT = _enum("ErrorCodeTRT", "INTERNAL_ERROR")
    DataType = _enum("DataType", "FLOAT", "HALF", "BF16", "INT64")
    ExecutionContextAllocationStrategy = _enum("ExecutionContextAllocationStrategy", "STATIC", "USER_MANAGED")

    class ILogger(Base):
        Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    class IAttentionInputLayer:
        pass

    def __init__(self, graph: GraphSpec, ranges: dict[str, Any], compute: Compute, enums: Any = None) -> None:
        self.graph, self.ranges, self.compute = graph, ranges, compute
        self.enums = enums or self  # the real module's, where it stands behind that
        self.fails = ""
        self.log: list[tuple[Any, ...]] = []
        self.steps = 3
        self.pool = 0
        self.recording: list[Callable[[], None]] | None = None

    def note(self, *what: Any) -> None:
        self.log.append(what)

    def said(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [call[1:] for call in self.log if call[0] == name]

    def Builder(self, logger: Any) -> "Builder":
        self.logger = logger
        if self.fails == "Builder":
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Builder(self)

    def OnnxParser(self, network: Any, logger: Any) -> "Parser":
        return Parser(self)

    def Runtime(self, logger: Any) -> "Runtime":
        self.logger = logger
        return Runtime(self)

    def complain(self, text: str) -> None:
        """Say something to the logger, as the library does before it returns None."""
        self.logger.log(self.enums.ILogger.Severity.ERROR, text)


class Builder:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.error_recorder: Any = None

    def create_network(self, flags: int) -> "Network":
        self.trt.note("create_network", flags)
        return Network(self.trt)

    def create_builder_config(self) -> "Config":
        return Config(self.trt)

    def create_optimization_profile(self) -> "Profile":
        return Profile(self.trt)

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        monitor = self.trt.config.progress_monitor
        monitor.phase_start("Building", None, self.trt.steps)
        for step in range(self.trt.steps):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if self.trt.fails == "build":
            self.trt.complain("No implementation for node X")
            self.error_recorder.report_error(self.trt.enums.ErrorCodeTRT.INTERNAL_ERROR, "Engine build failed.")
            return None
        return json.dumps({"plan": self.trt.graph.name}).encode()


class Network:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.layers = [Layer(trt.enums.LayerType.SOFTMAX), Layer(trt.enums.LayerType.ATTENTION_INPUT)]
        self.num_layers, self.num_inputs = len(self.layers), len(trt.graph.inputs)
        trt.layers = self.layers

    def get_layer(self, index: int) -> "Layer":
        return self.layers[index]

    def get_input(self, index: int) -> Any:
        return Named(self.trt.graph.inputs[index].name)


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


class Layer:
    def __init__(self, kind: Any) -> None:
        self.type = kind
        self.attention = SimpleNamespace(decomposable=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # the bindings allow it between their own classes
            return
        object.__setattr__(self, name, value)


class Parser:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.num_errors = 1

    def parse_from_file(self, path: str) -> bool:
        self.trt.note("parse_from_file", Path(path).name)
        return self.trt.fails != "parse"

    def get_error(self, index: int) -> Any:
        return ParserError()


class ParserError:
    def desc(self) -> str:
        return "unsupported data type\n in node 7"

    def node_operator(self) -> str:
        return "Resize"


class Config:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        trt.config = self
        self.trt = trt
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3

    def clear_flag(self, flag: Any) -> None:
        self.trt.note("clear_flag", flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.trt.note("set_memory_pool_limit", pool, size)
        self.trt.pool = 0 if self.trt.fails == "pool" else size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.trt.pool

    def add_optimization_profile(self, profile: Any) -> int:
        return -1 if self.trt.fails == "profile" else 0

    def create_timing_cache(self, data: bytes) -> "TimingCache | None":
        self.trt.note("create_timing_cache", bytes(data))
        return TimingCache()

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        data = self.trt.said("create_timing_cache")[-1][0]
        return not (self.trt.fails == "timing cache" and data)

    def get_timing_cache(self) -> "TimingCache":
        return TimingCache()


class TimingCache:
    def serialize(self) -> bytes:
        return b"measured"


class Profile:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.trt.note("set_shape", name, low, best, high)
        if self.trt.fails == "set_shape":
            raise ValueError("min is above max")


class Runtime:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.error_recorder: Any = None

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        if self.trt.fails == "deserialize" or not plan.startswith(b"{"):
            self.trt.complain("Serialization assertion magicTagRead == kPLAN_TAG failed.")
            return None
        return Engine(self.trt)


class Engine:
    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.tensors = (*trt.graph.inputs, *trt.graph.outputs)
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = self.trt.enums.DataType
        names = {"float": kinds.FLOAT, "float32": kinds.FLOAT, "int64": kinds.INT64}
        (dtype,) = [tensor.dtype for tensor in self.tensors if tensor.name == name]
        return kinds.HALF if self.trt.fails == "dtype" and dtype == "float" else names[dtype]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self.trt.ranges[name])

    def create_execution_context(self, strategy: Any) -> "Context | None":
        self.trt.note("create_execution_context", strategy)
        return None if self.trt.fails == "context" else Context(self.trt)


class Context:
    """Computes when it is executed, reading and writing the memory whose addresses it was given."""

    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        trt.last_context = self

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        return profile_index == 0 and stream_handle == HANDLE

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return self.trt.fails != "set_input_shape"

    def infer_shapes(self) -> list[str]:
        results = self.trt.compute({name: torch.zeros(shape) for name, shape in self.shapes.items()})
        self.shapes |= {name: tuple(result.shape) for name, result in results.items()}
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return 64 * self.shapes["sample"][1]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.trt.note("set_device_memory", memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self.trt.fails != "set_tensor_address"

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.trt.note("execute", stream_handle)
        if self.trt.fails == "execute" or (self.trt.fails == "capture" and self.trt.recording is not None):
            self.trt.complain("Cask convolution execution")
            return False
        bound = dict(self.addresses)
        if self.trt.recording is None:
            self.compute(bound)
        else:
            self.trt.recording.append(lambda: self.compute(bound))
        return True

    def compute(self, addresses: dict[str, int]) -> None:
        def at(name: str) -> Tensor:
            shape = self.shapes[name]
            count = 4 * torch.Size(shape).numel()
            raw = (ctypes.c_char * count).from_address(addresses[name])
            return torch.frombuffer(raw, dtype=torch.float32).view(shape)

        inputs = {tensor.name: at(tensor.name) for tensor in self.trt.graph.inputs}
        for name, result in self.trt.compute(inputs).items():
            at(name).copy_(result)


class HostStream:
    """A stream on the host: runs at once, and captures by recording what would run."""

    handle = HANDLE

    def __init__(self, trt: ScriptedTensorRT) -> None:
        self.trt = trt
        self.entered = 0
        self.replays = 0

    @contextmanager
    def ordered(self):
        self.entered += 1
        yield

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        self.trt.recording = recorded = []
        try:
            enqueue()
        finally:
            self.trt.recording = None

        def replay() -> None:
            self.replays += 1
            for step in recorded:
                step()

        return replay
