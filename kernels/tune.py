"""Measure which launch configurations are fastest on this GPU: ``python -m fairy.kernels.tune [--op OP] [--out DIR]``.

Every tuned op's module offers three names:

    CANDIDATES(dims) -> Sequence[Config]                             what to try at these sizes
    TUNING_DIMS: Sequence[dict[str, int]]                            the sizes to tune
    tuning_call(dims, dtype, device) -> Callable[[Config], object]   one launch, on tensors of those sizes

`dims["element_bytes"]`, where there is one, chooses the type: 4 is float32, 2 (and none) float16.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from fairy.kernels.errors import FairyError, InputError, MachineError
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
    """Where an op's module is, and which of its dims never stand in for one another."""

    module: str
    exact: tuple[str, ...] = ("element_bytes",)


OPS: Mapping[str, TunedOp] = {
    "anchor_attention": TunedOp("fairy.kernels.anchor_attention_kernel", ("head_dim", "element_bytes")),
    "geglu": TunedOp("fairy.kernels.geglu"),
    "group_norm_silu": TunedOp("fairy.kernels.group_norm_silu"),
    "guidance_step": TunedOp("fairy.kernels.guidance_step"),
}


def tune(op: str, device: torch.device, timer: Timer, say: Callable[[str], None] = print) -> Table:
    """Time every candidate of every size of one op.

    Args:
        op: a name in `OPS`.
        device: a CUDA device.
        timer: the milliseconds that one call takes.
        say: told the winner of every size, and which candidates cannot run.

    Raises:
        MachineError: no candidate of a size can run.
    """
    module = cast(TunedModule, import_module(OPS[op].module))
    entries = [_winner(module, dims, device, timer, say) for dims in module.TUNING_DIMS]
    versions = tuple((name, version(name)) for name in ("torch", "triton"))
    return Table(op, torch.cuda.get_device_name(device), OPS[op].exact, tuple(entries), versions)


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
    parser.add_argument("--op", action="append", choices=sorted(OPS), help="which op; may be repeated; default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "configs", help="folder of the tables")
    options = parser.parse_args(arguments)
    try:
        if not torch.cuda.is_available():
            raise InputError("Tuning needs a CUDA GPU, and this machine has none that torch can use.")
        for op in options.op or sorted(OPS):
            print(write_table(tune(op, torch.device("cuda"), _median_ms), options.out))
    except FairyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


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


def agree(found: object, expected: object) -> bool:
    """Whether two results differ by rounding only; what is no tensor is not compared."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return True
    error = (found.double() - expected.double()).square().mean().sqrt()
    return bool(error <= 4 * torch.finfo(found.dtype).eps * expected.double().square().mean().sqrt())


def _median_ms(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=20, rep=80, return_mode="median"))


if __name__ == "__main__":
    sys.exit(main())
