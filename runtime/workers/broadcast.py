"""How the anchors' keys and values get from the worker that computes them to all others.

The leader broadcasts every step as soon as it has computed it, one buffer a step, in a thread of its own and, on CUDA,
on a stream of its own. Every other worker joins a step's broadcast when the leader says that the step is there, not
before: on CUDA a broadcast that waits for its sender occupies multiprocessors, holds up whatever synchronises the
device, and its time runs out. Readers wait for step t by an event, never by a barrier.

Whatever goes wrong, the bank is lost for whoever lacks a part of it, and computing it again gives the same bytes.
Nobody may rely on being told: NCCL closes no socket when a peer ends, so the controller tells the others to let go.
There is no other communication between workers.

A group serves one job. Its members meet by a file in a private folder; gloo on the CPU, NCCL on CUDA.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from fairy.kernels.errors import MachineError
from fairy.runtime.bank.anchor_bank import AnchorBank, CarriedAnchor

_POLL_S = 0.05
_LOOK_S = 0.005  # between two looks whether the leader has a step
_REMIND_S = 1.0
_CHANNELS = 4
"""Multiprocessors that a broadcast may occupy on CUDA: enough for its bytes, few enough to hide behind the networks."""
_BROKEN: list[Any] = []
"""Groups that failed are kept: their destructors would wait for their pending transfers."""


class BankLost(MachineError):
    """The bank will not arrive; the anchors must be computed again."""


class Passing(Protocol):
    """A moment on a device's stream, such as a CUDA event."""

    def query(self) -> bool:
        """Whether it has passed."""
        ...


class Lane(Protocol):
    """How one kind of device orders transfers and computation, and joins a group of processes."""

    def connect(self, store: FileStore, rank: int, size: int, timeout: timedelta) -> Any:
        """This member's end of a group: it has `broadcast(tensors, options)` and `abort()`."""
        ...

    def meet(self, group: Any) -> None:
        """Return when all members are connected, which would else hold up the first step."""
        ...

    def computed(self) -> Any:
        """A mark behind what the current stream was given so far."""
        ...

    def reach(self, mark: Any) -> None:
        """Let this thread wait until the device has come to a mark."""
        ...

    def broadcast(self, group: Any, tensor: Tensor) -> Passing | None:
        """Send or receive a tensor; gives when it has passed, or None where it has."""
        ...

    def follow(self, passing: Any) -> None:
        """Let the current stream wait until that has passed."""
        ...


class HostLane:
    """The CPU, by gloo: a broadcast has passed when it returns."""

    def connect(self, store: FileStore, rank: int, size: int, timeout: timedelta) -> Any:
        """See `Lane`."""
        return dist.ProcessGroupGloo(store, rank, size, timeout)

    def meet(self, group: Any) -> None:
        """See `Lane`: gloo connects at once."""

    def computed(self) -> None:
        """Everything that was computed is there."""

    def reach(self, mark: Any) -> None:
        """See `Lane`."""

    def broadcast(self, group: Any, tensor: Tensor) -> None:
        """See `Lane`."""
        group.broadcast([tensor], _from_leader()).wait()

    def follow(self, passing: Any) -> None:
        """See `Lane`."""


