"""The command line: `fairy edit`, `fairy probe`, `fairy doctor`; the other commands have files of their own.

Exit codes: 0 the whole job is done; 2 wrong input, with one sentence that names the value and the remedy; 1 the
machine failed; 130 interrupted. A user's mistake never shows a traceback.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.cli.bench import bench
from fairy.runtime.cli.build import build, export
from fairy.runtime.cli.clips import generate, interpolate, story, upscale
from fairy.runtime.cli.edit import edit
from fairy.runtime.cli.edit_many import edit_many
from fairy.runtime.cli.engines import engines
from fairy.runtime.cli.groups import GroupedCommand
from fairy.runtime.cli.interruption import BY_SIGNAL, end_at_once
from fairy.runtime.cli.models import models
from fairy.runtime.cli.serve import serve
from fairy.runtime.cli.table import spelled

_ENDING = (signal.SIGTERM, signal.SIGHUP)

app = typer.Typer(
    help="Edit a whole video from one written instruction, consistently.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
def probe(
    video: Annotated[Path, typer.Argument(help="A video file, a folder of images, or a model's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture that is decoded [36000000].")] = None,
) -> None:
    """Decode a video or a folder of images once, or look at a model, and say what it is and whether it can be used."""
    from fairy.runtime.video import MAX_PIXELS

    if max_pixels is not None and not 0 < max_pixels < 1 << 31:
        raise InputError(f"--max-pixels {max_pixels} is not possible; it must be from 1 to {(1 << 31) - 1}.")
    facts = _facts(video, MAX_PIXELS if max_pixels is None else max_pixels)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    console = Console(highlight=False)
    for name, value in facts.items():
        if name not in ("pts", "notes"):
            console.print(f"{name:>24}  {_plain(value)}", markup=False)
    for note in facts["notes"]:
        console.print(f"{'note':>24}  {note}", markup=False)


def _facts(path: Path, max_pixels: int) -> dict[str, Any]:
    """What is found there, in JSON's types; "notes" are sentences."""
    from fairy.export.families import describe_edit_model
    from fairy.runtime.video import probe as probe_video
    from fairy.runtime.video import probe_images

    if (path / "model_index.json").is_file():
        return describe_edit_model(path)
    if path.is_dir():
        images = probe_images(path, max_pixels=max_pixels)
        found = {"num_frames": images.num_frames, "width": images.width, "height": images.height}
        return images.to_json() | found | {"notes": list(images.notes)}
    return probe_video(path, max_pixels=max_pixels).to_json()


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


app.command(cls=GroupedCommand)(edit)
app.command()(edit_many)
app.command()(generate)
app.command()(story)
app.command()(interpolate)
app.command()(upscale)
app.command()(build)
app.command()(export)
app.command()(serve)
app.command()(models)
app.add_typer(engines, name="engines")
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file's name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        code: Any = run(sys.argv[1:])
    except SystemExit as end:
        code = end.code
    if isinstance(code, int) and code >= BY_SIGNAL:
        end_at_once(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return its exit code; every error is one sentence on stderr."""
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    try:
        with _terminate_politely():
            code = app(arguments, prog_name="fairy", standalone_mode=False)
        if code == 130:  # the parser turns Ctrl-C into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except InputError as error:
        return _fail(error.sentence(spelled), error.exit_code)
    except FairyError as error:
        return _fail(str(error), error.exit_code)
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
        sentence = f"{_typed(error, arguments)}{str(message()).strip()}".replace("\n", " ")
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


def _typed(error: Exception, arguments: list[str]) -> str:
    """What was typed for the option that the parser refuses; the parser itself does not always say it."""
    names = getattr(getattr(error, "param", None), "opts", ())
    words = [
        part for argument in arguments for part in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    return next((f"{name} {value!r}: " for name, value in pairwise(words) if name in names), "")


def _fail(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


@contextmanager
def _terminate_politely() -> Iterator[None]:
    """Turn SIGTERM, and SIGHUP where it is not ignored, into an orderly end, so that temporary files go too."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(BY_SIGNAL + number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
    before = {which: signal.signal(which, stop) for which in _ENDING[: 1 if ignored else 2]}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


if __name__ == "__main__":
    main()
