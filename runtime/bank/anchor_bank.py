"""The bank that holds the anchors' keys and values, and what every kind of bank offers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec, SelfAttention

_ALIGNED_BYTES = 256  # every tensor of a bank begins at a multiple of this


class Context(Protocol):
    """What phase B reads the anchors from: a bank, or one that is still being filled by another process."""

    def context(self, step: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The keys and values of one step; see `AnchorBank.context`."""
        ...

    def last_anchor(self) -> "CarriedAnchor":
        """What the next segment may continue; see `AnchorBank.last_anchor`."""
        ...


class StepBank(Context, Protocol):
    """A bank that phase A fills, of whichever kind: on the device, in host memory, in 8 bit."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values, as they are kept."""
        ...

    @property
    def sendable(self) -> "AnchorBank | None":
        """What can be broadcast step by step as it is; None where it cannot."""
        ...

    def targets(self, step: int) -> Mapping[str, Tensor]:
        """Where phase A writes one step; see `AnchorBank.targets`."""
        ...

    def carried_context(self, step: int) -> Mapping[str, Tensor]:
        """What phase A reads of the segment before; see `AnchorBank.carried_context`."""
        ...

    def finish(self, step: int) -> None:
        """Phase A is done with a step."""
        ...


@dataclass(frozen=True, slots=True)
class CarriedAnchor:
    """Keys and values of one anchor at every step, by layer name: [branch, tokens, heads·dim]."""

    keys: tuple[dict[str, Tensor], ...]
    values: tuple[dict[str, Tensor], ...]

    def first_step(self) -> "CarriedAnchor":
        """The same of the first step alone."""
        return CarriedAnchor(self.keys[:1], self.values[:1])


@dataclass(frozen=True, slots=True)
class AnchorBank:
    """Keys and values of the anchors at every step and layer, in the layout the UNet produced.

    Attributes:
        layers: the layers that have anchors.
        keys, values: by step, then by layer name: [branch, anchors·tokens, heads·dim].
        num_anchors: how many anchors share the token dimension.
        carries: after them comes one more, of the segment before, whose look is continued.
        flat: by step, the one buffer [values] in which all of its keys and values lie.
    """

    layers: tuple[SelfAttention, ...]
    keys: tuple[dict[str, Tensor], ...]
    values: tuple[dict[str, Tensor], ...]
    num_anchors: int
    carries: bool = False
    flat: tuple[Tensor, ...] = ()

    @classmethod
    def allocate(
        cls,
        graph: GraphSpec,
        *,
        num_inference_steps: int,
        branches: int,
        num_anchors: int,
        latent_size: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        carried: "CarriedAnchor | None" = None,
        pinned: bool = False,
    ) -> "AnchorBank":
        """A bank for what `graph` (phase A) emits at latents of `latent_size` (h, w); empty but for what is carried.

        `pinned`: in host memory that a GPU copies from and to by itself, as one piece: torch rounds every pinned piece
        up to a power of two.
        """
        layers = tuple(layer for layer in graph.layers if layer.emits)
        slots = num_anchors + (carried is not None)

        sizes = {layer.name: (branches, slots * layer.tokens(latent_size), layer.channels) for layer in layers}
        unit = _ALIGNED_BYTES // dtype.itemsize
        lengths = {name: -(-math.prod(size) // unit) * unit for name, size in sizes.items()}
        step_length = 2 * sum(lengths.values())
        if pinned:
            whole = torch.empty(num_inference_steps * step_length, dtype=dtype, pin_memory=True)
            flat = whole.split(step_length) if step_length else (whole,) * num_inference_steps
        else:
            flat = tuple(torch.empty(step_length, dtype=dtype, device=device) for _ in range(num_inference_steps))

        def tensors(buffer: Tensor, at: int) -> dict[str, Tensor]:
            named = {}
            for name, size in sizes.items():
                named[name] = buffer[at : at + math.prod(size)].view(size)
                at += lengths[name]
            return named

        bank = cls(
            layers,
            tuple(tensors(buffer, 0) for buffer in flat),
            tuple(tensors(buffer, step_length // 2) for buffer in flat),
            num_anchors,
            carried is not None,
            tuple(flat),
        )
        if carried is not None:
            bank.put(carried)
        return bank

    def put(self, carried: "CarriedAnchor") -> None:
        """Copy what is carried into its place, step by step."""
        for mine, theirs in ((self.keys, carried.keys), (self.values, carried.values)):
            for step, tensors in enumerate(theirs):
                for name, tensor in tensors.items():
                    mine[step][name][:, -tensor.shape[1] :].copy_(tensor)

    def targets(self, step: int) -> dict[str, Tensor]:
        """Where phase A writes one step: emitted name to a view [branch, anchors, tokens, heads·dim]."""
        named = {}
        for layer in self.layers:
            for name, bank in zip(layer.emitted, (self.keys, self.values), strict=True):
                slots = bank[step][layer.name].unflatten(1, (self.num_anchors + self.carries, -1))
                named[name] = slots[:, : self.num_anchors]
        return named

    def finish(self, step: int) -> None:
        """Phase A is done with a step; nothing is left to do here."""

    def carried_context(self, step: int) -> dict[str, Tensor]:
        """What phase A reads of the segment before: input name to a view [branch, 1, tokens, heads·dim]."""
        if not self.carries:
            return {}
        named = {}
        for layer in self.layers:
            for name, bank in zip(layer.context(0), (self.keys, self.values), strict=True):
                named[name] = bank[step][layer.name].unflatten(1, (self.num_anchors + 1, -1))[:, -1:]
        return named

    def last_anchor(self) -> "CarriedAnchor":
        """A copy of the last anchor's keys and values, for the next segment."""

        def last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            slots = self.num_anchors + self.carries
            return {n: t.unflatten(1, (slots, -1))[:, self.num_anchors - 1].clone() for n, t in tensors.items()}

        return CarriedAnchor(tuple(map(last, self.keys)), tuple(map(last, self.values)))

    def context(self, step: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What phase B reads at one step: input name to a view [branch, 1, anchors·tokens, heads·dim].

        A bank of another type than `dtype` is converted; that happens only where a batch is done again in float32.
        """
        named = {}
        for layer in self.layers:
            for name, bank in zip(layer.context(0), (self.keys, self.values), strict=True):
                named[name] = bank[step][layer.name].unsqueeze(1).to(dtype)
        return named

    @property
    def sendable(self) -> "AnchorBank":
        """See `StepBank`."""
        return self

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for bank in (self.keys, self.values) for step in bank for t in step.values())
