"""The parent's side of a helper process: starts it, waits with a deadline, and turns its end into a sentence."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from fairy.kernels.errors import Cancelled, FairyError, InputError, MachineError
from fairy.runtime.video import wire

DEADLINE_S = 120.0
"""No helper may be silent for longer while its parent waits."""
_POLL_S = 0.1
_PIPE_BYTES = 1 << 20


class Worker:
    """One helper process; `stage` says what it does in messages: "reading clip.mp4"."""

    def __init__(self, module: str, stage: str, cancel: threading.Event | None = None) -> None:
        self.stage, self._cancel = stage, cancel
        self._title = stage[0].upper() + stage[1:]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"fairy.runtime.video.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Arenas of glibc and threads of numpy's OpenBLAS take address space, which RLIMIT_AS counts.
            env=os.environ | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"},
            # Ctrl-C is the parent's to handle: it ends the helper and removes what it left.
            start_new_session=True,
        )
        self._in, self._out, self._err = (_fd(f) for f in self._pipes())
        os.set_blocking(self._in, False)
        self._inbox = wire.Inbox(self._out, lambda: self._wait(self._out, select.POLLIN))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.Message, payload: Any = b"") -> None:
        """Raises what the helper had to say where it stopped listening."""
        self._begin()
        try:
            wire.send(self._in, message, payload, lambda: self._wait(self._in, select.POLLOUT))
        except wire.Closed:
            self.receive()
            raise self._death() from None

    def receive(self, limit_bytes: int = 0, *, deadline_s: float | None = None) -> tuple[wire.Message, bytearray]:
        """The next message; raises InputError, MachineError or Cancelled, and the helper is gone then."""
        self._begin(deadline_s)
        try:
            message, payload = self._inbox.receive(limit_bytes)
        except wire.Closed:
            raise self._death() from None
        except ValueError as error:
            self.kill()
            raise MachineError(f"The helper process for {self.stage} sent nonsense ({error}).") from None
        if "error" in message:
            self.kill()
            raise self._error(message)
        return message, payload

    def pending(self) -> bool:
        """Whether the helper has said something, or died, since it was last listened to."""
        return bool(select.select([self._out], [], [], 0)[0])

    def kill(self) -> None:
        """Ends the helper at once and waits for it; may be called twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            pipe.close()

    def _pipes(self) -> tuple[Any, Any, Any]:
        return self._process.stdin, self._process.stdout, self._process.stderr

    def _begin(self, deadline_s: float | None = None) -> None:
        self._allowed_s = DEADLINE_S if deadline_s is None else deadline_s
        self._deadline = time.monotonic() + self._allowed_s

    def _wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        while True:
            if self._cancel is not None and self._cancel.is_set():
                self.kill()
                raise Cancelled(f"Cancelled while {self.stage}.")
            if poll.poll(_POLL_S * 1000):
                return
            if time.monotonic() > self._deadline:
                self.kill()
                raise MachineError(
                    f"{self._title} made no progress for {self._allowed_s:g} s, and its process was ended."
                )

    def _error(self, message: wire.Message) -> FairyError:
        if message.get("kind") == "input":
            return InputError(str(message["error"]))
        return MachineError(f"{self._title} failed: {message['error']}")

    def _death(self) -> MachineError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        last_words = _last_line(self._err)
        self.kill()
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return MachineError(f"The helper process for {self.stage} died ({last_words or reason}).")


def _fd(pipe: Any) -> int:
    fd: int = pipe.fileno()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # over the user's quota of pipe memory: slower, not wrong
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return fd


def _last_line(fd: int) -> str:
    os.set_blocking(fd, False)
    try:
        lines = os.read(fd, _PIPE_BYTES).decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
