"""NCCL as far as the bank's broadcasts meet it, in threads of one process.

What differs from gloo, and what tests on the CPU would else not see:

- a transfer is enqueued and comes to pass later, when every member has enqueued it; until then it occupies the device,
  and whatever synchronises the device waits for it;
- no socket closes: where a member is gone, the others wait;
- a transfer's time runs from when it is enqueued, and who is late is ended by the library's watchdog;
- an aborted transfer's events pass, whatever is in its buffers.
"""

import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class Transfer:
    """One member's part in one broadcast; it is the event of its end, too."""

    tensor: Tensor
    since: float = field(default_factory=time.monotonic)
    passed: threading.Event = field(default_factory=threading.Event)

    def query(self) -> bool:
        return self.passed.is_set()

    def wait(self) -> None:
        """As NCCL's: the stream waits, not the thread."""


class Fabric:
    """What connects the members.

    Attributes:
        late: ranks whose transfers waited for longer than the group's limit; torch's watchdog would end them.
        most_pending: by rank, the most transfers that were on its device at once.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.enqueued: list[list[Transfer]] = [[] for _ in range(size)]
        self.timeout_s = float("inf")
        self.late: set[int] = set()
        self.most_pending = [0] * size

    def enqueue(self, rank: int, tensor: Tensor) -> Transfer:
        with self.changed:
            mine = Transfer(tensor)
            self.enqueued[rank].append(mine)
            number = len(self.enqueued[rank]) - 1
            together = [transfers[number] for transfers in self.enqueued if len(transfers) > number]
            if len(together) == self.size:
                for there in together:
                    there.tensor.copy_(together[0].tensor)
                    there.passed.set()
            self.most_pending[rank] = max(self.most_pending[rank], len(self.pending(rank)))
            self.changed.notify_all()
            return mine

    def pending(self, rank: int) -> list[Transfer]:
        return [transfer for transfer in self.enqueued[rank] if not transfer.query()]

    def watch(self) -> None:
        """What the watchdogs would find now."""
        now = time.monotonic()
        self.late |= {r for r in range(self.size) if any(now - t.since > self.timeout_s for t in self.pending(r))}

    def synchronise(self, rank: int, limit_s: float) -> bool:
        """What recording a CUDA graph begins with; False where it would still wait after the limit."""
        end = time.monotonic() + limit_s
        while self.pending(rank) and time.monotonic() < end:
            self.watch()
            time.sleep(0.005)
        return not self.pending(rank)


class Group:
    """One member's end, as of `ProcessGroupNCCL`."""

    def __init__(self, fabric: Fabric, rank: int) -> None:
        self._fabric, self._rank = fabric, rank

    def broadcast(self, tensors: list[Tensor], options: Any) -> Transfer:
        (tensor,) = tensors
        return self._fabric.enqueue(self._rank, tensor)

    def abort(self) -> None:
        for transfer in self._fabric.pending(self._rank):
            transfer.passed.set()


class SimulatedLane:
    """A GPU's lane without the GPU; computing a step takes until `computes` is told so."""

    def __init__(self, fabric: Fabric, rank: int, *, at_once: bool = True) -> None:
        self.fabric, self.rank, self.at_once = fabric, rank, at_once
        self.marks: list[threading.Event] = []
        self.followed: list[Transfer] = []

    def connect(self, store: object, rank: int, size: int, timeout: timedelta) -> Group:
        assert (rank, size) == (self.rank, self.fabric.size)
        self.fabric.timeout_s = timeout.total_seconds()
        return Group(self.fabric, rank)

    def meet(self, group: Group) -> None:
        pass

    def computed(self) -> threading.Event:
        mark = threading.Event()
        if self.at_once:
            mark.set()
        self.marks.append(mark)
        return mark

    def reach(self, mark: threading.Event) -> None:
        mark.wait()

    def broadcast(self, group: Group, tensor: Tensor) -> Transfer:
        return group.broadcast([tensor], None)

    def follow(self, passing: Transfer) -> None:
        self.followed.append(passing)
