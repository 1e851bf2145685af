"""One clip edited, and what is said about it and about all of them."""

import json
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairy.kernels.errors import Cancelled, FairyError, InputError
from fairy.runtime.files import user_path, write_atomically
from fairy.runtime.fleet.items import WorkItem

if TYPE_CHECKING:
    from fairy.runtime.editor import Editor
    from fairy.runtime.record.edit_report import EditReport

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class ClipResult:
    """What became of one clip.

    Attributes:
        video, out: its source and its file, which is there unless `status` is "failed".
        status: "done", "skipped" (its file was there before) or "failed".
        error: why it failed, in one sentence; exit_code: 2 where the input is at fault, 1 where the machine is, else 0.
        wall_s: seconds that the edit took.
        node: name of the machine.
        redone: whether it was begun again because the editor that had it was lost.
        report: how it was edited.
    """

    video: Path
    out: Path
    status: Status
    error: str | None = None
    exit_code: int = 0
    wall_s: float = 0.0
    node: str = ""
    redone: bool = False
    report: "EditReport | None" = None

    @classmethod
    def failed(cls, item: WorkItem, error: BaseException, *, wall_s: float = 0.0) -> "ClipResult":
        """The clip failed with this error."""
        sentence, code = sentence_of(error)
        return cls(item.video, item.out, "failed", sentence, code, wall_s, platform.node())


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What became of all clips, in the order they were given; `notes` are sentences about the editors."""

    clips: tuple[ClipResult, ...]
    wall_s: float
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: every clip is there; 2: all failures are the inputs'; 1: the machine failed somewhere."""
        codes = {clip.exit_code for clip in self.clips if clip.status == "failed"}
        return 0 if not codes else 2 if codes == {2} else 1

    def count(self, status: Status) -> int:
        """How many clips have this status."""
        return sum(clip.status == status for clip in self.clips)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        counts = {"done": self.count("done"), "skipped": self.count("skipped"), "failed": self.count("failed")}
        return counts | asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as a JSON file, whole or not at all."""
        write_atomically(user_path(path), (json.dumps(self.to_json(), indent=2, default=str) + "\n").encode())


def edit_item(
    editor: "Editor", item: WorkItem, *, timeout_s: float, cancel: threading.Event | None = None, resume: bool = False
) -> ClipResult:
    """Edit one clip; whatever goes wrong is said in the result.

    Args:
        timeout_s: seconds after which the edit stops at its next step, and the clip has failed.
        cancel: set it to stop.
        resume: go on from what an edit of the same that was interrupted has left, where it left something.

    Raises:
        Cancelled: `cancel` was set.
    """
    from fairy.runtime.record.journal import journal_folder

    resume = resume and journal_folder(item.out).is_dir()
    limit = _Limit(timeout_s, cancel)
    started = time.monotonic()
    try:
        report = editor.edit_file(item.video, item.out, item.params, **item.encoding, cancel=limit, resume=resume)
    except Cancelled:
        if cancel is not None and cancel.is_set():
            raise
        return ClipResult.failed(item, too_late(item, timeout_s), wall_s=time.monotonic() - started)
    except Exception as error:  # of any kind: the other clips go on
        return ClipResult.failed(item, error, wall_s=time.monotonic() - started)
    wall_s = round(time.monotonic() - started, 3)
    return ClipResult(item.video, item.out, "done", wall_s=wall_s, node=platform.node(), report=report)


def too_late(item: WorkItem, timeout_s: float) -> FairyError:
    """The error of a clip that took too long."""
    return FairyError(f"{item.video} was not done after {timeout_s:g} s; allow more with --item-timeout.")


def sentence_of(error: BaseException) -> tuple[str, int]:
    """What a user is told about an error, in one sentence, and the exit code it means."""
    if isinstance(error, FairyError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return f"The memory did not suffice ({type(error).__name__}); choose a smaller long side or micro-batch.", 1
    if isinstance(error, OSError):
        return f"The machine failed: {error.strerror or error} ({error.filename or 'no file'}).", 1
    return f"Internal error ({type(error).__name__}: {error}); report it.", 1


def check_items(items: Sequence[WorkItem]) -> None:
    """Raise InputError where there is nothing to do."""
    if not items:
        raise InputError("There is nothing to edit; give at least one clip.")


class _Limit(threading.Event):
    """Set when another event is, or when the time is up."""

    def __init__(self, seconds: float, other: threading.Event | None) -> None:
        super().__init__()
        self._end, self._other = time.monotonic() + seconds, other

    def is_set(self) -> bool:
        return super().is_set() or time.monotonic() > self._end or (self._other is not None and self._other.is_set())
