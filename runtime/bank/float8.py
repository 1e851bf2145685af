"""An anchor bank in 8 bit floating point: half the memory of a 16 bit one, at a price that is measured.

Each step's keys and values are computed in full precision, then kept as e4m3 with one scale for every layer and branch;
they are read back into full precision step by step. Approximate: about four significant binary digits remain.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairy.export.graphs import SelfAttention
from fairy.runtime.bank.anchor_bank import AnchorBank, CarriedAnchor

_DTYPE = torch.float8_e4m3fn
_LARGEST = 448.0  # that e4m3 can hold


@dataclass(frozen=True, slots=True)
class _Packed:
    """A tensor [branch, tokens, channels] as 8 bit values and the scale of every branch [branch, 1, 1], float32."""

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> "_Packed":
        largest = tensor.abs().amax(dim=(1, 2), keepdim=True).float()
        scale = (largest / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return cls((tensor.float() / scale).clamp(-_LARGEST, _LARGEST).to(_DTYPE), scale)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Full precision again; NaN and infinities of the original stay NaN."""
        return (self.values.float() * self.scale).to(dtype)


@dataclass(slots=True)
class Float8Bank:
    """Used as an `AnchorBank` is, by phase A and by phase B.

    Attributes:
        slot: a bank of one step in full precision, which phase A writes; steps: how many there are.
        carried: the anchor of the segment before, in full precision.
    """

    slot: AnchorBank
    steps: int
    carried: CarriedAnchor | None = None
    _packed: dict[tuple[int, str], tuple[_Packed, _Packed]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[SelfAttention, ...]:
        """The layers that have anchors."""
        return self.slot.layers

    @property
    def sendable(self) -> None:
        """See `StepBank`: every worker computes it for itself."""
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values as they are kept."""
        each = [packed for pair in self._packed.values() for packed in pair]
        return sum(packed.values.nbytes + packed.scale.nbytes for packed in each)

    def targets(self, step: int) -> dict[str, Tensor]:
        """Where phase A writes one step; see `AnchorBank.targets`."""
        return self.slot.targets(0)

    def carried_context(self, step: int) -> dict[str, Tensor]:
        """What phase A reads of the segment before; see `AnchorBank.carried_context`."""
        if self.carried is not None:
            self.slot.put(CarriedAnchor(self.carried.keys[step : step + 1], self.carried.values[step : step + 1]))
        return self.slot.carried_context(0)

    def finish(self, step: int) -> None:
        """Phase A is done with a step: pack it."""
        for layer in self.layers:
            pair = self.slot.keys[0][layer.name], self.slot.values[0][layer.name]
            self._packed[step, layer.name] = (_Packed.of(pair[0]), _Packed.of(pair[1]))

    def context(self, step: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What phase B reads at one step; see `AnchorBank.context`."""
        named = {}
        for layer in self.layers:
            for name, packed in zip(layer.context(0), self._packed[step, layer.name], strict=True):
                named[name] = packed.unpacked(dtype).unsqueeze(1)
        return named

    def last_anchor(self) -> CarriedAnchor:
        """The last anchor's keys and values in full precision; see `AnchorBank.last_anchor`."""
        anchors, carries, dtype = self.slot.num_anchors, self.slot.carries, self._dtype()

        def last(which: int) -> tuple[dict[str, Tensor], ...]:
            return tuple(
                {
                    layer.name: self._packed[step, layer.name][which]
                    .unpacked(dtype)
                    .unflatten(1, (anchors + carries, -1))[:, anchors - 1]
                    for layer in self.layers
                }
                for step in range(self.steps)
            )

        return CarriedAnchor(last(0), last(1))

    def _dtype(self) -> torch.dtype:
        return next(iter(self.slot.keys[0].values())).dtype
