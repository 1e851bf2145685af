"""What an engine is: one graph made runnable, stateless between calls.

A backend makes engines out of graphs. Each backend is a file of its own, imported only when it is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec
from fairy.kernels.errors import InputError


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What makes one engine differ from another: the graph, and who runs it where and in which precision."""

    graph: GraphSpec
    backend: str
    device: str
    precision: str


class Engine(Protocol):
    """One graph, ready to run. Tensors are named as in `spec.graph` and live on `spec.device`."""

    @property
    def spec(self) -> EngineSpec: ...

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph once.

        Args:
            inputs: one tensor for every input of the graph.
            out: tensors to write some of the outputs into; the rest is allocated.

        Returns:
            every output by name; those in `out` are the tensors given there.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds. It cannot be called afterwards."""
        ...


class Backend(Protocol):
    """A way to run graphs. `name` is what reports and options call it."""

    name: str

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        """An engine for this graph, in the backend's own precision or in another; made once and kept."""
        ...

    def close(self) -> None:
        """Close every engine."""
        ...


def _eager(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Backend:
    from fairy.engines.eager import EagerBackend

    return EagerBackend(checkpoint, device, dtype)


_BACKENDS: dict[str, Callable[[Checkpoint, torch.device, torch.dtype], Backend]] = {"eager": _eager}
BACKENDS = tuple(_BACKENDS)


def make_backend(name: str, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of that name; "auto" is the best one that is ready to run.

    Raises:
        InputError: there is no backend of that name.
    """
    chosen = resolve_backend(name)
    return _BACKENDS[chosen](checkpoint, device, dtype)


def resolve_backend(name: str) -> str:
    """The name that "auto" stands for; other names as they are, refused where there is no such backend."""
    if name == "auto":
        return "eager"
    if name not in _BACKENDS:
        raise InputError(f"Backend {name!r} is not available; choose auto or one of {', '.join(BACKENDS)}.")
    return name
