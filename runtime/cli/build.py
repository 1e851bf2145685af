"""`fairy build` and `fairy export`: engines for this machine, and ONNX files for any."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fairy.kernels.errors import InputError
from fairy.runtime.cli.engines import (
    Adapter,
    Config,
    Controls,
    Decoder,
    Json,
    Loras,
    Store,
    facts_of,
    generator_folder,
    line_of,
    load_model,
    model_setup,
    size_text,
)
from fairy.runtime.cli.interruption import ending_at_once
from fairy.runtime.editor_setup import EditorSetup

if TYPE_CHECKING:
    from fairy.engines.build import BuildRequest, PlannedEngine
    from fairy.engines.engine import Shapes
    from fairy.engines.store.store import EngineStore
    from fairy.export import model as models

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Model = Annotated[str | None, typer.Argument(help="A folder in diffusers' format or a hub id [the embedded model].")]
Graphs = Annotated[str | None, typer.Option(help="Names of graphs with commas between [those that an edit uses].")]
Layers = Annotated[str, typer.Option(help="Layers that see the anchors: all or decoder.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16 or bf16 [fp16 on CUDA, else fp32].")]
ExportPrecision = Annotated[str, typer.Option(help="fp32, fp16, or with --body portable --no-check bf16.")]
Device = Annotated[str, typer.Option(help="Where the engines will run: auto, cpu, cuda or cuda:N.")]
Size = Annotated[str | None, typer.Option(help="Pixels: one size, or MIN:OPT:MAX [up to the model's long side].")]
Frames = Annotated[str | None, typer.Option(help="Frames of a micro-batch: a number, or MIN:OPT:MAX.")]


def build(
    model: Model = None,
    backend: Annotated[
        str | None, typer.Option(help="onnxruntime, tensorrt or compiled [tensorrt on CUDA, else onnxruntime].")
    ] = None,
    height: Size = None,
    width: Size = None,
    frames: Frames = None,
    anchors: Annotated[int | None, typer.Option(help="Most anchor frames [the model's, else 3].")] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    store: Store = None,
    decoder: Decoder = None,
    lora: Loras = None,
    config: Config = None,
    controlnet: Controls = None,
    ip_adapter: Adapter = None,
    graphs: Graphs = None,
    layers: Layers = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, build nothing.")] = False,
    as_json: Json = False,
    mem_pool: Annotated[
        str | None, typer.Option("--memPoolSize", help="Memory for trying out kernels: 4096M or workspace:4G.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timingCacheFile", help="Measured kernel times, kept between builds.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--builderOptimizationLevel", min=0, max=5, help="How long to search: 0 to 5.")
    ] = None,
    plugin: Annotated[bool, typer.Option("--plugin", help="TensorRT runs our attention kernel.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", "--bf16", "--int8", "--fp8", "--best", hidden=True)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Build engines of a model for this machine and put them into the store."""
    if fp16:
        raise InputError(
            "--fp16 and the like switch nothing: TensorRT's networks are strongly typed, the precision of every layer "
            "stands in the graph itself; choose it with --precision fp16 (or bf16, fp32)."
        )
    from fairy.engines.build import BuildRequest
    from fairy.engines.engine import BuildOptions
    from fairy.engines.store.store import EngineStore
    from fairy.export.families import half_precision
    from fairy.runtime.device import resolve_device, resolve_dtype
    from fairy.runtime.models import find_editor

    options = BuildOptions(_parse_memory(mem_pool), optimization_level, timing_cache, plugin)
    place = resolve_device(device)
    dtype = resolve_dtype(_PRECISIONS.get(precision, precision), place)
    if precision == "auto" and place.type == "cuda" and generator_folder(model) is None:
        dtype = half_precision(find_editor(model))
    backend = backend or ("tensorrt" if place.type == "cuda" else "onnxruntime")
    request = BuildRequest(backend, place, dtype, None, options, _names(graphs), layers)
    ranges = (height, width, frames, anchors)
    setup = model_setup(model, decoder, lora, config, controlnet, ip_adapter)
    _build(setup, request, ranges, EngineStore(store), dry_run=dry_run, as_json=as_json, quiet=quiet)


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")],
    model: Model = None,
    lora: Loras = None,
    config: Config = None,
    controlnet: Controls = None,
    ip_adapter: Adapter = None,
    precision: ExportPrecision = "fp32",
    body: Annotated[
        str, typer.Option(help="How attention is written: onnxruntime, or portable (standard operators).")
    ] = "onnxruntime",
    graphs: Graphs = None,
    layers: Layers = "all",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare the files with torch.")] = True,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Write the graphs of a model as ONNX files, and compare them with torch."""
    import torch

    from fairy.export.onnx.export import PRECISIONS, export_model
    from fairy.runtime.models import find_editor

    named = _PRECISIONS.get(precision, precision)
    loaded: str | Path | models.Model = find_editor(model)
    if (lora or config or controlnet or ip_adapter) and named in PRECISIONS:  # another one is refused below
        loaded = load_model(model_setup(model, None, lora, config, controlnet, ip_adapter), getattr(torch, named))
    with _progress_bar(quiet or as_json, "export") as on_progress:
        report = export_model(
            loaded,
            out.expanduser().absolute(),
            graphs=_names(graphs),
            layers=layers,
            body=body,  # type: ignore[arg-type]  # export_model checks it and says so in a sentence
            precision=named,
            check=check,
            on_progress=on_progress,
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, default=str))
        return
    for graph in report.graphs:
        compared = "not compared" if graph.max_abs_error is None else f"largest error {graph.max_abs_error:.2g}"
        typer.echo(f"{graph.path}: {size_text(graph.bytes)}, {graph.seconds:.1f} s, {compared}")


