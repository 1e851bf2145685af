"""`fairy bench …`: the command line of what is measured and planned; `fairy.benchmarks` is loaded when it is used."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(help="Measure, and plan from what was measured.", rich_markup_mode=None)


@bench.callback()
def _bench() -> None:
    """Keeps the commands below commands, however few they are."""


@bench.command()
def scaling(
    costs: Annotated[Path | None, typer.Option(help="A JSON file of stage costs [measured here, on the spot].")] = None,
    save_costs: Annotated[Path | None, typer.Option(help="Write the measured stage costs as JSON.")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Instead: compute those of SD 1.5, 512×384, at this rate in 10¹² a second.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to measure [the embedded one].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, eager, onnxruntime, tensorrt or compiled.")] = "auto",
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
