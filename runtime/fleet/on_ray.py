"""Clips on a Ray cluster: every editor is an actor; Ray places, restarts and retries, this hands out clips one by one.

Ray's `ActorPool` is not used because it goes on giving clips to an actor that is gone for good, and because it keeps
idle actors: an editor whose node was lost could then never be started again where they take up all the room.
"""

import glob
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy.kernels.errors import Cancelled, FairyError, InputError, MachineError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.files import settled, temporary_name
from fairy.runtime.fleet.actor import EditorActor
from fairy.runtime.fleet.cluster import connected, first_line
from fairy.runtime.fleet.fleet_options import FleetOptions, room_for_editors, with_gpus
from fairy.runtime.fleet.items import WorkItem
from fairy.runtime.fleet.results import ClipResult, too_late

_POLL_S = 0.2
_GRACE_S = 20.0
"""An editor ends a clip that takes too long by itself; if it does not within so many seconds it is ended."""
_STOP_S = 10.0
"""How long editors may take to remove what they were writing when the job is cancelled."""


def edit_on_ray(
    items: Sequence[WorkItem],
    setup: EditorSetup,
    options: FleetOptions,
    tell: Callable[[ClipResult], None],
    cancel: threading.Event | None,
) -> list[str]:
    """Edit the items on a cluster, telling every result as it comes; returns notes about editors that were lost.

    Raises: as `edit_many`.
    """
    with ExitStack() as stack:
        stack.enter_context(_no_parts_left(items))
        ray = stack.enter_context(connected(str(options.ray)))
        marks = stack.enter_context(_marks({item.out.parent for item in items}))
        gpus_at_hand = ray.cluster_resources().get("GPU", 0) >= 1
        setup = with_gpus(setup, options.gpus_per_editor, gpus_at_hand=gpus_at_hand, placed_by_ray=True)
        crew = _Crew(ray, setup, options, marks)
        try:
            crew.work(items, tell, cancel)
        finally:
            crew.dismiss()
    return crew.notes


@dataclass(frozen=True, slots=True)
class _RayTask:
    """What an editor was asked for: an item's edit, or (None) to say when it is ready; since when (monotonic)."""

    editor: Any
    item: WorkItem | None
    since: float


