"""`fairy edit-many`: every clip of a folder, here or on a Ray cluster, and a table of what became of them."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.allocation import keep_freed_memory
from fairy.runtime.cli.shared import Quiet, silence_libraries
from fairy.runtime.cli.table import chosen, with_options
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.files import check_can_write, user_path
from fairy.runtime.fleet.fleet_options import FleetOptions
from fairy.runtime.fleet.items import items_of_folder
from fairy.runtime.options import options_of
from fairy.runtime.plan.file_request import FileRequest
from fairy.runtime.plan.params import EditParams
from fairy.runtime.workers.torchrun import torchrun_world

if TYPE_CHECKING:
    from fairy.runtime.fleet import ClipResult, FleetReport, WorkItem

_NOT_HERE = ("gpus", "workers", "compare", "preview", "report", "fps", "then")


@with_options(FleetOptions, EditorSetup, EditParams, FileRequest, skip=_NOT_HERE)
def edit_many(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the clips.")],
    prompt: Annotated[str, typer.Argument(metavar="INSTRUCTION", help='What to do, e.g. "make it snow".')],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for the results; made where it is missing.")],
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out clips that are in OUT.")] = False,
    ending: Annotated[str | None, typer.Option(help="Container of the results, e.g. .mp4 [the clip's].")] = None,
    params: Annotated[Path | None, typer.Option(help="A JSON file with more parameters; options win.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report of all clips.")] = None,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Edit every clip of a folder; one that cannot be edited does not stop the others."""
    if quiet:
        silence_libraries()
    if torchrun_world() is not None:
        raise InputError("torchrun would edit the whole folder in each of its processes; start edit-many without it.")
    asked = ({} if params is None else _read_params(params)) | chosen(EditParams, given)
    items = items_of_folder(folder, out, EditParams(prompt, **asked), ending=ending, **chosen(FileRequest, given))
    setup = EditorSetup(**chosen(EditorSetup, given))
    options = FleetOptions(**chosen(FleetOptions, given))
    if report is not None:
        _check_report(user_path(report), items)
        inputs = [item.video for item in items] + ([] if params is None else [user_path(params)])
        if user_path(report).resolve() in {path.resolve() for path in inputs}:
            raise InputError(f"{report} is the input itself; name another file for the report.")
    try:
        # Ray prints what it thinks of lost nodes; stdout is for the table.
        with redirect_stdout(sys.stderr), _progress_bar(quiet, len(items)) as on_result:
            from fairy.runtime.fleet import edit_many as edit_items

            keep_freed_memory()
            done = edit_items(items, setup, options, skip_existing=skip_existing, on_result=on_result)
    except KeyboardInterrupt:
        raise Cancelled(f"Interrupted; finished clips are in {out}; go on with --skip-existing --resume.") from None
    if report is not None:
        done.save(report)
    _tell(done, out)
    if done.exit_code:
        raise typer.Exit(done.exit_code)


def _read_params(path: Path) -> dict[str, Any]:
    known = options_of(EditParams)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {(error.strerror or 'unknown reason').lower()}.") from None
    except ValueError as error:
        raise InputError(f'{path} is not JSON ({error}); write an object such as {{"layers": "decoder"}}.') from None
    if not isinstance(values, dict):
        raise InputError(f'{path} holds no JSON object; write one such as {{"layers": "decoder"}}.')
    for name in values:
        if name not in known:
            raise InputError(f"{path} names {name!r}, which is none of {', '.join(sorted(known))}.")
    if isinstance(values.get("prompts"), dict):
        values["prompts"] = [[_start(text), prompt] for text, prompt in values["prompts"].items()]
    return values


def _start(text: str) -> int | float | str:
    """A frame or seconds, which JSON can only name as text."""
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


def _check_report(report: Path, items: "tuple[WorkItem, ...]") -> None:
    """Refuse a report that cannot be written before anything is edited; the results' folder is still to be made."""
    if report.parent != items[0].out.parent or report.parent.exists():
        check_can_write(report, endings=(".json",))
    elif report.suffix.lower() != ".json":
        raise InputError(f"{report} cannot be written: its name must end in .json.")


@contextmanager
def _progress_bar(quiet: bool, total: int) -> "Iterator[Callable[[ClipResult], None] | None]":
    """A bar on stderr that counts clips."""
    if quiet:
        yield None
        return
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("editing the clips", total=total)
        yield lambda result: bar.advance(task)


def _tell(done: "FleetReport", out: Path) -> None:
    width = max(len(clip.video.name) for clip in done.clips)
    for clip in done.clips:
        typer.echo(f"{clip.status:<8} {clip.video.name:<{width}}  {_said_of(clip)}")
    for note in done.notes:
        typer.echo(f"note: {note}")
    failed = done.count("failed")
    typer.echo(f"{len(done.clips) - failed} of {len(done.clips)} clips are in {out}; {done.wall_s:.1f} s")
    if failed:
        typer.echo(f"error: {failed} of {len(done.clips)} clips could not be edited; see the table.", err=True)


def _said_of(clip: "ClipResult") -> str:
    if clip.report is None:
        return clip.error or "it was there before"
    again = ", begun again after an editor was lost" if clip.redone else ""
    report = clip.report
    return f"{report.num_frames} frames, {report.width}×{report.height}, {clip.wall_s:.1f} s on {clip.node}{again}"
