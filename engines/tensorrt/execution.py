"""A TensorRT plan runs on torch's tensors.

Keys and values, the large tensors, are bound where they lie: inputs named `context.…` and every output given in `out`.
The small ones (sample, time steps, text, and outputs that nobody gave a place) go through buffers that stay put, so
that a call is bound to the same addresses each time the same bank is read and its CUDA graph can be replayed.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairy.engines.engine import EngineSpec
from fairy.engines.tensorrt.build import make
from fairy.engines.tensorrt.gpu import GraphCache, ScratchMemory, Stream, on_device
from fairy.engines.tensorrt.messages import messages
from fairy.kernels.errors import InputError, MachineError

_LOG = logging.getLogger(__name__)
MAX_SHAPES = 4  # sets of shapes whose execution contexts are kept
_ALIGNMENT = 256  # bytes; what TensorRT expects of an address
_PROFILE = 0

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where engines run and what they share there."""

    device: torch.device
    stream: Stream
    scratch: ScratchMemory
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Prepared:
    """One execution context at one set of input shapes."""

    context: Any
    shapes: dict[str, Shape]
    scratch_bytes: int
    scratch_address: int = 0
    buffers: dict[str, Tensor] = field(default_factory=dict)
    graphs: GraphCache = field(default_factory=GraphCache)


