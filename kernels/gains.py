"""Which of our ops are faster than what torch has for the same, by compute capability: measured, and read as data.

A table `configs/gains-sm_90.json` comes from the ops' benchmarks (`python -m fairy.benchmarks.gpu.results`):

    {"capability": [9, 0], "device_name": …, "versions": {"torch": …, "triton": …},
     "ops": {op: [{"case": …, "ours_ms": …, "plain_ms": …}]}, "micro_batch": {frames: milliseconds a frame}}

An op counts as faster where the geometric mean of its cases' ratios says so. Without a table none does: a kernel that
nobody measured on such a GPU is not what a default should be.
"""

import json
import logging
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fairy.kernels.errors import InputError

OPS = ("group_norm_silu", "geglu", "guidance_step", "upsample_conv")
"""Ops whose work torch can do too; anchor attention is not among them, for joining keys is no alternative."""

MARGIN = 1.02  # faster by less than this is noise
NEAR = 1.05  # a micro-batch is as good as the best one where a frame takes at most this much longer
_LOG = logging.getLogger(__name__)


def gains_name(capability: tuple[int, int]) -> str:
    """The name of a table's file."""
    return f"gains-sm_{capability[0]}{capability[1]}.json"


def faster_ops(capability: tuple[int, int]) -> frozenset[str]:
    """Ops that were measured to be faster on GPUs of this compute capability."""
    ops = _table(capability).get("ops", {})
    return frozenset(op for op in OPS if op in ops and gain(ops[op]) >= MARGIN)


def best_micro_batch(capability: tuple[int, int]) -> int | None:
    """The smallest micro-batch that is within 5 % of the fastest one; None where none was measured."""
    measured = {int(frames): float(ms) for frames, ms in _table(capability).get("micro_batch", {}).items()}
    if not measured:
        return None
    return min(frames for frames, ms in measured.items() if ms <= NEAR * min(measured.values()))


def gain(cases: list[Mapping[str, Any]]) -> float:
    """How many times faster ours is: the geometric mean over the cases."""
    return math.exp(sum(math.log(case["plain_ms"] / case["ours_ms"]) for case in cases) / len(cases))


def parse_gains(text: str) -> dict[str, Any]:
    """A table from its file's text. Raises InputError where it is not in the format this file's head shows."""
    try:
        table: dict[str, Any] = json.loads(text)
        for op, cases in table["ops"].items():
            if not cases or not all(case["ours_ms"] > 0 and case["plain_ms"] > 0 for case in cases):
                raise ValueError(f"{op} has no cases, or times that are not positive")
        if not all(int(frames) > 0 and ms > 0 for frames, ms in table["micro_batch"].items()):
            raise ValueError("micro_batch is not frames to milliseconds")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"it is not a table of gains ({type(error).__name__}: {error})") from error
    return table


@cache
def _table(capability: tuple[int, int]) -> dict[str, Any]:
    """The table that came with the package; empty where there is none, or none that can be used."""
    path = files("fairy.kernels") / "configs" / gains_name(capability)
    try:
        return parse_gains(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except InputError as error:
        _LOG.warning("%s cannot be used: %s", path, error)
        return {}
