"""`fairy edit`: the options of one edit, its progress and what it says at the end."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fairy.runtime.allocation import keep_freed_memory
from fairy.runtime.cli.progress import progress_bar, telling_of_journal
from fairy.runtime.cli.shared import Quiet, silence_libraries
from fairy.runtime.cli.table import chosen, with_options
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.methods.fits import check_processes, check_resume
from fairy.runtime.options import options_of
from fairy.runtime.plan.controls import COMPUTED, check_segmenter
from fairy.runtime.plan.file_request import FileRequest
from fairy.runtime.plan.params import EditParams
from fairy.runtime.plan.story import first_instruction
from fairy.runtime.workers.torchrun import processes_asked_for


@with_options(EditorSetup, EditParams, FileRequest)
def edit(
    context: typer.Context,
    video: Annotated[Path, typer.Argument(metavar="IN", help="A video file, or a folder of images (needs --fps).")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file to write: .mp4 .m4v .mov .mkv .webm .avi .ts .gif .webp")
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help='What to do, e.g. "make it snow"; may be left to --prompts.'),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what an interrupted edit into the same file had finished.")
    ] = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Edit a video from an instruction."""
    if quiet:
        silence_libraries()
    # Whatever is impossible, or cannot be written, is refused before torch and a model are loaded.
    params = EditParams(first_instruction(prompt, given.get("prompts")), **chosen(EditParams, given))
    setup = EditorSetup(**chosen(EditorSetup, given))
    processes = processes_asked_for(setup.device, setup.gpus, setup.workers)
    if processes is None:
        return
    setup = replace(setup, gpus=processes[0], workers=processes[1])
    check_processes(params, max(processes))
    check_resume(params, resume)
    check_segmenter(params.mask_from, known=setup.segmenter is not None)
    request = FileRequest.checked(
        video,
        out,
        others=(context.params["prompts"], params.depth, params.mask, *params.looks.values(), *_given(params)),
        **chosen(FileRequest, given),
    )
    keep_freed_memory()
    with setup.open() as editor, telling_of_journal(), progress_bar(quiet) as on_progress:
        written = {name: getattr(request, name) for name in options_of(FileRequest)}
        done = editor.edit_file(request.video, request.out, params, **written, on_progress=on_progress, resume=resume)
    _tell(done, out, given)


def _given(params: EditParams) -> list[str]:
    """The files that the user brings for controls to see."""
    return [seen for seen in params.seen if seen not in COMPUTED] + ([params.style[0]] if params.style else [])  # type: ignore[index,list-item]


def _tell(done: Any, out: Path, given: Mapping[str, Any]) -> None:
    seconds = done.times_ms["total"] / 1e3
    typer.echo(
        f"{out}: {done.num_frames} frame{'s' * (done.num_frames != 1)}, {done.width}×{done.height}, {seconds:.1f} s "
        f"({done.num_frames / seconds:.2f} frames/s), {done.backend} {done.precision} on {done.device}, "
        f"anchors {', '.join(map(str, done.anchors)) or 'none'}"
    )
    for name, what in (("compare", "side by side"), ("preview", "anchors"), ("report", "report")):
        if name in given:
            typer.echo(f"{given[name]}: {what}")
    for sentence in (*done.lost_workers, *done.fallbacks, *done.notes):
        typer.echo(f"note: {sentence}")
