"""The reference backend: the modules as PyTorch runs them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairy.engines.engine import Engine, EngineSpec, Usage, check_inputs
from fairy.engines.numerics import steady_numerics
from fairy.export.graphs import GraphSpec
from fairy.export.model import Model
from fairy.export.steps import NO_STEPS, Steps
from fairy.kernels.errors import InputError


class EagerEngine:
    """One graph run by its module."""

    def __init__(self, spec: EngineSpec, module: nn.Module) -> None:
        self.spec = spec
        self._module: nn.Module | None = module

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`. Raises InputError where an input is missing or too many are given."""
        graph = self.spec.graph
        if self._module is None:
            raise InputError(f"The engine of {graph.name} was closed.")
        check_inputs(graph, inputs)
        with torch.inference_mode(), steady_numerics(self.spec.precision):
            results = self._module(*(inputs[tensor.name] for tensor in graph.inputs))
            outputs = dict(zip((tensor.name for tensor in graph.outputs), results, strict=True))
            for name, target in (out or {}).items():
                outputs[name] = target.copy_(outputs[name])
        return outputs

    def close(self) -> None:
        """Let go of the module."""
        self._module = None


class EagerBackend:
    """Engines that share one set of weights.

    Where a precision is asked for beside the backend's own (float32 after 16 bit overflowed), the one network that
    it needs is converted, and freed when that network is next asked for in the backend's own.
    """

    name = "eager"
    steps: Steps = NO_STEPS

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype, *, fallbacks: tuple[str, ...] = ()
    ) -> None:
        """`fallbacks`: why this backend runs instead of a better one, in sentences for the report."""
        self._usage = Usage(fallbacks=fallbacks)
        self._device = device
        self._dtype = dtype
        self._model: Model | None = model
        self._converted: dict[str, tuple[torch.dtype, Model]] = {}
        self._engines: dict[tuple[GraphSpec, torch.dtype], Engine] = {}

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        """The engine of a graph, in the backend's precision unless another is named; made once and kept.

        Raises:
            InputError: the backend was closed.
        """
        if self._model is None:
            raise InputError("The backend was closed.")
        key = (graph, precision or self._dtype)
        self._free_other(*key)
        if key not in self._engines:
            self._engines[key] = self._make(*key)
        return self._engines[key]

    def free_converted(self, graph: GraphSpec) -> None:
        """Let go of the graph's network in another precision than the backend's."""
        self._free_other(graph, self._dtype)

    def take_usage(self) -> Usage:
        """No engine of the store; the reasons that were given for that."""
        return self._usage

    def close(self) -> None:
        """Close every engine and let go of the weights."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._converted.clear()
        self._model = None

    def _make(self, graph: GraphSpec, dtype: torch.dtype) -> Engine:
        """A new engine."""
        return EagerEngine(self._spec(graph, dtype), self._weights(graph, dtype).build(graph))

    def _spec(self, graph: GraphSpec, dtype: torch.dtype) -> EngineSpec:
        return EngineSpec(graph, self.name, str(self._device), str(dtype).removeprefix("torch."))

    def _weights(self, graph: GraphSpec, dtype: torch.dtype) -> Model:
        """The model with the graph's network in a precision."""
        assert self._model is not None
        if dtype == self._dtype:
            return self._model
        part = self._model.network_of(graph)
        if part not in self._converted:
            network = nn.Module.to(copy.deepcopy(self._model.network(part)), dtype)
            self._converted[part] = (dtype, self._model.with_network(part, network))
        return self._converted[part][1]

    def _free_other(self, graph: GraphSpec, dtype: torch.dtype) -> None:
        """Let go of the graph's network where it is kept in a precision that is neither the backend's nor this."""
        assert self._model is not None
        part = self._model.network_of(graph)
        if part not in self._converted or self._converted[part][0] == dtype:
            return
        old, model = self._converted.pop(part)
        for key in [k for k in self._engines if k[1] == old and model.network_of(k[0]) == part]:
            self._engines.pop(key).close()
