"""An anchor bank in host memory, for cards that cannot hold all steps: two steps are on the device at a time.

Phase A writes a step into one of two device banks and copies it home while the next step is computed; phase B reads
a step from one while the next is fetched into the other. Copies run on a stream of their own from and to pinned
memory, ordered by events. On the CPU the same code copies from memory to memory, which gains nothing and changes no
byte.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairy.export.graphs import SelfAttention
from fairy.runtime.bank.anchor_bank import AnchorBank, CarriedAnchor

HOST_BANK_STEPS = 2
"""Steps of such a bank that are on the device."""


@dataclass(slots=True)
class _Slot:
    """One step on the device.

    Attributes:
        bank: of one step; holds: the step that is in it; used: when the network has read it; filled: when it is there.
    """

    bank: AnchorBank
    holds: int | None = None
    used: torch.cuda.Event | None = None
    filled: torch.cuda.Event | None = None


@dataclass(slots=True)
class HostBank:
    """Used as an `AnchorBank` is, by phase A and by phase B.

    Attributes:
        home: all steps, in host memory; slots: two banks of one step on the device.
    """

    home: AnchorBank
    slots: tuple[_Slot, _Slot]
    device: torch.device
    _stream: torch.cuda.Stream | None = field(init=False)

    def __post_init__(self) -> None:
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @classmethod
    def around(cls, home: AnchorBank, first: AnchorBank, second: AnchorBank, device: torch.device) -> "HostBank":
        """A bank whose steps lie in `home`, pinned for a GPU; the others are empty banks of one step on `device`."""
        return cls(home, (_Slot(first), _Slot(second)), device)

    @property
    def layers(self) -> tuple[SelfAttention, ...]:
        """The layers that have anchors."""
        return self.home.layers

    @property
    def sendable(self) -> None:
        """See `StepBank`: every worker computes it for itself."""
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values, in host memory."""
        return self.home.num_bytes

    def targets(self, step: int) -> dict[str, Tensor]:
        """Where phase A writes one step; see `AnchorBank.targets`."""
        slot = self.slots[step % 2]
        self._make_current_wait(slot.filled)  # the copy home of the step that was here
        slot.holds = None
        return slot.bank.targets(0)

    def carried_context(self, step: int) -> dict[str, Tensor]:
        """What phase A reads of the segment before; see `AnchorBank.carried_context`."""
        if not self.home.carries:
            return {}
        slot = self.slots[step % 2]
        self._make_current_wait(slot.filled)
        theirs = self.home.carried_context(step)
        mine = slot.bank.carried_context(0)
        for name, tensor in mine.items():
            tensor.copy_(theirs[name], non_blocking=True)
        return mine

    def finish(self, step: int) -> None:
        """Phase A is done with a step: copy it home while the next is computed."""
        slot = self.slots[step % 2]
        slot.filled = self._copy(slot.bank, 0, self.home, step)
        slot.holds = step

    def context(self, step: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What phase B reads at one step; see `AnchorBank.context`. The step after it is fetched meanwhile."""
        slot = self._fetch(step)
        self._make_current_wait(slot.filled)
        named = slot.bank.context(0, dtype)
        self._fetch((step + 1) % len(self.home.keys), reading=slot)
        return named

    def last_anchor(self) -> CarriedAnchor:
        """A copy of the last anchor's keys and values, in host memory; see `AnchorBank.last_anchor`."""
        if self._stream is not None:
            self._stream.synchronize()
        return self.home.last_anchor()

    def _fetch(self, step: int, reading: _Slot | None = None) -> _Slot:
        """The slot that holds a step, or will. `reading`: the one that the network reads now, and must keep."""
        for slot in self.slots:
            if slot.holds == step:
                return slot
        slot = next(s for s in self.slots if s is not reading and (reading is not None or s.holds != step))
        if self._stream is not None:
            before = torch.cuda.Event()
            before.record(torch.cuda.current_stream(self.device))  # whatever still reads what is replaced
            slot.used = before
        slot.filled = self._copy(self.home, step, slot.bank, 0, after=slot.used)
        slot.holds = step
        return slot

    def _copy(
        self, source: AnchorBank, of: int, target: AnchorBank, to: int, after: torch.cuda.Event | None = None
    ) -> torch.cuda.Event | None:
        """Copy one step on the copying stream; the event is when it is done."""
        mine, theirs = source.flat[of], target.flat[to]
        if self._stream is None:
            theirs.copy_(mine)
            return None
        if after is None:
            after = torch.cuda.Event()
            after.record(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            theirs.copy_(mine, non_blocking=True)
            (theirs if theirs.is_cuda else mine).record_stream(self._stream)  # it may be dropped before
            done = torch.cuda.Event()
            done.record(self._stream)
        return done

    def _make_current_wait(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
