"""Whose keys and values a task reads, and where its own go: one face for every method and every kind of bank.

The loop (`denoiser.py`) asks it before a call what the network reads and writes, and tells it after the call what came
of it. Steps are those of every place of a call; but for units they are all the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec
from fairy.runtime.bank.anchor_bank import Context, StepBank
from fairy.runtime.bank.units import SourceBank
from fairy.runtime.plan.order import Unit

StepsOfCall = tuple[int, ...]
OnBank = Callable[[StepBank, int], None]
"""Called with a bank and a step as soon as that step's keys and values are in it."""


class TaskContext(Protocol):
    """See this file's head."""

    def inputs(self, steps: StepsOfCall, precision: torch.dtype) -> Mapping[str, Tensor]:
        """The keys and values that a call reads, by the graph's names."""
        ...

    def targets(self, steps: StepsOfCall) -> Mapping[str, Tensor]:
        """Where a call writes its own, by the graph's names; what is missing the engine allocates."""
        ...

    def after(self, steps: StepsOfCall, outputs: Mapping[str, Tensor], originals: Tensor | None) -> None:
        """A call is done. `originals`: predictions of x0 [places, c, h, w], where frames are at steps of their own."""
        ...


class NoContext:
    """Frames that look at themselves alone."""

    def inputs(self, steps: StepsOfCall, precision: torch.dtype) -> Mapping[str, Tensor]:
        """See `TaskContext`."""
        return {}

    def targets(self, steps: StepsOfCall) -> Mapping[str, Tensor]:
        """See `TaskContext`."""
        return {}

    def after(self, steps: StepsOfCall, outputs: Mapping[str, Tensor], originals: Tensor | None) -> None:
        """See `TaskContext`."""


@dataclass(frozen=True, slots=True)
class BankReader(NoContext):
    """Frames that read the anchors of a bank."""

    bank: Context

    def inputs(self, steps: StepsOfCall, precision: torch.dtype) -> Mapping[str, Tensor]:
        """See `TaskContext`."""
        return self.bank.context(steps[0], precision)


@dataclass(frozen=True, slots=True)
class BankWriter(NoContext):
    """The anchors, which fill a bank step by step."""

    bank: StepBank
    on_bank: OnBank

    def inputs(self, steps: StepsOfCall, precision: torch.dtype) -> Mapping[str, Tensor]:
        """See `TaskContext`: what is carried of the segment before."""
        return self.bank.carried_context(steps[0])

    def targets(self, steps: StepsOfCall) -> Mapping[str, Tensor]:
        """See `TaskContext`."""
        return self.bank.targets(steps[0])

    def after(self, steps: StepsOfCall, outputs: Mapping[str, Tensor], originals: Tensor | None) -> None:
        """See `TaskContext`."""
        self.bank.finish(steps[0])
        self.on_bank(self.bank, steps[0])


@dataclass(slots=True)
class UnitContext(NoContext):
    """Single frames at steps of their own, which read what others left at the same step.

    Attributes:
        bank: of the segment; frames: numbers of the places of a call, counted from the segment's first.
        graph: what names the tensors.
    """

    bank: SourceBank
    frames: tuple[int, ...]
    graph: GraphSpec
    _left: tuple[StepsOfCall, dict[str, Tensor], Tensor] | None = field(default=None, init=False)

    def inputs(self, steps: StepsOfCall, precision: torch.dtype) -> Mapping[str, Tensor]:
        """See `TaskContext`."""
        return self.bank.context(self.units(steps), self.graph, precision)

    def after(self, steps: StepsOfCall, outputs: Mapping[str, Tensor], originals: Tensor | None) -> None:
        """See `TaskContext`. What others will read counts when it is committed."""
        assert originals is not None
        self._left = steps, {name: t for name, t in outputs.items() if name != "output"}, originals

    def units(self, steps: StepsOfCall) -> tuple[Unit, ...]:
        """The places of a call."""
        return tuple(Unit(i, k) for i, k in zip(self.frames, steps, strict=True))

    def fine(self) -> bool:
        """Whether all keys and values are finite."""
        assert self._left is not None
        return all(bool(torch.isfinite(t).all()) for t in self._left[1].values())

    def commit(self) -> None:
        """Leave the keys and values for those that read them."""
        assert self._left is not None
        steps, emitted, originals = self._left
        self.bank.add(self.units(steps), emitted, originals)
