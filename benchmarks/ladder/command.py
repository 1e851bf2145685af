"""What `fairy bench ladder` does, behind the options that the command line parses."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from fairy.benchmarks.ladder.case import clock_of, make_case
from fairy.benchmarks.ladder.climb import CLIP_FRAMES, CLIP_STEPS, Climb, Keep, run_climb, table
from fairy.benchmarks.ladder.networks import BRANCHES, FULL, SMALL, Size, make_networks
from fairy.benchmarks.records import Record, write_records
from fairy.benchmarks.timing import machine
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.device import cpu_threads, resolve_device, resolve_dtype
from fairy.runtime.files import check_can_write, user_path, write_atomically


def run(
    *,
    small: bool,
    rungs: str | None,
    without: tuple[str, ...],
    compiled: bool | None,
    repeats: int,
    micro_batch: int | None,
    device: str,
    dtype: str,
    threads: int,
    out: Path | None,
    tell: Callable[[str], object],
) -> Iterator[str]:
    """Climb the ladder; gives the lines to print. Raises InputError for an impossible option.

    Args:
        rungs: keys of rungs with commas between them; None = all.
        compiled: whether torch.compile is used; None = on a GPU.
        out: a folder for `ladder-SIZE.json` and `.txt`, or a file ending in .json; None = nothing is written.
    """
    place = resolve_device(device)
    if not small and place.type == "cpu":
        raise InputError("The full-size ladder takes hours on a CPU; add --small, or run it on a GPU.")
    precision = resolve_dtype(dtype, place)
    keys = None if rungs is None else tuple(key.strip() for key in rungs.split(","))
    climb = Climb(keys, without, place.type == "cuda" if compiled is None else compiled, repeats)
    size = SMALL if small else FULL
    size = replace(size, frames=micro_batch or size.frames)
    where = None if out is None else _files(user_path(out), size)
    with cpu_threads(threads):
        networks = make_networks(size, place, precision)
        case = make_case(size, networks, place, precision)
        records = run_climb(case, climb, tell, _keeping(where[0]) if where else lambda records: None)
        text = f"{_heading(size, place, precision)}\n{table(records)}"
    yield text
    if where is not None:
        yield from write_records(where[0], records)
        write_atomically(where[1], (text + "\n").encode())
        yield f"{where[0]}: for fairy bench gate"


def _keeping(path: Path) -> Keep:
    """Writes the records so far; those that are refused, such as of a hot GPU, are so again at the end."""

    def keep(records: list[Record]) -> None:
        with suppress(MachineError):
            write_records(path, records)

    return keep


def _files(out: Path, size: Size) -> tuple[Path, Path]:
    """Where records and table go."""
    if out.suffix == ".json":
        check_can_write(out)
        return out, out.with_suffix(".txt")
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {out} cannot be made ({error.strerror}); name another one.") from error
    return out / f"ladder-{size.name}.json", out / f"ladder-{size.name}.txt"


def _heading(size: Size, device: torch.device, dtype: torch.dtype) -> str:
    found = machine(device)
    place = found.get("gpu") or f"{found['cpu']}, {found['threads']} thread{'s' * (found['threads'] > 1)}"
    return (
        f"{place}, {str(dtype).removeprefix('torch.')}, torch {found['torch']}; {size.name} networks with random "
        f"weights, {size.width}×{size.height}\n"
        f"s: {CLIP_FRAMES} frames at {CLIP_STEPS} steps, {BRANCHES} branches, {size.anchors} anchors (a and b have "
        f"none), micro-batches of {size.frames}; computed from measured parts, video files apart\n"
        f"clock: {clock_of(device)}; difference: of latents after two steps to eager in float32, largest, relative to "
        "the largest latent"
    )
