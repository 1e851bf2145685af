"""The controller's side of one worker process: messages in and out without ever blocking, and its end."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from fairy.runtime.video import wire
from fairy.runtime.workers.nursery import Forked
from fairy.runtime.workers.protocol import LIMIT_BYTES

COMMAND = (sys.executable, "-P", "-m", "fairy.runtime.workers.worker")
_ENVIRONMENT = {
    # Workers of one machine meet on the loopback interface and on no other.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # A worker is ended by the controller alone. torch would end all that share a group with one that died, and an
    # aborted transfer (the value 2) would look as if it had arrived.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
}


def environment() -> dict[str, str]:
    """What workers find in their environment."""
    return os.environ | _ENVIRONMENT


def run_command(errors: IO[bytes], command: Sequence[str] = COMMAND) -> "subprocess.Popen[bytes]":
    """A worker as a process of its own; its errors go to a file."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
        env=environment(),
        start_new_session=True,  # Ctrl-C is the controller's to handle
    )


Start = Callable[[IO[bytes]], "subprocess.Popen[bytes] | Forked"]
"""Starts a worker whose errors go to that file."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a worker said; `message` is None when it ended."""

    worker: "WorkerProcess"
    message: wire.Message | None
    payload: bytearray


class WorkerProcess:
    """One worker; `number` is its place in the pool. Two threads of its own read and write the pipes.

    Attributes:
        heard: when it last said anything, by `time.monotonic`.
    """

    def __init__(self, number: int, events: "queue.Queue[Event]", start: Start) -> None:
        """`start` is called in this thread; OSError where it cannot."""
        self.number, self.heard = number, time.monotonic()
        self._events = events
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._process = start(self._errors)
        self._outbox: queue.Queue[tuple[wire.Message, Any] | None] = queue.Queue()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._talk)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def post(self, message: wire.Message, payload: Any = b"") -> None:
        """Send a message as soon as the worker takes it; never waits and never fails."""
        self._outbox.put((message, payload))

    def kill(self, grace_s: float = 0.0) -> None:
        """End the process, at the latest after `grace_s`, and wait for it; may be called twice."""
        self._outbox.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace_s)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def last_words(self) -> str:
        """Why it ended: the last line it wrote to stderr, else the signal or exit code."""
        code = self._process.poll()
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 4096, max(size - 4096, 0)).decode(errors="replace")
        lines = tail.strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        inbox = wire.Inbox(self._process.stdout.fileno())
        try:
            while True:
                message, payload = inbox.receive(LIMIT_BYTES)
                self.heard = time.monotonic()
                self._events.put(Event(self, message, payload))
        except (wire.Closed, OSError, ValueError):  # it ended, or talks nonsense, which is no better
            self._events.put(Event(self, None, bytearray()))

    def _talk(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(wire.Closed, OSError):
            while (item := self._outbox.get()) is not None:
                wire.send(self._process.stdin.fileno(), *item)
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the worker ends when its stdin does
