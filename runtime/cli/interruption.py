"""How a command ends that a signal interrupted: at once, and with nothing half-done left behind."""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

BY_SIGNAL = 128
"""And more: exit codes of what a signal ended, as a shell reports them."""


def end_at_once(code: int) -> NoReturn:
    """End without taking the interpreter down: a signal may have left a library in the middle of things.

    Taken down after an interrupt in a tracer, the interpreter crashed now and then; and Python forgets the exit code
    where the interrupt passed through code that was made at run time. What `atexit` was told is still done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def ending_at_once(sentence: str) -> Iterator[None]:
    """Inside the block Ctrl-C says the sentence and ends the process, instead of raising through native code.

    Extension modules that are being loaded, or traced through, do not survive an exception from a signal handler.
    """

    def end(number: int, frame: Any) -> None:
        with suppress(OSError, ValueError):
            print(f"\nerror: {sentence}", file=sys.stderr)
        end_at_once(BY_SIGNAL + signal.SIGINT)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
