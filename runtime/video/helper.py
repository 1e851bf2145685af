"""What a helper process does to itself: limits, ends with its parent, and turns every failure into one sentence."""

import os
import resource
import sys
import threading
from collections.abc import Callable

from fairy.runtime.video import wire

BASE_BYTES = 2 << 30
"""Address space of Python, numpy and FFmpeg with their threads' stacks and heaps, before any picture."""


class Refusal(Exception):
    """A sentence for the user, and whose fault it is: "input" or "machine"."""

    def __init__(self, sentence: str, kind: str = "input") -> None:
        super().__init__(sentence)
        self.kind = kind


def confine(memory_bytes: int, *, writes_files: bool) -> None:
    """Takes from this process what it does not need: memory, files, core dumps."""
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_CORE, 0)
    if not writes_files:
        _limit(resource.RLIMIT_FSIZE, 0)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def exit_when_closed(fd: int) -> None:
    """Ends this process when the parent's end of `fd` closes, however the parent died.

    Not PR_SET_PDEATHSIG: that also fires when just the *thread* that started the helper ends.
    """

    def watch() -> None:
        while os.read(fd, 1):
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def run(serve: Callable[[wire.Inbox, int], None]) -> None:
    """Runs a helper on stdin and a private copy of stdout, so that a stray print cannot break the wire."""
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        serve(wire.Inbox(0), out)
    except wire.Closed:
        os._exit(3)
    except BaseException as error:
        _report(out, error)
        os._exit(1)
    sys.exit(0)


def _report(out: int, error: BaseException) -> None:
    kind = error.kind if isinstance(error, Refusal) else "machine"
    if isinstance(error, Refusal):
        sentence = str(error)
    elif isinstance(error, MemoryError):
        sentence = "the video needs more memory than its helper process may take."
    else:
        sentence = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}."
    try:
        wire.send(out, {"error": sentence, "kind": kind})
    except wire.Closed:
        os._exit(3)
