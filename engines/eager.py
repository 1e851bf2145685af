"""The reference backend: the modules as PyTorch runs them."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fairy.engines.engine import Engine, EngineSpec, Usage
from fairy.engines.whole_float32 import whole_float32
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.model import build_graph
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
        names = [tensor.name for tensor in graph.inputs]
        if set(names) != set(inputs):
            odd = sorted(set(names) ^ set(inputs))
            raise InputError(
                f"{graph.name} takes the inputs {', '.join(names[:3])}, …; {odd[0]} is missing or unknown."
            )
        with torch.inference_mode(), whole_float32(self.spec.precision):
            results = self._module(*(inputs[name] for name in names))
            outputs = dict(zip((tensor.name for tensor in graph.outputs), results, strict=True))
            for name, target in (out or {}).items():
                outputs[name] = target.copy_(outputs[name])
        return outputs

    def close(self) -> None:
        """Let go of the module."""
        self._module = None


class EagerBackend:
    """Engines that share one set of weights; a second set is made when float32 is asked for beside 16 bit."""

    name = "eager"
    steps: Steps = NO_STEPS

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, fallbacks: tuple[str, ...] = ()
    ) -> None:
        """`fallbacks`: why this backend runs instead of a better one, in sentences for the report."""
        self._usage = Usage(fallbacks=fallbacks)
        self._device = device
        self._dtype = dtype
        self._weights = {dtype: checkpoint}
        self._engines: dict[tuple[GraphSpec, torch.dtype], EagerEngine] = {}

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        """The engine of a graph, in the backend's precision unless another is named; made once and kept."""
        dtype = precision or self._dtype
        key = (graph, dtype)
        if key not in self._engines:
            spec = EngineSpec(graph, self.name, str(self._device), str(dtype).removeprefix("torch."))
            self._engines[key] = EagerEngine(spec, build_graph(self._checkpoint(dtype), graph))
        return self._engines[key]

    def take_usage(self) -> Usage:
        """No engine of the store; the reasons that were given for that."""
        return self._usage

    def close(self) -> None:
        """Close every engine and let go of the weights."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._weights.clear()

    def _checkpoint(self, dtype: torch.dtype) -> Checkpoint:
        if dtype not in self._weights:
            source = self._weights[self._dtype]
            networks = {name: getattr(source, name) for name in ("unet", "vae", "text_encoder", "tiny_decoder")}
            there = {name: module for name, module in networks.items() if module is not None}
            parts = {name: nn.Module.to(copy.deepcopy(module), dtype) for name, module in there.items()}
            self._weights[dtype] = replace(source, **parts)
        return self._weights[dtype]
