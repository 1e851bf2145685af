"""`fairy bench …`: the command line of what is measured and planned; `fairy.benchmarks` is loaded when it is used."""

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fairy.kernels.errors import InputError
from fairy.runtime.cli.shared import BackendName, Device, Dtype, Threads

bench = typer.Typer(
    help="Edit a clip on this machine and say how fast and how good; or one of the commands.", rich_markup_mode=None
)


@bench.callback(invoke_without_command=True)
def clip(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="A folder or hub id [the embedded model].")] = None,
    video: Annotated[Path | None, typer.Option(help="A clip of yours, with --prompt [a generated one].")] = None,
    prompt: Annotated[str | None, typer.Option(help="The instruction [make it sepia].")] = None,
    frames: Annotated[int | None, typer.Option(help="How many frames [6 on a CPU, 120 on a GPU].")] = None,
    long_side: Annotated[int | None, typer.Option(help="Pixels of the long side [256 on a CPU, 512 on a GPU].")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [the model's, else 10].")] = None,
    anchors: Annotated[int | None, typer.Option(help="Anchor frames [3].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all noise.")] = 0,
    repeats: Annotated[int, typer.Option(help="Measured edits of each way.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: BackendName = "auto",
    threads: Threads = 1,
    out: Annotated[Path, typer.Option(help="The folder for record.json and page.html.")] = Path("fairy-bench"),
) -> None:
    """Edit a clip several times on this machine: one table and one page of speed, memory, energy and quality."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    command = import_module("fairy.benchmarks.clip_command")
    options = {name: value for name, value in context.params.items() if name != "out"}
    for line in command.run(options, out, lambda sentence: typer.echo(f"  {sentence}", err=True)):
        typer.echo(line)


def _refuse_options_before(context: typer.Context) -> None:
    """Options of the clip benchmark before another command's name would be ignored."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} stands before {context.invoked_subcommand}, which does not take it; "
            "write options after the command."
        )


@bench.command()
def scaling(
    costs: Annotated[Path | None, typer.Option(help="A JSON file of stage costs [measured here, on the spot].")] = None,
    save_costs: Annotated[Path | None, typer.Option(help="Write the measured stage costs as JSON.")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Instead: compute those of SD 1.5, 512×384, at this rate in 10¹² a second.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to measure [the embedded one].")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: BackendName = "auto",
    long_side: Annotated[int | None, typer.Option(help="Pixels of the long side [the model's].", min=8)] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1, max=1000)] = 10,
    frames: Annotated[str | None, typer.Option(help="Lengths [120,1000,10000,100000].")] = None,
    workers: Annotated[str | None, typer.Option(help="Numbers of workers [1,2,4,8,16,32,64].")] = None,
    link: Annotated[
        list[str] | None, typer.Option(help="NAME=GB/s, may be repeated [NVLink=300, PCIe=20, Ethernet=3].")
    ] = None,
    memory_gb: Annotated[float | None, typer.Option(help="What a worker has; refuse what does not fit.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: .png, .svg or .pdf (needs matplotlib).")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write all figures as JSON.")] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Also run worker processes whose stages sleep, beside the simulation.")
    ] = False,
) -> None:
    """Plan and simulate edits on 1 to 64 workers: efficiency, and what keeps it from 100 %."""
    command = import_module("fairy.benchmarks.scaling.command")
    text: str = command.run(
        costs=costs,
        save=save_costs,
        tflops=tflops,
        model=model,
        device=device,
        dtype=dtype,
        backend=backend,
        long_side=long_side,
        steps=steps,
        frames=frames,
        workers=workers,
        links=link or (),
        memory_gb=memory_gb,
        plot=plot,
        as_json=as_json,
        validate=validate,
    )
    typer.echo(text, nl=False)


