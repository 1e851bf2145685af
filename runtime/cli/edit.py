"""`fairy edit`: the options of one edit, its progress and what it says at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

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

from fairy.kernels.errors import InputError
from fairy.runtime.cli import options as cli_options
from fairy.runtime.plan.story import seconds_of

_LONGEST_RATE = 40
_STAGES = {"probe": "reading the video", "anchors": "editing the anchors", "frames": "editing the frames"}


def edit(
    video: Annotated[Path, typer.Argument(metavar="IN", help="A video file, or a folder of images (needs --fps).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write: .mp4 .m4v .mov .mkv .webm .avi .ts")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help='What to do, e.g. "make it snow"; may be left to --prompts.'),
    ] = None,
    model: cli_options.Model = None,
    variant: cli_options.Variant = None,
    negative_prompt: Annotated[str, typer.Option(help="What the result should not be.")] = "",
    anchors: cli_options.Anchors = None,
    steps: cli_options.Steps = None,
    seed: Annotated[int, typer.Option(help="Seed of all noise.")] = 0,
    guidance_scale: cli_options.GuidanceScale = None,
    image_guidance_scale: cli_options.ImageGuidanceScale = None,
    sampler: cli_options.Sampler = None,
    noise: Annotated[str, typer.Option(help="shared or per-frame.")] = "shared",
    layers: Annotated[
        str | None, typer.Option(help="Layers that see other frames: all or decoder [the method's].")
    ] = None,
    method: Annotated[str, typer.Option(help="fairy, pix2video or per_frame.")] = "fairy",
    order: Annotated[
        str | None, typer.Option(help="pix2video: wavefront, or step-major for less memory [wavefront].")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="pix2video: pull to the previous frame, 0 = off [100].")] = None,
    update_steps: Annotated[int | None, typer.Option(help="pix2video: steps that pull [half of them].")] = None,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="pix2video: pull more at smaller sizes, as the paper does.")
    ] = False,
    source_prompt: Annotated[
        str | None, typer.Option(help="Depth models: what the video shows, or auto to caption its first frame.")
    ] = None,
    depth: Annotated[
        Path | None, typer.Option(help="Depth models: a folder with a map for every frame [estimated].")
    ] = None,
    long_side: cli_options.LongSide = None,
    upscale: Annotated[bool, typer.Option("--upscale", help="Scale a smaller video up to --long-side.")] = False,
    size: Annotated[str, typer.Option(help="scaled, or source: scale the result back.")] = "scaled",
    start: Annotated[str | None, typer.Option(help="Edit from here: seconds or [H:]MM:SS.")] = None,
    end: Annotated[str | None, typer.Option(help="Edit up to here: seconds or [H:]MM:SS.")] = None,
    deinterlace: Annotated[
        bool, typer.Option("--deinterlace", help="Make whole pictures of the fields of interlaced video first.")
    ] = False,
    hdr: Annotated[str, typer.Option(help="High dynamic range: refuse, or tonemap to BT.709.")] = "refuse",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a video with damaged frames instead of concealing them.")
    ] = False,
    shots: Annotated[
        str,
        typer.Option(help="off, auto (finds cuts), or the first frames of shots: 120,310. Each has its own anchors."),
    ] = "off",
    prompts: Annotated[
        Path | None, typer.Option(help="A YAML or JSON file that says from which frame or time on which instruction.")
    ] = None,
    continue_look: Annotated[
        bool, typer.Option("--continue-look", help="A shot's frames also attend to the last anchor of the one before.")
    ] = False,
    micro_batch: Annotated[int | None, typer.Option(help="Frames denoised at once.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture that is decoded [36000000].")] = None,
    fps: Annotated[
        str | None, typer.Option(help="Frames a second of a folder of images, e.g. 25 or 30000/1001.")
    ] = None,
    crf: cli_options.Crf = 18,
    device: cli_options.Device = "auto",
    dtype: cli_options.Dtype = "auto",
    backend: cli_options.BackendName = "auto",
    store: cli_options.Store = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A step of the backend compiled to leave out; may be repeated.")
    ] = None,
    bank: Annotated[
        str, typer.Option(help="Where the anchors' keys and values are kept: device, or host for small cards.")
    ] = "device",
    decoder: cli_options.Decoder = None,
    linears: Annotated[
        str | None, typer.Option(help="Approximate: float8 computes the UNet's large linear layers in 8 bit.")
    ] = None,
    bank_dtype: Annotated[
        str | None, typer.Option(help="Approximate: float8 keeps the anchors' keys and values in 8 bit.")
    ] = None,
    guidance_end: Annotated[
        float, typer.Option(help="Approximate: the share of the steps, from the first on, that are guided.")
    ] = 1.0,
    gpus: Annotated[int, typer.Option(help="How many GPUs share the job.")] = 1,
    workers: Annotated[int, typer.Option(help="How many processes share the job on the CPU.")] = 1,
    threads: cli_options.Threads = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what an interrupted edit into the same file had finished.")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="Also write source and result side by side.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write the edited anchors as a PNG before the rest.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report of the job.")] = None,
    quiet: cli_options.Quiet = False,
) -> None:
    """Edit a video from an instruction."""
    if quiet:
        cli_options.silence_libraries()
    from fairy.runtime.editor import Editor
    from fairy.runtime.methods.options import check_processes
    from fairy.runtime.plan.params import EditParams
    from fairy.runtime.plan.request import FileRequest
    from fairy.runtime.plan.story import first_instruction, read_prompts
    from fairy.runtime.video import MAX_PIXELS
    from fairy.runtime.workers.torchrun import processes_asked_for

    schedule = None if prompts is None else read_prompts(prompts)
    params = EditParams(
        first_instruction(prompt, schedule),
        negative_prompt=negative_prompt,
        anchors=cli_options.parse_anchors(anchors),
        num_inference_steps=steps,
        seed=seed,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        sampler=sampler,
        noise=noise,  # type: ignore[arg-type]  # EditParams checks it and says so in a sentence
        layers=layers,  # type: ignore[arg-type]
        long_side=long_side,
        upscale=upscale,
        size=size,  # type: ignore[arg-type]
        start=_parse_time("start", start),
        end=_parse_time("end", end),
        micro_batch=micro_batch,
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
        deinterlace=deinterlace,
        hdr=hdr,  # type: ignore[arg-type]
        strict=strict,
        shots=cli_options.parse_shots(shots),  # type: ignore[arg-type]
        prompts=schedule,
        continue_look=continue_look,
        guidance_end=guidance_end,
        bank_dtype=bank_dtype,  # type: ignore[arg-type]
        method=method,
        order=order,  # type: ignore[arg-type]
        delta=delta,
        update_steps=update_steps,
        paper_scale=paper_scale,
        source_prompt=source_prompt,
        depth=depth,
    )
    processes = processes_asked_for(device, gpus, workers)
    if processes is None:
        return
    gpus, workers = processes
    check_processes(params, max(gpus, workers))
    # Whatever cannot be written is refused before the model is loaded.
    rate = _parse_rate(fps)
    request = FileRequest.checked(
        video, out, compare=compare, preview=preview, report=report, fps=rate, crf=crf, others=(prompts, depth)
    )
    with (
        Editor.from_pretrained(
            model,
            variant=variant,
            device=device,
            dtype=dtype,
            backend=backend,
            store=store,
            without=tuple(without or ()),
            gpus=gpus,
            workers=workers,
            threads=threads,
            bank=bank,
            decoder=decoder,
            linears=linears,
        ) as editor,
        _telling_of_journal(),
        _progress_bar(quiet) as on_progress,
    ):
        done = editor.edit_file(
            request.video,
            request.out,
            params,
            compare=request.compare,
            preview=request.preview,
            report=request.report,
            fps=request.fps,
            crf=request.crf,
            on_progress=on_progress,
            resume=resume,
        )
    _tell(done, out, compare, preview, report)


@contextmanager
def _telling_of_journal() -> Iterator[None]:
    """Say, where an edit ends too early, that it can go on."""
    try:
        yield
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            typer.echo(f"note: {note}", err=True)
        raise


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
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
                tasks[progress.stage] = bar.add_task(_STAGES[progress.stage], total=progress.total or None)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total or None)

        yield on_progress


def _tell(done: Any, out: Path, compare: Path | None, preview: Path | None, report: Path | None) -> None:
    seconds = done.times_ms["total"] / 1e3
    typer.echo(
        f"{out}: {done.num_frames} frame{'s' * (done.num_frames != 1)}, {done.width}×{done.height}, {seconds:.1f} s "
        f"({done.num_frames / seconds:.2f} frames/s), {done.backend} {done.precision} on {done.device}, "
        f"anchors {', '.join(map(str, done.anchors)) or 'none'}"
    )
    for name, path in (("side by side", compare), ("anchors", preview), ("report", report)):
        if path is not None:
            typer.echo(f"{path}: {name}")
    for sentence in (*done.lost_workers, *done.fallbacks, *done.notes):
        typer.echo(f"note: {sentence}")


def _parse_time(name: str, text: str | None) -> float | None:
    """Seconds, from seconds or [H:]MM:SS."""
    if text is None:
        return None
    try:
        return seconds_of(text)
    except ValueError as error:
        raise InputError(f"--{name} {text!r} is not a time; give seconds (12.5) or [H:]MM:SS (1:02.5).") from error


def _parse_rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        if len(text) > _LONGEST_RATE or "e" in text.lower():  # 1e99999999 would be computed
            raise ValueError(text)
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--fps {text!r} is not a rate; give a number (25) or a fraction (30000/1001).") from error
    return rate
