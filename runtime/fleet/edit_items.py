"""Edits many clips: one after another here, or on a Ray cluster (`on_ray.py`)."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.fleet.fleet_options import FleetOptions, with_gpus
from fairy.runtime.fleet.items import WorkItem, check_distinct
from fairy.runtime.fleet.results import ClipResult, FleetReport, check_items, edit_item

OnResult = Callable[[ClipResult], object]


def edit_many(
    items: Sequence[WorkItem],
    setup: EditorSetup | None = None,
    options: FleetOptions | None = None,
    *,
    skip_existing: bool = False,
    on_result: OnResult | None = None,
    cancel: threading.Event | None = None,
) -> FleetReport:
    """Edit clips that have nothing to do with each other; one that cannot be edited does not stop the others.

    The files are the same bytes wherever they are edited, on machines of one kind with the same versions. Files that
    are already there are replaced, as `Editor.edit_file` does.

    Args:
        items: what to edit, and where to write it.
        setup: how every editor is made; None = the embedded model with every default.
        options: where, how many at once, deadlines; None = in this process.
        skip_existing: leave out items whose file or folder is there.
        on_result: called with every `ClipResult` as it comes, in no particular order.
        cancel: set it to end the job.

    Raises:
        InputError: nothing can be edited: no item, two with one output, a folder that cannot be written, a model that
            cannot be loaded, Ray not installed. MachineError: no editor could be started. Cancelled: `cancel` was set.
    """
    setup, options = (setup or EditorSetup()).absolute(), options or FleetOptions()
    started = time.monotonic()
    check_items(items)
    check_distinct(items)
    _make_folders({item.out.parent for item in items})
    results: dict[Path, ClipResult] = {}

    def tell(result: ClipResult) -> None:
        results[result.out] = result
        if on_result is not None:
            on_result(result)

    todo = []
    for item in items:
        if skip_existing and item.out.exists():
            tell(ClipResult(item.video, item.out, "skipped"))
        else:
            todo.append(item)
    notes: list[str] = []
    if todo and options.ray is None:
        for result in _edit_here(todo, setup, options, cancel):
            tell(result)
    elif todo:
        from fairy.runtime.fleet.on_ray import edit_on_ray

        notes = edit_on_ray(todo, setup, options, tell, cancel)
    return FleetReport(tuple(results[i.out] for i in items), round(time.monotonic() - started, 3), tuple(notes))


def _edit_here(
    items: Sequence[WorkItem], setup: EditorSetup, options: FleetOptions, cancel: threading.Event | None
) -> Iterator[ClipResult]:
    if options.gpus_per_editor is not None:
        setup = with_gpus(setup, options.gpus_per_editor, gpus_at_hand=True, placed_by_ray=False)
    with setup.open() as editor:
        for item in items:
            if cancel is not None and cancel.is_set():
                raise Cancelled("The edits were cancelled; finished clips are there.")
            yield edit_item(editor, item, timeout_s=options.item_timeout_s, cancel=cancel, resume=options.resume)


def _make_folders(folders: set[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise InputError(f"{folder} cannot be made: {folder.parent} does not exist; create it first.") from None
        except FileExistsError:
            raise InputError(f"{folder} is not a folder; name another one for the results.") from None
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {(error.strerror or 'unknown reason').lower()}.") from None
