"""A Triton kernel's PTX made to fit a launcher that passes nothing but the kernel's own parameters.

Triton appends two pointers to every kernel's parameters, for scratch memory that most kernels do not use. A launcher
that does not know of them would let CUDA read past the end of its argument array.
"""

import re

from fairy.kernels.errors import MachineError

_ENTRY = re.compile(r"(?P<head>\.visible \.entry (?P<symbol>[\w$]+)\()(?P<params>.*?)(?P<tail>\n?\))", re.DOTALL)


def strip_parameters(ptx: str, keep: int) -> str:
    """The same PTX whose entry takes only its first `keep` parameters.

    Raises:
        MachineError: the text has not exactly one entry, has fewer parameters, or uses one that would go.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise MachineError(
            f"The compiled kernel has {len(entries)} entries instead of one; use the Triton we test with."
        )
    entry = entries[0]
    params = [line.strip().rstrip(",") for line in entry["params"].splitlines() if line.strip()]
    if len(params) < keep:
        raise MachineError(f"{entry['symbol']} takes {len(params)} parameters instead of {keep} or more.")
    for param in params[keep:]:
        name = re.findall(r"[\w$]+", param)[-1]
        if len(re.findall(rf"{re.escape(name)}\b", ptx)) != 1:
            raise MachineError(f"{entry['symbol']} uses its parameter {name}, which nobody passes.")
    kept = ",\n".join(f"\t{param}" for param in params[:keep])
    return f"{ptx[: entry.start('params')]}\n{kept}{ptx[entry.end('params') :]}"


def without_line_info(ptx: str) -> str:
    """The same PTX without source lines: they hold the folder of our sources, which must not decide about bytes."""
    body = re.split(r"^\s*\.section\s+\.debug", ptx, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"^\s*\.(loc|file)\b.*\n", "", body, flags=re.MULTILINE)
