"""An editor in a process of its own: `python -m fairy.runtime.service.editor_process`.

It loads one model, says so, and edits what it is told, one after another. JSON lines, commands on stdin, answers on a
copy of stdout (what libraries print goes to stderr):

    in   {"do": "open", "setup": {…}, "number": its place among the editors, "most_frames", "folder"}    once, first
    in   {"do": "edit", "id", "source", "folder", "result", "prompt", "params", "crf", "encoding", "compare"}
    in   {"do": "cancel", "id"}
    out  {"ready": model, "usual": {parameter: value}} | {"refused": sentence, "code": exit code}
    out  {"id", "stage", "done", "total"} | {"id", "preview": true}
    out  {"id", "completed": {…}} | {"id", "failed": sentence, "code": "invalid_input" | "cancelled" | …}

At the end of stdin the running edit is stopped, with its journal kept, and the process ends.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from fairy.kernels.errors import Cancelled, FairyError, InputError
from fairy.runtime.allocation import keep_freed_memory
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.files import BusyError, write_picture
from fairy.runtime.methods import find_method
from fairy.runtime.methods.fits import check_resume
from fairy.runtime.options import options_of
from fairy.runtime.plan.params import EditParams
from fairy.runtime.service.files import VARIANTS
from fairy.runtime.service.messages import Channel, Lines

if TYPE_CHECKING:
    from fairy.runtime.editor import Editor
    from fairy.runtime.record.edit_report import EditReport
    from fairy.runtime.record.progress import Progress

_FREE_S = 60.0
_SHEET_FRAMES = 12
_SHEET_COLUMNS = 4
_THUMBNAIL_SIDE, _SHEET_SIDE = 320, 160


@dataclass(frozen=True, slots=True)
class Order:
    """One edit as the service wants it done; paths are the service's own."""

    id: str
    source: Path
    folder: Path
    result: Path
    params: EditParams
    crf: int
    encoding: dict[str, Any]
    compare: bool

    @classmethod
    def of_json(cls, message: dict[str, Any]) -> "Order":
        """From its line."""
        paths = {name: Path(message[name]) for name in ("source", "folder", "result")}
        params = EditParams(message["prompt"], **message["params"])
        how: dict[str, Any] = {name: message[name] for name in ("crf", "encoding", "compare")}
        return cls(message["id"], params=params, **how | paths)

    def path(self, variant: str) -> Path:
        """Where another file of the job goes."""
        return self.folder / VARIANTS[variant].name

    @property
    def has_anchors(self) -> bool:
        """Whether there are anchors to look at."""
        return self.params.anchors not in (0, ()) and find_method(self.params.method).anchors != "none"


class EditorProcess:
    """Reads commands in one thread and edits in another, the main one."""

    def __init__(self, lines: Channel) -> None:
        self._lines = lines
        self._orders: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._cancels: dict[str, threading.Event] = {}

    def run(self) -> int:
        """Until stdin ends; the exit code."""
        opening = self._lines.receive()
        if opening is None:
            return 0
        threading.Thread(target=self._listen, daemon=True).start()
        setup = on_gpu_of_its_own(EditorSetup(**opening["setup"]), opening["number"])
        try:
            with setup.open() as editor:
                editor.keep_encoded()  # a batch has many edits of one video
                self._lines.send({"ready": setup.model_name, "usual": usual_values(editor)})
                for message in self._taken():
                    self._edit(editor, message, opening["most_frames"])
        except FairyError as error:
            self._lines.send({"refused": str(error), "code": error.exit_code})
            return error.exit_code
        return 0

    def _taken(self) -> Iterator[dict[str, Any]]:
        while (message := self._orders.get()) is not None:
            yield message

    def _listen(self) -> None:
        while (message := self._lines.receive()) is not None:
            if message["do"] == "edit":
                self._cancels[message["id"]] = threading.Event()
                self._orders.put(message)
            elif message["do"] == "cancel" and message["id"] in self._cancels:
                self._cancels[message["id"]].set()
        for cancel in list(self._cancels.values()):
            cancel.set()
        self._orders.put(None)

    def _edit(self, editor: "Editor", message: dict[str, Any], most_frames: int) -> None:
        job_id = message["id"]
        cancel = self._cancels[job_id]
        try:
            order = Order.of_json(message)
            told_of = self._when_free(lambda: self._finished(editor, order, cancel, most_frames), cancel)
            self._lines.send({"id": job_id, "completed": told_of})
        except Cancelled:
            self._lines.send({"id": job_id, "failed": "The edit was cancelled.", "code": "cancelled"})
        except InputError as error:
            self._lines.send({"id": job_id, "failed": str(error), "code": "invalid_input"})
        except FairyError as error:
            self._lines.send({"id": job_id, "failed": str(error), "code": "machine_failed"})
        except MemoryError:
            sentence = "The machine ran out of memory; ask for a smaller long_side."
            self._lines.send({"id": job_id, "failed": sentence, "code": "out_of_memory"})
        except Exception as error:
            if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):  # torch's; the GPU may be of no use
                sentence = "The GPU failed or is out of memory; ask for a smaller long_side."
                self._lines.send({"id": job_id, "failed": sentence, "code": "out_of_memory"})
                raise
            self._lines.send({"id": job_id, "failed": f"{type(error).__name__}: {error}", "code": "internal_error"})
            raise
        finally:
            self._cancels.pop(job_id, None)

    def _when_free(self, work: Callable[[], dict[str, Any]], cancel: threading.Event) -> dict[str, Any]:
        """Waits for the editor of a service that was killed, which may still be ending with the same job."""
        ends = time.monotonic() + _FREE_S
        while True:
            try:
                return work()
            except BusyError:
                if time.monotonic() > ends or cancel.wait(0.2):
                    raise

    def _finished(self, editor: "Editor", order: Order, cancel: threading.Event, most_frames: int) -> dict[str, Any]:
        from fairy.runtime.record.journal import journal_folder

        order.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        report = editor.edit_file(
            order.source,
            order.result,
            order.params,
            compare=order.path("compare") if order.compare else None,
            preview=order.path("anchors") if order.has_anchors else None,
            crf=order.crf,
            **order.encoding,
            on_progress=_Teller(self._lines, order, most_frames),
            cancel=cancel,
            resume=can_resume(order.params) and journal_folder(order.result).is_dir(),
        )
        return told(report) | {"seconds": f"{pictures_of(order, report.num_frames):.3f}", "gpu_bytes": gpu_peak_bytes()}


