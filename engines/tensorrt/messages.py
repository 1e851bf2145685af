"""What TensorRT says: its errors reach the user in one sentence, everything else the log.

TensorRT reports a failure by None or False and puts the reason into a logger and an error recorder. It keeps a
pointer to the first logger of the process for as long as any of its objects lives, so there is one for all.
"""

import functools
import logging
from collections import deque
from typing import Any

from fairy.kernels.errors import MachineError

_LOG = logging.getLogger(__name__)
_KEPT_ERRORS = 256
_SHOWN_ERRORS = 3
_SHOWN_CHARACTERS = 600


class Messages:
    """The errors of the process, in order; `logger` and `recorder` are what TensorRT is given."""

    def __init__(self, trt: Any) -> None:
        self._errors: deque[tuple[int, str]] = deque(maxlen=_KEPT_ERRORS)
        self._count = 0
        self.logger: Any = type("Logger", (_Logger, trt.ILogger), {})(self, trt.ILogger.Severity)
        self.recorder: Any = type("ErrorRecorder", (_ErrorRecorder, trt.IErrorRecorder), {})(self)

    def add(self, text: str) -> None:
        """Keep an error, as one line."""
        self._count += 1
        self._errors.append((self._count, " ".join(text.split())))

    def mark(self) -> int:
        """A place in the stream of errors, for `failure`."""
        return self._count

    def failure(self, what: str, since: int, remedy: str = "") -> MachineError:
        """The exception for something that failed: what, what TensorRT said since the mark, and what to do.

        The first errors are shown, because the later ones follow from them; one that repeats another is left out.
        """
        said: list[str] = []
        for number, text in tuple(self._errors):
            if number > since and not any(text in earlier or earlier in text for earlier in said):
                said.append(text)
        reason = "; ".join(said[:_SHOWN_ERRORS])[:_SHOWN_CHARACTERS].rstrip(". ") or "it gave no reason"
        return MachineError(f"{what}: {reason}{'; ' + remedy if remedy else ''}.")


@functools.cache
def messages(trt: Any) -> Messages:
    """The one `Messages` of the process for this TensorRT module."""
    return Messages(trt)


class _Logger:
    """The methods of an `ILogger`."""

    def __init__(self, owner: Messages, severity: Any) -> None:
        super().__init__()
        self._owner = owner
        self._fatal = (severity.INTERNAL_ERROR, severity.ERROR)
        # A build warns dozens of times about things that nobody needs to act on.
        self._levels = {severity.WARNING: logging.INFO, severity.INFO: logging.DEBUG}

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT from any thread."""
        if severity in self._fatal:
            self._owner.add(msg)
        elif severity in self._levels:
            _LOG.log(self._levels[severity], "%s", msg)


class _ErrorRecorder:
    """The methods of an `IErrorRecorder`."""

    def __init__(self, owner: Messages) -> None:
        super().__init__()
        self._owner = owner
        self._recorded: list[tuple[Any, str]] = []

    def report_error(self, code: Any, desc: str) -> bool:
        """Keep it; False leaves the decision whether to go on to TensorRT."""
        self._recorded.append((code, desc))
        self._owner.add(desc)
        return False

    def num_errors(self) -> int:
        return len(self._recorded)

    def get_error_code(self, index: int) -> Any:
        return self._recorded[index][0]

    def get_error_desc(self, index: int) -> str:
        return self._recorded[index][1]

    def has_overflowed(self) -> bool:
        return False

    def clear(self) -> None:
        self._recorded.clear()
