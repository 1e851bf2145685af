"""What stands in the kernels' machine code, read without a GPU: registers, spills, memory, matrix instructions.

`python -m fairy.kernels.binaries` prints the table of all binaries; `--write FILE` makes it the baseline that a test
compares with, so that a change which costs registers, spills, or falls off the chip's matrix units is seen before any
GPU is at hand. Figures depend on the compiler, so a baseline is keyed by Triton's version.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from fairy.kernels.ahead_of_time import DTYPES, HEAD_DIMS, TARGETS, Binary, Variant, compile_variant
from fairy.kernels.errors import MachineError

# The instruction that feeds the chip's matrix units: per warp, per warp group (Hopper), tensor memory (Blackwell).
MATRIX_INSTRUCTION: Mapping[int, str] = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one binary.

    Attributes:
        registers: a thread's.
        spills: stores to and loads from local memory in the code; 0 is what we want.
        shared_bytes: dynamic shared memory of a launch.
        matrix: how many instructions of the chip's own matrix kind (`MATRIX_INSTRUCTION`).
        exp2: how many `MUFU.EX2`.
    """

    registers: int
    spills: int
    shared_bytes: int
    matrix: int
    exp2: int


def read_facts(binary: Binary) -> Facts:
    """Disassemble a binary with the tool that ships inside Triton.

    Raises:
        MachineError: the disassembler is missing or fails.
    """
    code, registers = disassemble(binary.cubin)
    matrix = MATRIX_INSTRUCTION[binary.variant.target]
    return Facts(
        registers=registers,
        spills=_count("STL", code) + _count("LDL", code),
        shared_bytes=binary.shared_bytes,
        matrix=_count(matrix, code),
        exp2=_count("MUFU.EX2", code),
    )


def shipped_variants() -> list[Variant]:
    """The binaries of the native library: every head dimension and 16-bit type on every target."""
    return [Variant(dim, dtype, target) for target in TARGETS for dim in HEAD_DIMS for dtype in DTYPES]


def table(variants: Iterable[Variant]) -> dict[str, Facts]:
    """Facts by name; compiles what was not compiled yet, about a second each."""
    return {variant.name: read_facts(compile_variant(variant)) for variant in variants}


def disassemble(cubin: bytes) -> tuple[str, int]:
    """SASS text, and the registers of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            command = [str(tool), "-sass", "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise MachineError(f"{tool} cannot read a kernel's binary ({error}); reinstall triton.") from error
    registers = re.search(r"REG:(\d+)", text)
    if registers is None:
        raise MachineError(f"{tool} does not tell the registers of a kernel; reinstall triton.")
    return text, int(registers[1])


def _count(instruction: str, code: str) -> int:
    return len(re.findall(rf"\b{re.escape(instruction)}\b", code))


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, prints the table and writes it where asked."""
    parser = argparse.ArgumentParser(prog="python -m fairy.kernels.binaries", description=__doc__)
    parser.add_argument("--write", type=Path, help="a JSON file for the table")
    options = parser.parse_args(arguments)
    facts = table(shipped_variants())
    print(f"{'binary':<44} registers spills shared_bytes matrix exp2")
    for name, row in facts.items():
        print(f"{name:<44} {row.registers:>9} {row.spills:>6} {row.shared_bytes:>12} {row.matrix:>6} {row.exp2:>4}")
    if options.write is not None:
        rows = {name: asdict(row) for name, row in facts.items()}
        content = {"triton": version("triton"), "torch": torch.__version__.split("+")[0], "binaries": rows}
        options.write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