class CudaLane:
    """A GPU, by NCCL, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def connect(self, store: FileStore, rank: int, size: int, timeout: timedelta) -> Any:
        """See `Lane`."""
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        options.config.max_ctas = _CHANNELS
        torch.cuda.set_device(self._device)
        return dist.ProcessGroupNCCL(store, rank, size, options)

    def meet(self, group: Any) -> None:
        """See `Lane`: NCCL connects at the first transfer."""
        self.broadcast(group, torch.zeros(1, device=self._device))

    def computed(self) -> torch.cuda.Event:
        """See `Lane`."""
        mark = torch.cuda.Event()
        mark.record(torch.cuda.current_stream(self._device))
        return mark

    def reach(self, mark: Any) -> None:
        """See `Lane`."""
        mark.synchronize()

    def broadcast(self, group: Any, tensor: Tensor) -> torch.cuda.Event:
        """See `Lane`."""
        with torch.cuda.stream(self._stream):
            tensor.record_stream(self._stream)  # a bank that is given up may be dropped before
            group.broadcast([tensor], _from_leader()).wait()  # lets this stream wait, not this thread
            passed = torch.cuda.Event()
            passed.record(self._stream)
        return passed

    def follow(self, passing: Any) -> None:
        """See `Lane`."""
        torch.cuda.current_stream(self._device).wait_event(passing)


def lane_of(device: torch.device) -> Lane:
    """The lane of a device."""
    return CudaLane(device) if device.type == "cuda" else HostLane()


class BankGroup:
    """One member's end of the broadcasts of a job; rank 0 is the leader."""

    def __init__(
        self,
        meeting: str,
        rank: int,
        size: int,
        steps: int,
        device: torch.device,
        timeout_s: float,
        lane: Lane | None = None,
    ) -> None:
        """Join in the background.

        Args:
            meeting: a file that does not exist yet, the same for all members.
            steps: how many will be transferred.
            timeout_s: the longest that members may take to meet, and a transfer from when its step is there.
            lane: None = the device's.
        """
        self._meeting, self._rank, self._size, self._total = meeting, rank, size, steps
        self._timeout = timedelta(seconds=timeout_s)
        self._lane = lane or lane_of(device)
        self._steps: queue.Queue[tuple[Tensor, Any] | None] = queue.Queue()
        self._changed = threading.Condition()
        self._passed: list[Passing | None] = []
        self._failure: str | None = None
        self._group: Any = None
        threading.Thread(target=self._transfer, daemon=True).start()

    def post(self, bank: AnchorBank, step: int) -> None:
        """Broadcast one step, or receive it: its buffer is sent from rank 0 and written to by the others."""
        if self._failure is None:
            self._steps.put((bank.flat[step], self._lane.computed()))

    def wait(self, step: int, remind: Callable[[], None], idle: Callable[[], bool] = lambda: False) -> None:
        """Return when a step has been transferred; on CUDA, when the current stream will wait for that.

        `remind` is called now and then, and may raise to stop the waiting; `idle` may do something small meanwhile, and
        says whether it did. Raises BankLost.
        """
        passing = self._underway(step, remind, idle)
        if passing is not None:
            self._lane.follow(passing)

    def arrived(self, step: int) -> None:
        """Return when a step's values are all there; only this thread waits, no stream does. Raises BankLost."""
        passing = self._underway(step, lambda: None)
        with self._changed:
            while self._failure is None and passing is not None and not passing.query():
                self._changed.wait(_POLL_S)
            if self._failure is not None:
                raise BankLost(self._failure)

    def _underway(
        self, step: int, remind: Callable[[], None], idle: Callable[[], bool] = lambda: False
    ) -> Passing | None:
        """Return when a step's transfer has begun on CUDA, or ended on the CPU; when it ends on CUDA."""
        reminded = time.monotonic()
        while len(self._passed) <= step and self._failure is None:
            if not idle():
                with self._changed:
                    if len(self._passed) <= step and self._failure is None:
                        self._changed.wait(_POLL_S)
            if time.monotonic() - reminded > _REMIND_S:
                remind()
                reminded = time.monotonic()
        with self._changed:
            if self._failure is not None:
                raise BankLost(self._failure)
            return self._passed[step]

    def close(self, reason: str) -> None:
        """Let go of the group; whoever still waits for a step gets BankLost. May be called from any thread."""
        self._steps.put(None)
        with self._changed:
            if len(self._passed) == self._total and all(p is None or p.query() for p in self._passed):
                return
            self._failure = self._failure or f"The anchors' bank was lost: {reason}."
            self._changed.notify_all()
            group, self._group = self._group, None
        if group is not None:
            _BROKEN.append(group)
            group.abort()

    def _transfer(self) -> None:
        try:
            store = FileStore(self._meeting, self._size)
            store.set_timeout(self._timeout)
            self._group = group = self._lane.connect(store, self._rank, self._size, self._timeout)
            self._lane.meet(group)
            while self._failure is None and (item := self._steps.get()) is not None:
                tensor, mark = item
                step = f"step {len(self._passed)}"
                if self._rank == 0:
                    self._lane.reach(mark)
                    store.set(step, "there")
                else:
                    self._wait_for(store, step)
                if self._failure is not None:
                    return
                passed = self._lane.broadcast(group, tensor)
                del item, tensor  # a step's values
                with self._changed:
                    self._passed.append(passed)
                    self._changed.notify_all()
            self._group = None
        except Exception as error:  # whatever the transport raises means the same
            self.close((str(error).splitlines() or [type(error).__name__])[0][:200])

    def _wait_for(self, store: FileStore, step: str) -> None:
        """Return when the leader has a step, or the group was given up.

        There is no limit: phase A takes what it takes, and the controller ends a leader that is silent for too long.
        """
        while self._failure is None and not store.check([step]):
            time.sleep(_LOOK_S)


def _from_leader() -> Any:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return options


class ArrivingBank:
    """A bank that is filled by another worker; it is read like any other (see `anchors.Context`)."""

    def __init__(
        self,
        bank: AnchorBank,
        group: BankGroup,
        waiting: Callable[[int], None],
        idle: Callable[[], bool] = lambda: False,
    ) -> None:
        """`waiting` is called with a step's number while it has not arrived; `idle` see `BankGroup.wait`."""
        self._bank, self._group, self._waiting, self._idle = bank, group, waiting, idle
        for step in range(len(bank.keys)):
            group.post(bank, step)

    def context(self, step: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The keys and values of a step, once they are here. Raises BankLost."""
        self._group.wait(step, lambda: self._waiting(step), self._idle)
        return self._bank.context(step, dtype)

    def last_anchor(self) -> CarriedAnchor:
        """See `AnchorBank.last_anchor`; waits until all of the bank has arrived. Raises BankLost."""
        self._group.arrived(len(self._bank.keys) - 1)
        return self._bank.last_anchor()
