"""JSON lines between the service and its editors."""

import json
import os
import threading
from typing import Any, Protocol


class Channel(Protocol):
    """How an editor hears and answers."""

    def send(self, message: dict[str, Any]) -> None:
        """An answer; nothing where nobody listens any more."""
        ...

    def receive(self) -> dict[str, Any] | None:
        """The next command; None at the end."""
        ...


class Lines:
    """One JSON value a line, over two file descriptors. Several threads may send."""

    def __init__(self, source: int, target: int) -> None:
        self._source = os.fdopen(source, "rb", closefd=False)
        self._target, self._lock = target, threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """One line; nothing where nobody listens any more."""
        data = line_of(message)
        with self._lock:
            while data:
                try:
                    data = data[os.write(self._target, data) :]
                except OSError:  # the service is gone, which the end of stdin tells too
                    return

    def receive(self) -> dict[str, Any] | None:
        """The next line; None at the end."""
        line = self._source.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def line_of(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
