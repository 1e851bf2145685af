"""Measure which launch configurations are fastest on this GPU: ``python -m fairy.kernels.tune [--op OP] [--out DIR]``.

Every tuned op's module offers three names:

    CANDIDATES(dims) -> Sequence[Config]                             what to try at these sizes
    TUNING_DIMS: Sequence[dict[str, int]]                            the sizes to tune
    tuning_call(dims, dtype, device) -> Callable[[Config], object]   one launch, on tensors of those sizes

`dims["element_bytes"]`, where there is one, chooses the type: 4 is float32, 2 (and none) float16.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

import torch

from fairy.kernels.errors import FairyError, InputError, MachineError
from fairy.kernels.rounding import agree
from fairy.kernels.tuning import Config, Entry, Table, table_name

Timer = Callable[[Callable[[], object]], float]


class TunedModule(Protocol):
    """What tuning asks of an op's module."""

    TUNING_DIMS: Sequence[dict[str, int]]

    def CANDIDATES(self, dims: Mapping[str, int]) -> Sequence[Config]:
        """What to try at these sizes."""

    def tuning_call(
        self, dims: Mapping[str, int], dtype: torch.dtype, device: torch.device
    ) -> Callable[[Config], object]:
        """One launch on tensors of those sizes, given a config."""


@dataclass(frozen=True, slots=True)
class TunedOp:
    """Where an op's module is, which of its dims never stand in for one another, and whether it must be asked for.

    `by_name`: only `--op` tunes it, since not every GPU has it and no edit uses it unless told to.
    """

    module: str
    exact: tuple[str, ...] = ("element_bytes",)
    by_name: bool = False


_BATCH = ("batch", "samples", "rows", "frames")

OPS: Mapping[str, TunedOp] = {
    "anchor_attention": TunedOp("fairy.kernels.anchor_attention_kernel", ("head_dim", "element_bytes")),
    "geglu": TunedOp("fairy.kernels.geglu"),
    "temporal_attention": TunedOp("fairy.kernels.temporal_attention"),
    "group_norm_silu": TunedOp("fairy.kernels.group_norm_silu"),
    "guidance_step": TunedOp("fairy.kernels.guidance_step"),
    "fp8_linear": TunedOp("fairy.kernels.fp8_linear", by_name=True),
}


def tune(
    op: str,
    device: torch.device,
    timer: Timer,
    say: Callable[[str], None] = print,
    *,
    sizes: Sequence[Mapping[str, int]] | None = None,
) -> Iterator[Table]:
    """Time every candidate of every size of one op.

    Args:
        op: a name in `OPS`.
        device: a CUDA device.
        timer: the milliseconds that one call takes.
        say: told the winner of every size, and which candidates cannot run.
        sizes: None = all of the op's `TUNING_DIMS`.

    Yields:
        the table so far, after every size: what was measured is not lost where the rest is not.

    Raises:
        MachineError: no candidate of a size can run.
    """
    module = cast(TunedModule, import_module(OPS[op].module))
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    versions = (("torch", torch.__version__), ("triton", version("triton")))
    entries: list[Entry] = []
    for dims in module.TUNING_DIMS if sizes is None else sizes:
        entries.append(_winner(module, dict(dims), device, timer, say))
        yield Table(op, name, OPS[op].exact, tuple(entries), versions, capability)


def used_sizes(op: str) -> list[Mapping[str, int]]:
    """Sizes of an edit of 512×384 in micro-batches of three frames: of those that differ in the batch, the smallest."""
    module = cast(TunedModule, import_module(OPS[op].module))
    smallest: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}
    for dims in module.TUNING_DIMS:
        if dims.get("heads", 8) != 8:  # another network's
            continue
        rest = tuple((name, size) for name, size in dims.items() if name not in _BATCH)
        smallest.setdefault(rest, dims)
    return list(smallest.values())


def warm(op: str, device: torch.device, share: int, shares: int) -> None:
    """Run one share of the candidates once, which leaves their code in Triton's cache; what cannot run is passed by."""
    module = cast(TunedModule, import_module(OPS[op].module))
    pairs = [(dims, config) for dims in used_sizes(op) for config in module.CANDIDATES(dims)]
    for dims, config in pairs[share::shares]:
        dtype = torch.float32 if dims.get("element_bytes") == 4 else torch.float16
        with suppress(Exception):
            module.tuning_call(dims, dtype, device)(config)


