"""What a command shows while it works, and says where it ends too early."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_STAGES = {
    "probe": "reading the video",
    "masks": "looking for the mask",
    "shots": "looking for cuts",
    "anchors": "editing the anchors",
    "frames": "editing the frames",
    "base": "first frames",
    "interpolation": "frames between",
    "super_resolution": "more pixels",
}


@contextmanager
def telling_of_journal() -> Iterator[None]:
    """Say, where a job ends too early, that it can go on."""
    try:
        yield
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            typer.echo(f"note: {note}", err=True)
        raise


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """A bar on stderr, one task a stage."""
    if quiet:
        yield None
        return
    columns = (
        TextColumn("{task.description:>20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(progress: Any) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(_said(progress.stage), total=progress.total or None)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total or None)

        yield on_progress


def _said(stage: str) -> str:
    """A stage in words; those of a cascade that have none are called by their names."""
    return _STAGES.get(stage, stage.replace("_", " "))
