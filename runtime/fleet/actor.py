"""One editor of a Ray cluster, in a process that Ray starts, and starts again where it is lost."""

import os
import platform
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.allocation import keep_freed_memory
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.fleet.fleet_options import FleetOptions
from fairy.runtime.fleet.items import WorkItem
from fairy.runtime.fleet.results import ClipResult, edit_item, sentence_of

if TYPE_CHECKING:
    from fairy.runtime.editor import Editor


class EditorActor:
    """An `Editor` whose answers are plain values: an error of one clip must not look to Ray like a lost actor."""

    def __init__(self, setup: EditorSetup, options: FleetOptions, marks: tuple[Path, ...], driver_folder: Path) -> None:
        """Load the model.

        Args:
            marks: files that are here if this machine sees the folders of the results.
            driver_folder: the working folder of the process that owns the job.
        """
        # Ray puts it first on the path of its workers, where a folder of it could hide a library.
        sys.path[:] = [place for place in sys.path if place != str(driver_folder)]
        os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
        self._options, self._marks = options, marks
        self._stop = threading.Event()
        self._redone: bool = import_module("ray").get_runtime_context().was_current_actor_reconstructed
        self._editor: Editor | None = None
        self._refused: tuple[str, int] | None = None
        try:
            self._check_marks()
            keep_freed_memory()
            self._editor = setup.open()
        except Exception as error:  # of any kind: it is told by `ready`
            self._refused = sentence_of(error)

    def ready(self) -> tuple[str, int] | None:
        """None once the model is loaded, else why it is not, in one sentence, and the exit code of that."""
        return self._refused

    def edit(self, item: WorkItem) -> ClipResult:
        """Edit one clip; whatever goes wrong is said in the result."""
        redone, self._redone = self._redone, False
        if self._editor is None:
            sentence, code = self._refused or ("The editor was closed.", 1)
            return ClipResult(item.video, item.out, "failed", sentence, code, node=platform.node(), redone=redone)
        try:
            self._check_marks()
            if not item.video.exists():
                raise InputError(
                    f"{item.video} is not there on the node {platform.node()}; put the clips on a file system that "
                    "every node shares, under the same path."
                )
            result = edit_item(
                self._editor,
                item,
                timeout_s=self._options.item_timeout_s,
                cancel=self._stop,
                resume=redone or self._options.resume,
            )
        except (InputError, Cancelled) as error:
            result = ClipResult.failed(item, error)
        return replace(result, redone=redone)

    def stop(self) -> None:
        """End the running edit at its next step, and begin no other one."""
        self._stop.set()

    def _check_marks(self) -> None:
        for mark in self._marks:
            if not mark.exists():
                raise InputError(
                    f"The node {platform.node()} does not see {mark.parent} as this machine does; use a folder of a "
                    "file system that every node shares, under the same path."
                )