class TensorRTEngine:
    """One graph run by TensorRT; `Engine` says how it is called.

    Args:
        trt: the TensorRT module.
        plan: the file that was built; it is executable code and must come from a checked store.

    Raises:
        MachineError: the plan does not load here, with what TensorRT said.
    """

    def __init__(self, trt: Any, spec: EngineSpec, plan: Path, place: Place) -> None:
        self.spec = spec
        self._trt = trt
        self._place = place
        self._log = messages(trt)
        self._dtypes = _dtypes(spec)
        self._inputs = tuple(tensor.name for tensor in spec.graph.inputs)
        self._outputs = tuple(tensor.name for tensor in spec.graph.outputs)
        self._in_place = frozenset(
            name for layer in spec.graph.layers for s in range(len(layer.segments)) for name in layer.context(s)
        )
        self._prepared: OrderedDict[tuple[Shape, ...], _Prepared] = OrderedDict()
        with on_device(place.device):
            self._runtime, self._engine = self._deserialise(plan.read_bytes())
        self._check_engine()
        self._limits = {
            name: tuple(tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, _PROFILE))
            for name in self._inputs
        }
        place.scratch.join()

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`.

        Raises:
            InputError: a tensor is missing, of another type or device, or outside the shapes the engine was built for.
            MachineError: TensorRT failed, with what it said.
        """
        with self._place.lock:  # engines of one place share its memory; what they enqueue runs in this order
            if self._engine is None:
                raise InputError(f"The engine of {self.spec.graph.name} was closed.")
            self._check_inputs(inputs)
            prepared = self._prepare(inputs)
            results = self._results(prepared, out or {})
            self._call(prepared, inputs, self._bind(prepared, inputs, out or {}), results)
        return results

    def close(self) -> None:
        """Give back the engine, its contexts and its buffers."""
        with self._place.lock:
            if self._engine is not None:
                self._prepared.clear()
                self._engine = self._runtime = None
                self._place.scratch.leave()

    def _call(
        self,
        prepared: _Prepared,
        inputs: Mapping[str, Tensor],
        bound: Mapping[str, Tensor],
        results: Mapping[str, Tensor],
    ) -> None:
        """Copy in what is not bound in place, run, and copy out."""
        with self._place.stream.ordered():
            for name in self._inputs:
                if name not in self._in_place:
                    bound[name].copy_(inputs[name])
            self._run(prepared, bound)
            for name in self._outputs:
                if bound[name] is not results[name]:
                    results[name].copy_(bound[name])

    def _deserialise(self, plan: bytes) -> tuple[Any, Any]:
        runtime = make(self._trt, self._trt.Runtime)
        runtime.error_recorder = self._log.recorder
        start = self._log.mark()
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            what = f"TensorRT cannot load the engine of {self.spec.graph.name}"
            raise self._log.failure(what, start, "build it again with `fairy build`")
        return runtime, engine

    def _check_engine(self) -> None:
        """Refuse a plan whose tensors are not those of the graph."""
        kinds = self._trt.DataType
        torch_types = {
            kinds.FLOAT: torch.float32,
            kinds.HALF: torch.float16,
            kinds.BF16: torch.bfloat16,
            kinds.INT64: torch.int64,
        }
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {name: torch_types.get(self._engine.get_tensor_dtype(name)) for name in names}
        if found != self._dtypes:
            odd = sorted(
                name for name in found.keys() | self._dtypes.keys() if found.get(name) != self._dtypes.get(name)
            )
            raise MachineError(
                f"The plan does not hold {self.spec.graph.name} in {self.spec.precision}: {odd[0]} differs; "
                "build it again with `fairy build`."
            )

    def _check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        graph = self.spec.graph.name
        if set(inputs) != set(self._inputs):
            odd = sorted(set(inputs) ^ set(self._inputs))
            raise InputError(
                f"{graph} takes the inputs {', '.join(self._inputs[:3])}, …; {odd[0]} is missing or unknown."
            )
        for name, tensor in inputs.items():
            self._check_tensor(name, tensor)
            low, _, high = self._limits[name]
            shape = tuple(tensor.shape)
            fits = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            if not fits:
                raise InputError(
                    f"{graph} was built for {name} from {list(low)} to {list(high)}, not {list(shape)}; "
                    "build an engine for these shapes with `fairy build`."
                )

    def _check_tensor(self, name: str, tensor: Tensor) -> None:
        wanted, device = self._dtypes[name], self._place.device
        if tensor.dtype != wanted or tensor.device != device:
            raise InputError(f"{name} must be {wanted} on {device}, not {tensor.dtype} on {tensor.device}.")

    def _prepare(self, inputs: Mapping[str, Tensor]) -> _Prepared:
        """The execution context for these shapes; the least recently used one goes where there are too many."""
        key = tuple(tuple(inputs[name].shape) for name in self._inputs)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        shapes = dict(zip(self._inputs, key, strict=True))
        context = self._context(shapes)
        shapes |= {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        prepared = _Prepared(context, shapes, context.update_device_memory_size_for_shapes())
        self._prepared[key] = prepared
        if len(self._prepared) > MAX_SHAPES:
            self._prepared.popitem(last=False)
        return prepared

    def _context(self, shapes: Mapping[str, Shape]) -> Any:
        """A new execution context with the inputs' shapes set."""
        start, graph = self._log.mark(), self.spec.graph.name
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with on_device(self._place.device):
            context = self._engine.create_execution_context(strategy)
            if context is None:
                raise self._log.failure(f"TensorRT made no execution context for {graph}", start)
            if not context.set_optimization_profile_async(_PROFILE, self._place.stream.handle):
                raise self._log.failure(f"TensorRT did not set the profile of {graph}", start)
        for name in self._inputs:
            if not context.set_input_shape(name, shapes[name]):
                raise self._log.failure(f"TensorRT does not take {name} {list(shapes[name])}", start)
        missing = context.infer_shapes()
        if missing:
            raise self._log.failure(f"TensorRT does not know the shapes of {graph} without {missing[0]}", start)
        return context

    def _results(self, prepared: _Prepared, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where every output is to be in the end: a tensor given in `out`, or a new one."""
        unknown = sorted(set(out) - set(self._outputs))
        if unknown:
            raise InputError(f"{self.spec.graph.name} has no output {unknown[0]}.")
        results = {}
        for name in self._outputs:
            shape = prepared.shapes[name]
            if name not in out:
                results[name] = torch.empty(shape, dtype=self._dtypes[name], device=self._place.device)
                continue
            results[name] = out[name]
            self._check_tensor(name, out[name])
            if tuple(out[name].shape) != shape:
                raise InputError(f"{name} must be {list(shape)}, not {list(out[name].shape)}.")
        return results

    def _bind(self, prepared: _Prepared, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensor that every name is bound to in this call: the caller's own where that is possible."""
        bound = {}
        for name in self._inputs:
            if name not in self._in_place:
                bound[name] = self._buffer(prepared, name)
            elif _bindable(inputs[name]):
                bound[name] = inputs[name]
            else:
                bound[name] = inputs[name].clone(memory_format=torch.contiguous_format)
        for name in self._outputs:
            bound[name] = out[name] if name in out and _bindable(out[name]) else self._buffer(prepared, name)
        return bound

    def _buffer(self, prepared: _Prepared, name: str) -> Tensor:
        """A tensor of the engine's own that keeps its address from call to call."""
        if name not in prepared.buffers:
            shape, dtype = prepared.shapes[name], self._dtypes[name]
            prepared.buffers[name] = torch.empty(shape, dtype=dtype, device=self._place.device)
        return prepared.buffers[name]

    def _run(self, prepared: _Prepared, bound: Mapping[str, Tensor]) -> None:
        """Give the graph to the stream: as a captured CUDA graph where it ran with these addresses before."""
        address, size = self._place.scratch.at_least(prepared.scratch_bytes)
        if address != prepared.scratch_address:
            prepared.graphs.clear()
            prepared.scratch_address = address
        key = tuple(tensor.data_ptr() for tensor in bound.values())
        replay = prepared.graphs.find(key)
        if replay is not None:
            replay()
            return
        capture = prepared.graphs.wants(key)
        # A graph keeps pointing into its context, so every captured one has a context of its own.
        context = self._context(prepared.shapes) if capture else prepared.context
        context.set_device_memory(address, size)
        for name, tensor in bound.items():
            start = self._log.mark()
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise self._log.failure(f"TensorRT does not take the memory of {name}", start)
        self._enqueue(context)  # also the run that TensorRT wants between a change of shapes and a capture
        if capture:
            self._capture(prepared.graphs, key, context)

    def _enqueue(self, context: Any) -> None:
        start = self._log.mark()
        if not context.execute_async_v3(self._place.stream.handle):
            raise self._log.failure(f"TensorRT could not run {self.spec.graph.name}", start)

    def _capture(self, graphs: GraphCache, key: Hashable, context: Any) -> None:
        try:
            graphs.keep(key, self._place.stream.capture(lambda: self._enqueue(context)), context)
        except RuntimeError as error:
            graphs.give_up()
            _LOG.warning("%s runs without a CUDA graph: %s", self.spec.graph.name, error)


def _dtypes(spec: EngineSpec) -> dict[str, torch.dtype]:
    """The type of every tensor of the graph in the engine's precision."""
    types = {"float": getattr(torch, spec.precision), "float32": torch.float32, "int64": torch.int64}
    return {tensor.name: types[tensor.dtype] for tensor in (*spec.graph.inputs, *spec.graph.outputs)}


def _bindable(tensor: Tensor) -> bool:
    """Whether TensorRT can read or write the tensor where it lies."""
    return tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0