class _Crew:
    """The editors of one job and what each was asked for."""

    def __init__(self, ray: Any, setup: EditorSetup, options: FleetOptions, marks: tuple[Path, ...]) -> None:
        self.notes: list[str] = []
        self._ray, self._options = ray, options
        self._gpus = setup.gpus if setup.device == "cuda" else 0
        self._cpus = setup.threads
        self._arguments = (setup, options, marks, Path.cwd())
        # One thread edits, the other one hears that it shall stop.
        self._class = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_concurrency=2,
            max_restarts=options.retries,
            # Not a number of tries: until a lost node is known to be lost, within seconds, Ray tries it in vain.
            max_task_retries=-1,
        )(EditorActor)
        self._tasks: dict[Any, _RayTask] = {}
        self._refused: FairyError | None = None

    def work(
        self, items: Sequence[WorkItem], tell: Callable[[ClipResult], None], cancel: threading.Event | None
    ) -> None:
        """Edit all items, whichever editor is free taking the next one."""
        room = room_for_editors(self._ray.nodes(), cpus=self._cpus, gpus=self._gpus)
        for _ in range(min(len(items), self._options.editors or max(1, room))):
            self._hire()
        queue, told = deque(items), 0
        while queue or self._editing():
            if cancel is not None and cancel.is_set():
                raise Cancelled("The edits were cancelled; finished clips are there.")
            if not self._tasks:
                if told == 0:
                    raise self._refused or MachineError("No editor is left; start the job again.")
                for item in queue:
                    tell(ClipResult.failed(item, self._refused or MachineError("No editor was left for it.")))
                return
            for result in self._advance(queue):
                told += 1
                tell(result)

    def dismiss(self) -> None:
        """End every editor; one that is at work gets a moment to remove what it was writing."""
        at_work = [ref for ref, task in self._tasks.items() if task.item is not None]
        try:
            with suppress(self._ray.exceptions.RayError):
                for ref in at_work:
                    self._tasks[ref].editor.stop.remote()
                if at_work:
                    self._ray.wait(at_work, num_returns=len(at_work), timeout=_STOP_S)
        finally:
            for task in self._tasks.values():
                self._let_go(task.editor)
            self._tasks.clear()

    def _editing(self) -> bool:
        return any(task.item is not None for task in self._tasks.values())

    def _hire(self) -> None:
        editor = self._class.remote(*self._arguments)
        self._tasks[editor.ready.remote()] = _RayTask(editor, None, time.monotonic())

    def _let_go(self, editor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(editor, no_restart=True)

    def _advance(self, queue: deque[WorkItem]) -> Iterator[ClipResult]:
        """Wait a moment for answers, and give whoever answered the next item."""
        done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_S)
        for ref in done:
            task = self._tasks.pop(ref)
            result, fit = self._ended(ref, task)
            if result is not None:
                yield result
            self._go_on(task.editor if fit else None, queue, replace_lost=result is not None)
        for ref, error in list(self._late()):
            task = self._tasks.pop(ref)
            self._let_go(task.editor)
            if task.item is None:
                self._refused = error
            else:
                yield ClipResult.failed(task.item, error, wall_s=time.monotonic() - task.since)
                self._go_on(None, queue, replace_lost=True)

    def _go_on(self, editor: Any, queue: deque[WorkItem], *, replace_lost: bool) -> None:
        if queue and editor is not None:
            item = queue.popleft()
            self._tasks[editor.edit.remote(item)] = _RayTask(editor, item, time.monotonic())
        elif queue and replace_lost:
            self._hire()
        elif editor is not None:
            # Its room is what Ray starts a lost editor again in.
            self._let_go(editor)
        if not queue:
            for ref, task in list(self._tasks.items()):
                if task.item is None:
                    del self._tasks[ref]
                    self._let_go(task.editor)

    def _ended(self, ref: Any, task: _RayTask) -> tuple[ClipResult | None, bool]:
        """What an editor answered, and whether it can take another item."""
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            lost = MachineError(_lost(error, task.item, self._options.retries))
            self._let_go(task.editor)
            self.notes.append(str(lost))
            if task.item is None:
                self._refused = lost
                return None, False
            return ClipResult.failed(task.item, lost, wall_s=time.monotonic() - task.since), False
        if task.item is not None:
            return answer, True
        if answer is None:
            return None, True
        sentence, code = answer
        self._refused = InputError(sentence) if code == InputError.exit_code else MachineError(sentence)
        self.notes.append(sentence)
        self._let_go(task.editor)
        return None, False

    def _late(self) -> Iterator[tuple[Any, FairyError]]:
        """Tasks whose deadline has passed; starting editors have none while others work."""
        now, editing = time.monotonic(), self._editing()
        for ref, task in self._tasks.items():
            if task.item is not None and now - task.since > self._options.item_timeout_s + _GRACE_S:
                yield ref, too_late(task.item, self._options.item_timeout_s)
            elif task.item is None and not editing and now - task.since > self._options.start_timeout_s:
                yield ref, self._no_room()

    def _no_room(self) -> MachineError:
        has = self._ray.cluster_resources()
        return MachineError(
            f"No editor was ready after {self._options.start_timeout_s:g} s: each takes {self._gpus} GPU and "
            f"{self._cpus} CPU of one node, and the cluster has {has.get('GPU', 0):g} GPU and {has.get('CPU', 0):g} "
            "CPU in all; wait until others leave some, or allow more time with --start-timeout."
        )


@contextmanager
def _marks(folders: set[Path]) -> Iterator[tuple[Path, ...]]:
    """A file in each folder of results, by which every node can tell that it sees the same folder."""
    marks = []
    try:
        for folder in folders:
            try:
                number, name = tempfile.mkstemp(prefix=".edit-many-", dir=folder)
            except OSError as error:
                raise InputError(
                    f"{folder} cannot be written: {(error.strerror or 'unknown reason').lower()}."
                ) from None
            os.close(number)
            marks.append(Path(name))
        yield tuple(marks)
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


@contextmanager
def _no_parts_left(items: Sequence[WorkItem]) -> Iterator[None]:
    """Remove, when the job has ended, the unfinished files of editors that were killed; those of others stay."""
    before = set(_parts(items))
    try:
        yield
    finally:
        for part in set(_parts(items)) - before:
            part.unlink(missing_ok=True)


def _parts(items: Sequence[WorkItem]) -> Iterator[Path]:
    for item in items:
        # As the writer of videos names what is not whole yet; a `[` in a name is no pattern.
        out = settled(item.out)
        pattern = temporary_name(out, f".????????.part{out.suffix}")
        stem = pattern.removesuffix(f".????????.part{out.suffix}")
        yield from out.parent.glob(glob.escape(stem) + pattern[len(stem) :])


def _lost(error: Exception, item: WorkItem | None, retries: int) -> str:
    if item is None:
        return f"An editor could not be started ({first_line(error)}); every node needs fairy-runtime with its models."
    return f"The editor of {item.video} was lost, and {retries} times started again in vain ({first_line(error)})."