def write_table(table: Table, folder: Path) -> Path:
    """Write a table's file so that it is there whole or not at all; returns where it is.

    Raises:
        MachineError: the folder cannot be written to.
    """
    path = folder / table_name(table.op, table.device_name)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial_path.open("w", encoding="utf-8") as file:
            file.write(table.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_path, path)
    except OSError as error:
        with suppress(OSError):
            partial_path.unlink()
        raise MachineError(f"{path} cannot be written ({error}); name a folder of your own with --out.") from error
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fairy.kernels.tune", description="Tune kernels on this GPU.")
    parser.add_argument(
        "--op",
        action="append",
        choices=sorted(OPS),
        help="which op; may be repeated; default: all that are on by default",
    )
    parser.add_argument("--used", action="store_true", help="only the sizes of an edit of 512×384, three anchors")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "configs", help="folder of the tables")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another folder of the tables")
    parser.add_argument("--list", action="store_true", help="name the sizes and count the candidates; times nothing")
    parser.add_argument("--processes", type=int, default=1, help="so many compile before one times; with --used")
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.processes > 1 and not options.used:
            raise InputError("--processes compiles the sizes of --used; add that, or leave it out.")
        if options.list:
            for op in options.op or _usual():
                print(op, *_listed(op, used=options.used), sep="\n  ")
            return 0
        if not torch.cuda.is_available():
            raise InputError("Tuning needs a CUDA GPU, and this machine has none that torch can use.")
        ops, device = options.op or _usual(), torch.device("cuda")
        if options.share:
            for op in ops:
                warm(op, device, *options.share)
            return 0
        if options.processes > 1:
            _warm_in_processes(ops, options.processes)
        for op in ops:
            for table in tune(op, device, _median_ms, sizes=used_sizes(op) if options.used else None):
                for folder in (*options.also, options.out):
                    path = write_table(table, folder)
            print(path)
    except FairyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _usual() -> list[str]:
    """The ops that are tuned where none is named."""
    return sorted(name for name, op in OPS.items() if not op.by_name)


def _listed(op: str, *, used: bool) -> list[str]:
    module = cast(TunedModule, import_module(OPS[op].module))
    sizes = used_sizes(op) if used else module.TUNING_DIMS
    return [f"{dict(dims)}: {len(module.CANDIDATES(dims))} candidates" for dims in sizes]


def _warm_in_processes(ops: Sequence[str], processes: int) -> None:
    command = (sys.executable, "-P", "-m", "fairy.kernels.tune", *(word for op in ops for word in ("--op", op)))
    started = [subprocess.Popen([*command, "--share", str(i), str(processes)]) for i in range(processes)]
    for process in started:
        process.wait()


def _winner(
    module: TunedModule, dims: Mapping[str, int], device: torch.device, timer: Timer, say: Callable[[str], None]
) -> Entry:
    dtype = torch.float32 if dims.get("element_bytes") == 4 else torch.float16
    launch = module.tuning_call(dims, dtype, device)
    candidates = module.CANDIDATES(dims)
    timed: list[tuple[float, Config]] = []
    expected: object = None
    for config in candidates:
        try:
            result = launch(config)
            expected = result if expected is None else expected
            if agree(result, expected):
                timed.append((timer(partial(launch, config)), config))
            else:
                say(f"{dict(dims)}: {config.as_kwargs()} computes something else than the first candidate; left out")
        except Exception as error:  # too much shared memory, a compiler's limit: a candidate that is none here
            say(f"{dict(dims)}: {config.as_kwargs()} cannot run: {type(error).__name__}: {error}".splitlines()[0])
    if not timed:
        raise MachineError(f"No candidate can run at {dict(dims)}; the lines above say why.")
    ms, config = min(timed, key=lambda pair: pair[0])
    say(f"{dict(dims)}: {ms:.4f} ms with {config.as_kwargs()}")
    return Entry(tuple(dims.items()), config, round(ms, 6))


def _median_ms(call: Callable[[], object]) -> float:
    """Of a recording: launching from Python takes longer than small kernels run."""
    from triton.testing import do_bench

    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording, stream=torch.cuda.Stream()):
        call()
    return float(do_bench(recording.replay, warmup=10, rep=40, return_mode="median"))


if __name__ == "__main__":
    sys.exit(main())