@bench.command()
def gate(
    base: Annotated[Path, typer.Argument(metavar="BASE.json", help="Records of an earlier run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="Records of the run to judge.")],
    share: Annotated[float, typer.Option(help="Share of the base's median that a time may move by.")] = 0.08,
    amount_ms: Annotated[float, typer.Option(help="Milliseconds that it may move by; only both together fail.")] = 0.05,
    min_runs: Annotated[int, typer.Option(help="Fewer runs than this are not judged.")] = 5,
    max_spread: Annotated[float, typer.Option(help="Runs spread more widely are not judged (p80-p20)/median.")] = 0.25,
    strict: Annotated[bool, typer.Option("--strict", help="Also fail where a case could not be judged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two record files; exit code 1 where a case got slower, worse or does more than before."""
    judging, records = import_module("fairy.benchmarks.gate"), import_module("fairy.benchmarks.records")
    limits = judging.Limits(share, amount_ms, min_runs, max_spread)
    verdicts = judging.compare(records.read_records(base), records.read_records(new), limits)
    failed: bool = judging.failed(verdicts, strict=strict)
    if as_json:
        cases = [verdict.to_json() for verdict in verdicts]
        typer.echo(json.dumps({"failed": failed, "cases": cases}, indent=1))
    else:
        typer.echo(judging.table(verdicts))
    if failed:
        raise typer.Exit(1)


@bench.command()
def counts(
    model: Annotated[
        str | None,
        typer.Option(
            help="The model [the embedded one]; klein-4b, klein-9b, klein-9b-kv, dreamlite-mobile: public sizes."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the records as JSON, for `fairy bench gate`.")] = None,
) -> None:
    """Count launches, copies, allocations, synchronisations and FLOPs of a step, on the CPU; and what GPUs allow."""
    if model is not None and model in import_module("fairy.benchmarks.public_models").PUBLIC:
        if out is not None:
            raise InputError(f"--out is for the gate, which knows no {model}; leave it out.")
        typer.echo(import_module("fairy.benchmarks.family_counts").count_family(model).table())
        return
    counting, records = import_module("fairy.benchmarks.counts"), import_module("fairy.benchmarks.records")
    found = counting.run_counts(model)
    typer.echo(f"{counting.table(found)}\n\n{import_module('fairy.benchmarks.work').table()}")
    if out is not None:
        records.write_records(out, found)


@bench.command()
def ladder(
    small: Annotated[bool, typer.Option("--small", help="Small networks and pictures, for a CPU.")] = False,
    rungs: Annotated[str | None, typer.Option(help="a,b,c,d and steps [all].")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A step to leave out; may be repeated.")] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile [on a GPU].", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Measured passes of every rung.")] = 5,
    micro_batch: Annotated[int | None, typer.Option(help="Frames denoised at once [15, small 3].", min=1)] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of the computation.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="A folder for records and table, or a .json file.")] = None,
) -> None:
    """Measure what every step of the compiled path is worth, beside what others would run."""
    command = import_module("fairy.benchmarks.ladder.command")
    options: dict[str, Any] = {"small": small, "rungs": rungs, "without": tuple(without or ()), "compiled": compiled}
    options |= {"repeats": repeats, "micro_batch": micro_batch, "device": device, "dtype": dtype, "threads": threads}
    for line in command.run(**options, out=out, tell=lambda sentence: typer.echo(f"  {sentence}", err=True)):
        typer.echo(line)


@bench.command()
def approximate(
    model: Annotated[str | None, typer.Option(help="A folder or hub id [the embedded model].")] = None,
    clips: Annotated[int, typer.Option(help="Clips, each with one instruction.")] = 6,
    frames: Annotated[int, typer.Option(help="Frames of every clip.")] = 6,
    size: Annotated[int, typer.Option(help="Side of the square frames, pixels.")] = 192,
    repeats: Annotated[int, typer.Option(help="Edits of every clip in every way; the fastest counts.")] = 1,
    decoder: Annotated[str, typer.Option(help="tiny (the model's own), or an AutoencoderTiny.")] = "tiny",
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: BackendName = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of the computation.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="A folder for results.json and results.md.")] = None,
) -> None:
    """Measure what fewer steps, the small decoder and other approximations gain, and cost; needs a checkout."""
    command = import_module("fairy.benchmarks.approximate")
    options: dict[str, Any] = {"model": model, "clips": clips, "frames": frames, "size": size, "repeats": repeats}
    options |= {"decoder": decoder, "device": device, "dtype": dtype, "backend": backend, "threads": threads}
    for line in command.run(**options, out=out, tell=lambda sentence: typer.echo(f"  {sentence}", err=True)):
        typer.echo(line)
