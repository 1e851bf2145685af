"""Compiles the attention kernel for every wanted GPU and writes what `libfairy_kernels.so` is built from.

CMake runs it as a program (`python -P kernels/embed_binaries.py --help`); no GPU and no installed fairy is needed, but
PyTorch and Triton. Three files come out, the same bytes for the same sources and compiler, wherever the checkout lies:

    binaries.bin   the machine code of all kernels, one after another, each on 64 bytes
    rows.inc       one initialiser of `fairy::Binary` for each (kernels/native/src/binaries.h)
    generated.h    the compiler's version, and the kernel's parameters in order for the launcher
"""

import argparse
import importlib.machinery
import os
import re
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairy.kernels.ahead_of_time import Binary

ROOT = Path(__file__).resolve().parent.parent
ALIGNMENT_BYTES = 64
HIDDEN_PARAMETERS = 2  # Triton's trailing scratch pointers, see `Binary.params`
C_TYPES = {"i32": "int32_t", "i64": "int64_t", "fp32": "float"}
C_DTYPES = {"fp16": "FAIRY_FLOAT16", "bf16": "FAIRY_BFLOAT16"}


@dataclass(frozen=True, slots=True)
class BinaryChoice:
    """Which kernels a library holds: GPUs (90 = compute capability 9.0), head dimensions, types ("fp16", "bf16")."""

    targets: tuple[int, ...]
    head_dims: tuple[int, ...]
    dtypes: tuple[str, ...]


def compile_all(choice: BinaryChoice, jobs: int = 1) -> list["Binary"]:
    """Compile every combination, about a second each, `jobs` at a time.

    Raises:
        InputError: nothing is asked for, or a target, head dimension or type that the kernel is not offered for.
    """
    from fairy.kernels.ahead_of_time import DTYPES, Variant, compile_variant
    from fairy.kernels.errors import InputError

    types_by_name = {name: dtype for dtype, name in DTYPES.items()}
    for name in choice.dtypes:
        if name not in types_by_name:
            raise InputError(
                "is not offered", name="dtype", value=name, remedy=f"choose one of {', '.join(types_by_name)}"
            )
    kinds = [(dim, types_by_name[name]) for dim in choice.head_dims for name in choice.dtypes]
    variants = [Variant(dim, dtype, target) for target in choice.targets for dim, dtype in kinds]
    if not variants:
        raise InputError("No kernel is asked for; give at least one target, head dimension and type.")
    if jobs == 1:
        return [compile_variant(variant) for variant in variants]
    # Forked, so that PyTorch is imported once; nothing has started a thread yet.
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        return list(pool.map(compile_variant, variants))


def row(binary: "Binary", offset: int) -> str:
    """The C++ initialiser of one `fairy::Binary` whose machine code begins at byte `offset` of binaries.bin."""
    from fairy.kernels.ahead_of_time import DTYPES

    variant = binary.variant
    major, minor = divmod(variant.target, 10)
    fields = (
        f'"{variant.name}"',
        f'"{binary.symbol}"',
        C_DTYPES[DTYPES[variant.dtype]],
        variant.head_dim,
        major,
        minor,
        "true" if only_exact(binary.ptx) else "false",
        binary.blocks.m,
        binary.threads,
        binary.shared_bytes,
        offset,
        len(binary.cubin),
    )
    return "{" + ", ".join(map(str, fields)) + "},"


def only_exact(ptx: str) -> bool:
    """Whether code for this PTX target runs on its own compute capability alone: sm_90a does, sm_80 does not.

    Source: CUDA's programming guide, "Architecture-Specific Features". Family-specific code (sm_100f) runs on a little
    more, which is not made use of.
    """
    found = re.search(r"^\.target sm_\d+([af]?)", ptx, re.MULTILINE)
    if found is None:
        raise RuntimeError("The compiler's PTX names no target, so where its machine code runs is unknown.")
    return bool(found[1])


