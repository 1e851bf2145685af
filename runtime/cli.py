"""The command line: `fairy edit`, `fairy probe`, `fairy doctor`; for engines see `cli_build.py`, `cli_engines.py`.

Exit codes: 0 the whole job is done; 2 wrong input, with one sentence that names the value and the remedy; 1 the
machine failed; 130 interrupted. A user's mistake never shows a traceback.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
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

from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.cli_bench import bench
from fairy.runtime.cli_build import build, export
from fairy.runtime.cli_engines import engines

app = typer.Typer(
    help="Edit a whole video from one written instruction, consistently.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_STAGES = {"probe": "reading the video", "anchors": "editing the anchors", "frames": "editing the frames"}


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show_version:
        from importlib.metadata import version

        typer.echo(f"fairy {version('fairy-runtime')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def edit(
    video: Annotated[Path, typer.Argument(metavar="IN", help="A video file, or a folder of images (needs --fps).")],
    prompt: Annotated[str, typer.Argument(metavar="INSTRUCTION", help='What to do, e.g. "make it snow".')],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write: .mp4 .mov .mkv .webm .avi .ts")],
    model: Annotated[
        str | None, typer.Option(help="A folder in diffusers' format or a hub id [the embedded model].")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the result should not be.")] = "",
    anchors: Annotated[str | None, typer.Option(help="How many anchor frames, or their numbers: 0,40,80 [3].")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [the model's, else 10].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all noise.")] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="Pull of the text [the model's, else 7.5].")] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="Pull of the picture [the model's, else 1.5].")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="euler_ancestral, euler, ddim or lcm.")] = None,
    noise: Annotated[str, typer.Option(help="shared or per-frame.")] = "shared",
    layers: Annotated[str, typer.Option(help="Layers that see the anchors: all or decoder.")] = "all",
    long_side: Annotated[int | None, typer.Option(help="Pixels of the long side [the model's, else 512].")] = None,
    upscale: Annotated[bool, typer.Option("--upscale", help="Scale a smaller video up to --long-side.")] = False,
    size: Annotated[str, typer.Option(help="scaled, or source: scale the result back.")] = "scaled",
    start: Annotated[str | None, typer.Option(help="Edit from here: seconds or [H:]MM:SS.")] = None,
    end: Annotated[str | None, typer.Option(help="Edit up to here: seconds or [H:]MM:SS.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Frames denoised at once.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture that is decoded [36000000].")] = None,
    fps: Annotated[
        str | None, typer.Option(help="Frames a second of a folder of images, e.g. 25 or 30000/1001.")
    ] = None,
    crf: Annotated[int, typer.Option(help="Quality of the written video: 0 (best) to 51.")] = 18,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, eager, onnxruntime, tensorrt or compiled.")] = "auto",
    store: Annotated[Path | None, typer.Option(help="The store of engines [$FAIRY_STORE, else the cache].")] = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs share the job.")] = 1,
    workers: Annotated[int, typer.Option(help="How many processes share the job on the CPU.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of the computation.")] = 1,
    compare: Annotated[Path | None, typer.Option(help="Also write source and result side by side.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write the edited anchors as a PNG before the rest.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a JSON report of the job.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Edit a video from an instruction."""
    from fairy.runtime.editor import Editor
    from fairy.runtime.params import EditParams
    from fairy.runtime.request import FileRequest
    from fairy.runtime.video import MAX_PIXELS
    from fairy.runtime.workers.torchrun import processes_asked_for

    params = EditParams(
        prompt,
        negative_prompt=negative_prompt,
        anchors=_parse_anchors(anchors),
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
    )
    processes = processes_asked_for(device, gpus, workers)
    if processes is None:
        return
    gpus, workers = processes
    # Whatever cannot be written is refused before the model is loaded.
    rate = _parse_rate(fps)
    request = FileRequest.checked(video, out, compare=compare, preview=preview, report=report, fps=rate, crf=crf)
    with (
        Editor.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            backend=backend,
            store=store,
            gpus=gpus,
            workers=workers,
            threads=threads,
        ) as editor,
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
        )
    _tell(done, out, compare, preview, report)


