"""What `fairy bench scaling` does, behind the options that the command line parses."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fairy.benchmarks.scaling.costs import computed_costs, measure_costs, read_costs, save_costs
from fairy.benchmarks.scaling.placement import Link
from fairy.benchmarks.scaling.real_edit import real_edit
from fairy.benchmarks.scaling.rehearsal import compare, rehearse
from fairy.benchmarks.scaling.report import FRAMES, LINKS, WORKERS, check_plot, draw, heading, study, table, to_json
from fairy.kernels.errors import InputError
from fairy.runtime.files import check_outputs, user_path, write_atomically
from fairy.runtime.plan.stage_costs import StageCosts


def run(
    *,
    costs: Path | None,
    save: Path | None,
    tflops: float | None,
    model: str | None,
    device: str,
    dtype: str,
    backend: str,
    long_side: int | None,
    steps: int,
    frames: str | None,
    workers: str | None,
    links: Sequence[str],
    memory_gb: float | None,
    plot: Path | None,
    as_json: Path | None,
    validate: bool,
) -> str:
    """Plan, simulate, draw; gives the text to print. Raises InputError for impossible options."""
    outputs = {name: None if path is None else user_path(path) for name, path in (("plot", plot), ("json", as_json))}
    check_outputs({**outputs, "save_costs": None if save is None else user_path(save)}, None)
    counts, numbers = _numbers("frames", frames, FRAMES), _numbers("workers", workers, WORKERS)
    carriers, memory_bytes = _links(links), _memory(memory_gb)
    if plot is not None:
        check_plot(plot)
    found = _costs(costs, save, tflops, model, device, dtype, backend, long_side)
    cases = study(
        found,
        num_inference_steps=steps,
        frames=counts,
        workers=numbers,
        links=carriers,
        memory_bytes=memory_bytes,
    )
    text = f"{heading(found, steps, carriers)}\n{table(cases)}\n"
    if plot is not None:
        draw(cases, found.name, plot)
    if as_json is not None:
        content = to_json(found, steps, carriers, cases)
        write_atomically(as_json, (json.dumps(content, indent=1) + "\n").encode())
    if validate:
        text += f"\n{compare(rehearse(found))}\n"
    if validate and costs is None and tflops is None:  # else the model they are of is not here
        simulated, real = real_edit(found, model, device=device, dtype=dtype, backend=backend)
        text += f"one real edit, one worker: simulated {simulated:.0f} ms, measured {real:.0f} ms\n"
    return text


def _costs(
    file: Path | None,
    save: Path | None,
    tflops: float | None,
    model: str | None,
    device: str,
    dtype: str,
    backend: str,
    long_side: int | None,
) -> StageCosts:
    """The costs from a file, an assumed rate, or a measurement; only what was measured here is saved."""
    if (file is not None) + (tflops is not None) + (save is not None) > 1:
        raise InputError("Stage costs are read from --costs, computed from --tflops or measured; choose one.")
    if file is not None:
        return read_costs(file)
    if tflops is not None:
        return computed_costs(tflops)
    measured, where = measure_costs(model, device=device, dtype=dtype, backend=backend, long_side=long_side)
    if save is not None:
        save_costs(measured, save, where)
    return measured


def _numbers(name: str, text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers from 1 up, separated by commas."""
    if text is None:
        return default
    if not re.fullmatch(r"0*[1-9]\d{0,6}(,0*[1-9]\d{0,6})*", text):
        raise InputError(
            "is no list of whole numbers from 1 up", name=name, value=text, remedy="write for example 1,2,4"
        )
    return tuple(sorted({int(part) for part in text.split(",")}))


def _memory(gigabytes: float | None) -> int | None:
    """Bytes of a worker's memory."""
    if gigabytes is None:
        return None
    if not 0 < gigabytes <= 1e6:
        raise InputError(
            "is not possible", name="memory_gb", value=gigabytes, remedy="it must be a number above 0 and at most 1e6"
        )
    return round(gigabytes * 1e9)


def _links(texts: Sequence[str]) -> tuple[Link, ...]:
    """Links written NAME=GB/s; none = the assumed ones."""
    links = []
    for text in texts:
        name, _, speed = text.partition("=")
        try:
            rate = float(speed)
        except ValueError:
            rate = None
        if rate is None or not name.strip():
            raise InputError("is not NAME=GB/s", name="link", value=text, remedy="write for example InfiniBand=40")
        links.append(Link(name.strip(), rate))
        if not 1e-6 <= rate <= 1e6:
            raise InputError("is no link", name="link", value=text, remedy="give from 0.000001 to 1000000 GB/s")
    if len({link.name for link in links}) < len(links):
        raise InputError("names one link twice", name="link", value=", ".join(texts), remedy="give each its own name")
    return tuple(links) or LINKS
