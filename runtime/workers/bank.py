"""How the anchors' keys and values get from the worker that computes them to all others.

The leader broadcasts every step's tensors as soon as it has computed them, in a thread of its own and, on CUDA, on a
stream of its own; every other worker posts the same broadcasts and waits for step t before it needs it: by an event,
never by a barrier. Whatever goes wrong, the bank is lost for whoever lacks a part of it, and computing it again gives
the same bytes. There is no other communication between workers.

A group serves one job. Its members meet by a file in a private folder; gloo on the CPU, NCCL on CUDA.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from fairy.kernels.errors import MachineError
from fairy.runtime.anchors import AnchorBank, CarriedAnchor

_POLL_S = 0.05
_REMIND_S = 1.0
_BROKEN: list[Any] = []
"""Groups that failed are kept: their destructors would wait for their pending transfers."""


class BankLost(MachineError):
    """The bank will not arrive; the anchors must be computed again."""


class BankGroup:
    """One member's end of the broadcasts of a job; rank 0 is the leader."""

    def __init__(self, meeting: str, rank: int, size: int, steps: int, device: torch.device, timeout_s: float) -> None:
        """Join in the background.

        Args:
            meeting: a file that does not exist yet, the same for all members.
            steps: how many will be transferred.
            timeout_s: the longest that any transfer may take, waiting for its sender included.
        """
        self._meeting, self._rank, self._size, self._total, self._device = meeting, rank, size, steps, device
        self._timeout = timedelta(seconds=timeout_s)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._steps: queue.Queue[tuple[tuple[Tensor, ...], torch.cuda.Event | None] | None] = queue.Queue()
        self._changed = threading.Condition()
        self._passed: list[torch.cuda.Event | None] = []
        self._failure: str | None = None
        self._group: Any = None
        threading.Thread(target=self._transfer, daemon=True).start()

    def post(self, bank: AnchorBank, step: int) -> None:
        """Broadcast one step, or receive it: its tensors are sent from rank 0 and written to by the others."""
        computed = None
        if self._stream is not None:
            computed = torch.cuda.Event()
            computed.record(torch.cuda.current_stream(self._device))
        tensors = (*bank.keys[step].values(), *bank.values[step].values())
        self._steps.put((tensors, computed))

    def wait(self, step: int, remind: Callable[[], None]) -> None:
        """Return when a step has been transferred; on CUDA, when the current stream will wait for that.

        `remind` is called now and then, and may raise to stop the waiting. Raises BankLost.
        """
        event = self._underway(step, remind)
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def arrived(self, step: int) -> None:
        """Return when a step's values are all there; only this thread waits, no stream does. Raises BankLost."""
        event = self._underway(step, lambda: None)
        with self._changed:
            while self._failure is None and event is not None and not event.query():
                self._changed.wait(_POLL_S)
            if self._failure is not None:
                raise BankLost(self._failure)

    def _underway(self, step: int, remind: Callable[[], None]) -> torch.cuda.Event | None:
        """Return when a step's transfer has begun on CUDA, or ended on the CPU; the event of its end on CUDA."""
        reminded = time.monotonic()
        with self._changed:
            while len(self._passed) <= step and self._failure is None:
                self._changed.wait(_POLL_S)
                if time.monotonic() - reminded > _REMIND_S:
                    remind()
                    reminded = time.monotonic()
            if self._failure is not None:
                raise BankLost(self._failure)
            return self._passed[step]

    def close(self, reason: str) -> None:
        """Let go of the group; whoever still waits for a step gets BankLost. May be called from any thread."""
        self._steps.put(None)
        with self._changed:
            if len(self._passed) == self._total and all(event is None or event.query() for event in self._passed):
                return
            self._failure = self._failure or f"The anchors' bank was lost: {reason}."
            self._changed.notify_all()
            group, self._group = self._group, None
        if group is not None:
            _BROKEN.append(group)
            group.abort()

    def _transfer(self) -> None:
        try:
            self._group = self._join()
            while self._failure is None and (item := self._steps.get()) is not None:
                passed = self._broadcast(*item)
                del item  # holds a step's tensors
                with self._changed:
                    self._passed.append(passed)
                    self._changed.notify_all()
            self._group = None
        except Exception as error:  # whatever the transport raises means the same
            self.close((str(error).splitlines() or [type(error).__name__])[0][:200])

    def _join(self) -> Any:
        store = FileStore(self._meeting, self._size)
        store.set_timeout(self._timeout)
        if self._stream is None:
            return dist.ProcessGroupGloo(store, self._rank, self._size, self._timeout)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        torch.cuda.set_device(self._device)
        return dist.ProcessGroupNCCL(store, self._rank, self._size, options)

    def _broadcast(self, tensors: tuple[Tensor, ...], computed: torch.cuda.Event | None) -> torch.cuda.Event | None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        if self._stream is None:
            for work in [self._group.broadcast([tensor], options) for tensor in tensors]:
                work.wait()
            return None
        with torch.cuda.stream(self._stream):
            if computed is not None:
                self._stream.wait_event(computed)
            for tensor in tensors:
                tensor.record_stream(self._stream)  # a bank that is given up may be dropped before
            for work in [self._group.broadcast([tensor], options) for tensor in tensors]:
                work.wait()  # lets this stream wait, not this thread
            passed = torch.cuda.Event()
            passed.record(self._stream)
        return passed


class ArrivingBank:
    """A bank that is filled by another worker; it is read like any other (see `anchors.Context`)."""

    def __init__(self, bank: AnchorBank, group: BankGroup, waiting: Callable[[int], None]) -> None:
        """`waiting` is called with a step's number while it has not arrived."""
        self._bank, self._group, self._waiting = bank, group, waiting
        for step in range(len(bank.keys)):
            group.post(bank, step)

    def context(self, step: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The keys and values of a step, once they are here. Raises BankLost."""
        self._group.wait(step, lambda: self._waiting(step))
        return self._bank.context(step, dtype)

    def last_anchor(self) -> CarriedAnchor:
        """See `AnchorBank.last_anchor`; waits until all of the bank has arrived. Raises BankLost."""
        self._group.arrived(len(self._bank.keys) - 1)
        return self._bank.last_anchor()