@app.command()
def probe(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture that is decoded [36000000].")] = None,
) -> None:
    """Decode a video once and say what it is, and whether it can be edited."""
    from fairy.runtime.video import MAX_PIXELS
    from fairy.runtime.video import probe as probe_video

    info = probe_video(video, max_pixels=MAX_PIXELS if max_pixels is None else max_pixels)
    facts = info.to_json()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    console = Console(highlight=False)
    for name, value in facts.items():
        if name not in ("pts", "notes"):
            console.print(f"{name:>24}  {_plain(value)}", markup=False)
    for note in info.notes:
        console.print(f"{'note':>24}  {note}", markup=False)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what works on this machine, and the exact command that mends what does not."""
    from fairy.runtime.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'ok' if finding.works else '--':>3}  {finding.what:<22} {finding.found}")
            if finding.remedy:
                typer.echo(f"{'':>28}{finding.remedy}")
            if finding.remark:
                typer.echo(f"{'':>28}({finding.remark})")
    if any(finding.required and not finding.works for finding in findings):
        raise typer.Exit(1)


app.command()(build)
app.command()(export)
app.add_typer(engines, name="engines")
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return its exit code; every error is one sentence on stderr."""
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    try:
        with _terminate_politely():
            code = app(arguments, prog_name="fairy", standalone_mode=False)
        if code == 130:  # the parser turns Ctrl-C into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except FairyError as error:
        return _fail(_as_option(str(error)), error.exit_code)
    except KeyboardInterrupt:
        return _fail("Interrupted; no video was written.", 130)
    except MemoryError:
        return _fail("The machine ran out of memory; choose a smaller --long-side, --micro-batch or --anchors.", 1)
    except OSError as error:
        return _fail(f"The machine failed: {error.strerror or error} ({error.filename or 'no file'}).", 1)
    except Exception as error:
        return _unexpected(error, arguments)


def _unexpected(error: Exception, arguments: list[str]) -> int:
    if type(error).__name__ == "Abort":
        return _fail("Interrupted; no video was written.", 130)
    message = getattr(error, "format_message", None)  # the parser's own errors: unknown or missing options
    if message is not None:
        sentence = _naming_the_value(str(message()).strip().replace("\n", " "), arguments)
        return _fail(f"{sentence.rstrip('.')}; see `fairy --help`." if sentence else "See `fairy --help`.", 2)
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return _fail(
            f"The GPU failed or is out of memory ({type(error).__name__}); choose a smaller --long-side, "
            "--micro-batch or --anchors.",
            1,
        )
    if os.environ.get("FAIRY_DEBUG"):
        raise error
    return _fail(f"Internal error ({type(error).__name__}: {error}); set FAIRY_DEBUG=1 to see where, and report it.", 1)


def _naming_the_value(sentence: str, arguments: list[str]) -> str:
    """The parser says which option has a wrong value but not always which value; find it among the arguments."""
    words = [
        part for argument in arguments for part in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    for option, value in pairwise(words):
        if option.startswith("-") and f"'{option}'" in sentence and value not in sentence:
            return sentence.replace("Invalid value for", f"Invalid value {value!r} for")
    return sentence


def _as_option(sentence: str) -> str:
    """Speak of the option that was typed where the library speaks of its parameter: "crf = 99" is "--crf 99" here."""
    match = re.match(r"(\w+) = ", sentence)
    if match is None:
        return sentence
    name = {"num_inference_steps": "steps"}.get(match[1], match[1].replace("_", "-"))
    return f"--{name} {sentence[match.end() :]}"


def _fail(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


@contextmanager
def _terminate_politely() -> Iterator[None]:
    """Turn SIGTERM into an orderly end, so that temporary files and helper processes go too."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        f"{out}: {done.num_frames} frames, {done.width}×{done.height}, {seconds:.1f} s "
        f"({done.num_frames / seconds:.2f} frames/s), {done.backend} {done.precision} on {done.device}, "
        f"anchors {', '.join(map(str, done.anchors)) or 'none'}"
    )
    for name, path in (("side by side", compare), ("anchors", preview), ("report", report)):
        if path is not None:
            typer.echo(f"{path}: {name}")
    for sentence in (*done.lost_workers, *done.fallbacks, *done.notes):
        typer.echo(f"note: {sentence}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _parse_anchors(text: str | None) -> int | tuple[int, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers:
        raise InputError(f"--anchors {text!r} is neither a number of anchors (3) nor a list of frames (0,40,80).")
    return numbers if "," in text else numbers[0]


def _parse_time(name: str, text: str | None) -> float | None:
    """Seconds, from seconds or [H:]MM:SS."""
    if text is None:
        return None
    try:
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + float(part)
    except ValueError as error:
        raise InputError(f"--{name} {text!r} is not a time; give seconds (12.5) or [H:]MM:SS (1:02.5).") from error
    return seconds


def _parse_rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--fps {text!r} is not a rate; give a number (25) or a fraction (30000/1001).") from error
    return rate


if __name__ == "__main__":
    main()