def on_gpu_of_its_own(setup: EditorSetup, number: int) -> EditorSetup:
    """The setup with the editor's own GPU, where the device is not named and there are several."""
    import torch

    count = torch.cuda.device_count() if setup.device in ("auto", "cuda") and setup.gpus == 1 else 0
    return replace(setup, device=f"cuda:{number % count}") if count > 1 else setup


class _Teller:
    """Tells progress, and that the edited anchors can be looked at; refuses a video that is too long."""

    def __init__(self, lines: Channel, order: Order, most_frames: int) -> None:
        self._lines, self._order, self._most_frames = lines, order, most_frames
        self._preview_time = 0

    def __call__(self, progress: "Progress") -> None:
        if progress.stage == "probe" and progress.done > self._most_frames:
            raise InputError(
                f"The video has more than {self._most_frames} frames, the most that is edited here; send a shorter one."
            )
        job_id, anchors = self._order.id, self._order.path("anchors")
        self._lines.send({"id": job_id, "stage": progress.stage, "done": progress.done, "total": progress.total})
        if self._order.has_anchors and progress.stage in ("anchors", "frames") and anchors.exists():
            written = anchors.stat().st_mtime_ns
            if written != self._preview_time:
                self._preview_time = written
                self._lines.send({"id": job_id, "preview": True})


def can_resume(params: EditParams) -> bool:
    """Whether such an edit keeps a journal."""
    try:
        check_resume(params, True)
    except InputError:
        return False
    return True


def usual_values(editor: "Editor") -> dict[str, Any]:
    """What an edit that says nothing is done with, for those parameters that a model recommends."""
    usual = editor.resolve(EditParams("anything"))
    values = {name: getattr(usual, name) for name, option in options_of(EditParams).items() if option.default is None}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def told(report: "EditReport") -> dict[str, Any]:
    """What the service keeps of a report."""
    return {
        "num_frames": report.num_frames,
        "width": report.width,
        "height": report.height,
        "frames_sha256": report.frames_sha256,
        "notes": [*report.lost_workers, *report.fallbacks, *report.notes],
        "report": json.loads(json.dumps(report.to_json(), default=str)),
    }


def gpu_peak_bytes() -> int:
    """The most GPU memory that was held since the last time it was asked; 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return int(peak)


def pictures_of(order: Order, num_frames: int) -> float:
    """Write a thumbnail and a sheet of frames of the result, each whole or not at all; how many seconds it lasts."""
    import numpy as np
    from PIL import Image

    from fairy.runtime.video import probe, read_frames

    info = probe(order.result)
    count = min(num_frames, info.num_frames)
    chosen = sorted({i * (count - 1) // max(_SHEET_FRAMES - 1, 1) for i in range(_SHEET_FRAMES)})
    pictures = [Image.fromarray(frame) for frame in read_frames(info, indices=chosen)]
    middle = pictures[len(pictures) // 2].copy()
    middle.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    for picture in pictures:
        picture.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
    width, height = pictures[0].size
    rows = -(-len(pictures) // _SHEET_COLUMNS)
    sheet = Image.new("RGB", (min(len(pictures), _SHEET_COLUMNS) * width, rows * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % _SHEET_COLUMNS * width, place // _SHEET_COLUMNS * height))
    write_picture(order.path("thumbnail"), np.asarray(middle))
    write_picture(order.path("spritesheet"), np.asarray(sheet))
    return info.duration_s


def main() -> int:
    """Take stdin and stdout for the protocol and run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle
    keep_freed_memory()
    answers = os.dup(1)
    os.dup2(2, 1)
    return EditorProcess(Lines(0, answers)).run()


if __name__ == "__main__":
    sys.exit(main())
