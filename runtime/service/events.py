"""What happens to jobs, told to whoever listens: one stream of numbered events, a bounded memory of the last ones."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

KEPT = 1000
_MOST_WAITING = 500
PING_S = 15.0


@dataclass(frozen=True, slots=True)
class Event:
    """`kind`: "video" with the whole record, or "deleted" with the id; `owner` says whose job it is."""

    number: int
    owner: str
    job_id: str
    kind: str
    data: dict[str, Any]


class Events:
    """All of the service's events. Used from the event loop's thread alone.

    Attributes:
        last: number of the last one.
    """

    def __init__(self) -> None:
        # Numbers of an earlier run of the service are lower than those of this one.
        self._first = self.last = int(time.time() * 1000)
        self._last: deque[Event] = deque(maxlen=KEPT)
        self._listeners: set[asyncio.Queue[Event | None]] = set()
        self.closed = False

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    def tell(self, owner: str, job_id: str, kind: str, data: dict[str, Any]) -> None:
        """Everybody who listens hears it; who does not keep up is let go, and asks again from where it was."""
        self.last += 1
        event = Event(self.last, owner, job_id, kind, data)
        self._last.append(event)
        for listener in list(self._listeners):
            if listener.qsize() >= _MOST_WAITING:
                self._listeners.discard(listener)
                listener.put_nowait(None)
            else:
                listener.put_nowait(event)

    def remembers(self, number: int) -> bool:
        """Whether all that happened after that number is still known: not after a restart, nor much later."""
        oldest = self._last[0].number - 1 if len(self._last) == KEPT else self._first
        return oldest <= number <= self.last

    def since(self, number: int, wanted: Callable[[Event], bool]) -> list[Event]:
        """Those after that number which are still known."""
        return [event for event in self._last if event.number > number and wanted(event)]

    async def listen(self, wanted: Callable[[Event], bool]) -> AsyncIterator[Event | None]:
        """Events as they happen; None now and then, so that a silent line is not cut."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while not self.closed:
                try:
                    event = await asyncio.wait_for(queue.get(), PING_S)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                if wanted(event):
                    yield event
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """End every stream."""
        self.closed = True
        for listener in self._listeners:
            listener.put_nowait(None)
