"""Keys and values of units that later units still read, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec
from fairy.runtime.plan.order import Batch, Unit, forget, readers


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one unit left: tensors by emitted name [branches, 1, tokens, heads·dim], and its x0 [c, h, w]."""

    tensors: dict[str, Tensor]
    original: Tensor

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class SourceBank:
    """Keys, values and predictions of x0 by unit, dropped as soon as no frame will read them any more."""

    def __init__(self, sources: Sequence[tuple[int, ...]]) -> None:
        """`sources`: S(i) of every frame."""
        self._sources = sources
        self._readers = readers(sources)
        self._kept: dict[Unit, _Kept] = {}
        self._waiting: dict[Unit, int] = {}
        self._bytes = 0
        self.most_bytes = 0

    def context(self, batch: Batch, graph: GraphSpec, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a graph reads for these units: input name to [branches, units, tokens, heads·dim].

        The units of a batch read others each, so what they read is copied side by side.
        """
        named = {}
        for layer in graph.layers:
            for segment in range(len(layer.segments)):
                read = [self._kept[Unit(self._sources[i][segment], k)].tensors for i, k in batch]
                for name, emitted in zip(layer.context(segment), layer.emitted, strict=True):
                    named[name] = torch.cat([tensors[emitted] for tensors in read], dim=1).to(dtype)
        return named

    def originals(self, unit: Unit) -> dict[int, Tensor]:
        """x0 [c, h, w] of the frames that a unit reads, at the same step, by frame."""
        return {j: self._kept[Unit(j, unit.step)].original for j in self._sources[unit.frame]}

    def add(self, batch: Batch, emitted: Mapping[str, Tensor], originals: Tensor) -> None:
        """Keep of these units what somebody will read, and drop what they were the last to read.

        Args:
            emitted: by name [branches, units, tokens, heads·dim].
            originals: x0 [units, c, h, w].
        """
        for place, unit in enumerate(batch):
            if self._readers[unit.frame]:
                own = {name: tensor[:, place : place + 1].clone() for name, tensor in emitted.items()}
                self._kept[unit] = kept = _Kept(own, originals[place])
                self._waiting[unit] = self._readers[unit.frame]
                self._bytes += kept.num_bytes
        self.most_bytes = max(self.most_bytes, self._bytes)
        for i, k in batch:
            for unit in forget(self._waiting, (Unit(j, k) for j in set(self._sources[i]))):
                self._bytes -= self._kept.pop(unit).num_bytes

    def __len__(self) -> int:
        return len(self._kept)