def _build(
    setup: EditorSetup,
    request: "BuildRequest",
    ranges: tuple[str | None, str | None, str | None, int | None],
    store: "EngineStore",
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from fairy.engines.backends import make_builder
    from fairy.engines.build import ANY_SHAPE, plan_build, run_build

    builder = make_builder(request.backend)
    checkpoint = load_model(setup, request.precision)
    if request.backend not in ANY_SHAPE or any(part is not None for part in ranges):
        request = replace(request, shapes=_shapes(checkpoint, *ranges))
    planned = plan_build(checkpoint, request, builder, store)
    if dry_run:
        _tell_plan(planned, store, as_json)
        return
    command = shlex.join(["fairy", *sys.argv[1:]])
    with _progress_bar(quiet or as_json, "build") as on_progress:
        built = run_build(planned, checkpoint, builder, store, command=command, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps([facts_of(entry) for entry in built], indent=2))
        return
    for plan, entry in zip(planned, built, strict=True):
        typer.echo(line_of(entry) + ("  (was there)" if plan.stored else ""))


def _shapes(
    model: "models.Model", height: str | None, width: str | None, frames: str | None, anchors: int | None
) -> "Shapes":
    """What the engines must serve; sizes are rounded up as pictures are padded."""
    from fairy.engines.engine import Shapes
    from fairy.runtime.plan.batches import default_micro_batch
    from fairy.runtime.plan.choose_anchors import DEFAULT_ANCHORS
    from fairy.runtime.plan.params import EditParams

    multiple = model.size_multiple
    usual = EditParams("build").resolved(model.recommended)
    long_side = int(usual.long_side or 0)
    recommended = usual.anchors if isinstance(usual.anchors, int) else DEFAULT_ANCHORS
    most = recommended if anchors is None else anchors
    batch = model.frames_at_once or default_micro_batch(most)
    sides = [
        _padded((multiple, long_side, long_side) if text is None else _parse_range(name, text), multiple)
        for name, text in (("height", height), ("width", width))
    ]
    return Shapes(
        sides[0],
        sides[1],
        (1, batch, batch) if frames is None else _parse_range("frames", frames),
        most,
        tokens=model.text_tokens,
    )


def _padded(pixels: tuple[int, int, int], multiple: int) -> tuple[int, int, int]:
    low, best, high = (-(-side // multiple) * multiple for side in pixels)
    return low, best, high


def _parse_range(name: str, text: str) -> tuple[int, int, int]:
    """One number for all three, or MIN:OPT:MAX."""
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InputError("is neither a number (384) nor a range MIN:OPT:MAX (256:384:512)", name=name, value=text)
    return numbers[0], numbers[1], numbers[2]


def _parse_memory(text: str | None) -> int | None:
    """Bytes, from trtexec's notation: 4096 (MiB), 4G, workspace:4096M."""
    if text is None:
        return None
    pool, _, size = text.rpartition(":")
    unit = size[-1:].upper() if size[-1:].upper() in _UNITS else ""
    number = size[: len(size) - len(unit)]
    if pool not in ("", "workspace") or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise InputError(f"--memPoolSize {text!r} is not a size; give MiB (4096), 4G or workspace:4096M.")
    return int(number) * _UNITS[unit or "M"]


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _tell_plan(planned: "tuple[PlannedEngine, ...]", store: "EngineStore", as_json: bool) -> None:
    new = [plan for plan in planned if plan.stored is None]
    total = {
        "seconds": sum(plan.estimate.seconds for plan in new),
        "disk_bytes": sum(plan.estimate.disk_bytes for plan in new),
        "memory_bytes": max((plan.estimate.memory_bytes for plan in new), default=0),
    }
    if as_json:
        rows = [plan.to_json() for plan in planned]
        typer.echo(json.dumps({"store": str(store.root), "engines": rows, "total": total}, indent=2))
        return
    for plan in planned:
        cost = plan.estimate
        what = "in the store" if plan.stored else f"about {cost.seconds:.0f} s, {size_text(cost.disk_bytes)} on disk"
        basis = ", as measured before" if cost.measured and not plan.stored else ""
        typer.echo(f"{plan.key.digest[:12]}  {plan.spec.graph.name:<14} {what}{basis}")
    typer.echo(
        f"{len(new)} to build in {store.root}: about {total['seconds']:.0f} s, {size_text(total['disk_bytes'])} on "
        f"disk, {size_text(total['memory_bytes'])} of memory at most. Nothing was built."
    )


@contextmanager
def _progress_bar(quiet: bool, what: str) -> Iterator[Callable[[str, int, int], bool]]:
    """A bar on stderr, one task a phase; an interrupt says what became of the work."""
    sentence = f"The {what} was interrupted; what was finished before stays."
    if quiet:
        with ending_at_once(sentence):
            yield lambda phase, done, total: True
        return
    columns = (TextColumn("{task.description:>34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar, ending_at_once(sentence):
        tasks: dict[str, TaskID] = {}

        def on_progress(phase: str, done: int, total: int) -> bool:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total or None)
            bar.update(tasks[phase], completed=done, total=total or None)
            return True

        yield on_progress
