"""Messages between fairy and its video helpers: one JSON line, then as many raw bytes as it announces.

No pickle: a helper that hostile bytes took over can send wrong frames, but cannot run code in its parent.
"""

import json
import os
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
Wait = Callable[[], None]
"""Returns when the file descriptor is ready, or raises."""

_LINE_LIMIT_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 16


class Closed(Exception):
    """The other side closed its end of the pipe."""


class Inbox:
    """The reading end of a pipe."""

    def __init__(self, fd: int, wait: Wait = lambda: None) -> None:
        self._fd, self._wait, self._early = fd, wait, bytearray()

    def receive(self, limit_bytes: int) -> tuple[Message, bytearray]:
        """The next message and its payload, which may not be longer than `limit_bytes`."""
        message = json.loads(self._line())
        size_bytes = message.pop("bytes", 0)
        if not 0 <= size_bytes <= limit_bytes:
            raise ValueError(f"a payload of {size_bytes} bytes was announced, {limit_bytes} are allowed")
        return message, self._payload(size_bytes)

    def _line(self) -> bytes:
        while (end := self._early.find(b"\n")) < 0:
            if len(self._early) > _LINE_LIMIT_BYTES:
                raise ValueError("a message is longer than allowed")
            self._wait()
            chunk = os.read(self._fd, _CHUNK_BYTES)
            if not chunk:
                raise Closed
            self._early += chunk
        line = bytes(self._early[:end])
        del self._early[: end + 1]
        return line

    def _payload(self, size_bytes: int) -> bytearray:
        payload = bytearray(size_bytes)
        done = min(size_bytes, len(self._early))
        payload[:done] = self._early[:done]
        del self._early[:done]
        view = memoryview(payload)
        while done < size_bytes:
            self._wait()
            count = os.readv(self._fd, [view[done:]])
            if not count:
                raise Closed
            done += count
        return payload


def send(fd: int, message: Message, payload: Any = b"", wait: Wait = lambda: None) -> None:
    """Writes one message; `payload` is any contiguous buffer."""
    body = memoryview(payload).cast("B")
    line = json.dumps(message | ({"bytes": body.nbytes} if body.nbytes else {})).encode() + b"\n"
    for part in (memoryview(line), body):
        done = 0
        while done < part.nbytes:
            wait()
            try:
                done += os.write(fd, part[done:])
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise Closed from error
