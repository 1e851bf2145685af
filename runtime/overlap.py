"""Reading ahead and writing behind: two threads with bounded queues, so that disks and codecs cost no time.

Decoding and encoding of video happen in helper processes; what waits for their pipes waits here, while the main
thread computes. At most `depth` items are in a queue, so memory is the same for any length.
"""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.05
_GRACE_S = 10.0
_END = object()


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, taken from `items` by a thread, up to `depth` of them before they are asked for.

    Whatever `items` raises is raised here, in its place. Closing this closes `items`.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            with closing(items):
                for item in items:
                    if not offer((item, None)):
                        return
            offer((_END, None))
        except BaseException as error:
            offer((_END, error))

    thread = threading.Thread(target=run, daemon=True, name="fairy-read")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join(_GRACE_S)


class Behind(Generic[T]):
    """Calls a function with one item after another in a thread of its own, at most `depth` of them waiting.

    Used as a context manager: leaving it waits until every item was dealt with. What the function raises is raised by
    the next `put`, or when leaving.
    """

    def __init__(self, function: Callable[[T], object], depth: int) -> None:
        self._function = function
        self._items: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fairy-write")

    def put(self, item: T) -> None:
        """Hand over an item; waits while `depth` of them do."""
        while True:
            self._check()
            try:
                self._items.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def __enter__(self) -> "Behind[T]":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._ended.set()  # what waits is not wanted any more
        self._items_end()
        self._thread.join(None if kind is None else _GRACE_S)
        if kind is None:
            self._check()

    def _items_end(self) -> None:
        while self._thread.is_alive():
            try:
                self._items.put(_END, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            for item in iter(self._items.get, _END):
                if self._ended.is_set():
                    return
                self._function(item)
        except BaseException as error:
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