def parameters(binary: "Binary") -> str:
    """The kernel's parameters as a C macro: X(type, field) in order, field `k[0]` for the parameter k0.

    Raises:
        RuntimeError: the machine code has other parameters than the launcher will pass.
    """
    entry = re.search(r"\.entry .*?\)", binary.ptx, re.DOTALL)
    count = entry[0].count(".param ") if entry else 0
    if count != len(binary.params) + HIDDEN_PARAMETERS:
        raise RuntimeError(
            f"{binary.variant.name} takes {count} parameters, not {len(binary.params)} and {HIDDEN_PARAMETERS} hidden."
        )
    slots = [(C_TYPES.get(kind, "const void*"), re.sub(r"(\d)$", r"[\1]", name)) for name, kind in binary.params]
    return "#define FAIRY_PARAMETERS(X) \\\n" + " \\\n".join(f"  X({kind}, {field})" for kind, field in slots) + "\n"


def write(out: Path, binaries: Sequence["Binary"], compiler: str) -> None:
    """Write the three files into `out`.

    Raises:
        RuntimeError: two kernels have different parameters, which one launcher cannot serve.
    """
    slots = {re.sub(r"\*\w+", "*", str(binary.params)) for binary in binaries}
    if len(slots) != 1:
        raise RuntimeError("The kernels' parameters differ among head dimensions, types or targets.")
    code, rows = bytearray(), []
    for binary in binaries:
        code += bytes(-len(code) % ALIGNMENT_BYTES)
        rows.append(row(binary, len(code)))
        code += binary.cubin
    header = f'#pragma once\n\n#define FAIRY_COMPILER "{compiler}"\n\n{parameters(binaries[0])}'
    out.mkdir(parents=True, exist_ok=True)
    (out / "binaries.bin").write_bytes(code)
    (out / "rows.inc").write_text("\n".join(rows) + "\n")
    (out / "generated.h").write_text(header)


def dependencies() -> list[Path]:
    """The checkout's files and the Triton that this process has loaded: when one changes, so may the binaries."""
    import triton

    files = {getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if _is_ours(name)}
    return sorted(Path(file) for file in (*files, __file__, triton.__file__) if file)


def _is_ours(module: str) -> bool:
    return module.startswith("fairy.")


def _use_checkout() -> None:
    """Make this checkout importable as `fairy`, whatever else is installed under that name."""
    package = types.ModuleType("fairy")
    package.__path__ = [str(ROOT)]
    sys.modules["fairy"] = package
    sys.meta_path.insert(0, importlib.machinery.PathFinder)  # before the finder of an editable install


def _set_environment(cache: Path) -> None:
    """What Triton reads when it is imported: compile, into a cache of the build's own, without this machine's paths."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"


def _escaped(path: Path) -> str:
    return str(path).replace(" ", "\\ ")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _names(text))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in re.split(r"[;, ]+", text) if part))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compile the kernels that libfairy_kernels.so holds.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--depfile", type=Path, help="write what the files depend on, as a make rule")
    parser.add_argument("--targets", type=_numbers, required=True, help='e.g. "80;90"')
    parser.add_argument("--head-dims", type=_numbers, required=True, help='e.g. "40;64"')
    parser.add_argument("--dtypes", type=_names, required=True, help='e.g. "fp16;bf16"')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 2 for a choice that cannot be served."""
    options = _parser().parse_args(arguments)
    _use_checkout()
    _set_environment(options.out / "triton-cache")
    import triton

    from fairy.kernels.errors import InputError

    choice = BinaryChoice(options.targets, options.head_dims, options.dtypes)
    try:
        binaries = compile_all(choice, len(os.sched_getaffinity(0)))
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write(options.out, binaries, f"Triton {triton.__version__}")
    if options.depfile:
        rule = " ".join([_escaped(options.out / "binaries.bin") + ":", *map(_escaped, dependencies())])
        options.depfile.write_text(rule + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
