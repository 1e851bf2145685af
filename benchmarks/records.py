"""What a benchmark leaves behind: records, which `fairy bench gate` compares.

A record is one case of one run, complete by itself: what was run (the recipe and its hash), on what (processor or GPU,
versions, clocks, throttling), how long it took, what was counted, and the quality of the very results that were timed.
A case whose GPU slowed its clocks has no record: the file says in a sentence that it was refused.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from fairy.benchmarks.nvml import gpu_state
from fairy.benchmarks.timing import Timing, machine
from fairy.engines.store.key import canonical_digest
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.files import write_atomically

FORMAT = "fairy-records-1"
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Quality:
    """One figure of quality.

    Attributes:
        value: in the figure's own unit.
        better: which direction is better.
        tolerance: how much worse another run of the same may be, in the same unit; 0 where it is deterministic.
    """

    value: float
    better: Better
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise InputError(
                "is not known", name="better", value=self.better, remedy="a figure of quality is better lower or higher"
            )
        if not math.isfinite(self.value):
            raise InputError(f"A figure of quality is {self.value!r}: what was measured did not work.")
        if not 0 <= self.tolerance < math.inf:
            raise InputError(
                "is not possible", name="tolerance", value=self.tolerance, remedy="give a number from 0 up"
            )


@dataclass(frozen=True, slots=True)
class Record:
    """One case of one run.

    Attributes:
        name: of the case, unique in a file.
        recipe: what was run, in plain values: sizes, types, parameters, model; nothing of the code or the machine.
        machine: what it ran on, with versions; see `timing.machine`.
        conditions: clocks and temperature of the GPU, or the load average of the CPU, when it ended.
        timing: how long one call took, or None where only counts were taken.
        counts: exact numbers of one call (synchronisations, launches, …); fewer is better.
        quality: of the results of the same run, by name.
        figures: what else was measured, for the reader.
    """

    name: str
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    conditions: Mapping[str, Any]
    timing: Timing | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    quality: Mapping[str, Quality] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe_sha256(self) -> str:
        """SHA-256 of the recipe's JSON with sorted names, 64 hexadecimal digits."""
        return canonical_digest(self.recipe)

    @property
    def hardware(self) -> str:
        """The GPU's name; on a CPU its name and the number of threads."""
        return str(self.machine.get("gpu") or f"{self.machine.get('cpu')}, {self.machine.get('threads')} threads")

    @property
    def refusal(self) -> str | None:
        """Why these figures must not be kept, in a sentence; None where they may."""
        if self.timing is not None and self.timing.throttled:
            reasons = ", ".join(self.timing.throttled)
            return (
                f"{self.name} was refused: the clocks were slowed ({reasons}); let the machine cool and run it again."
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self) | {"recipe_sha256": self.recipe_sha256}


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The records of one run by name, and the sentences of those that were refused."""

    records: Mapping[str, Record]
    refused: Mapping[str, str]


def make_record(name: str, recipe: Mapping[str, Any], device: torch.device, **parts: Any) -> Record:
    """A record of what has just run on `device`; `parts` are further attributes of `Record`."""
    return Record(name, recipe, machine(device), conditions(device), **parts)


def conditions(device: torch.device) -> dict[str, Any]:
    """What the device is like at this moment: the GPU's clocks and temperature, and the machine's load average."""
    found: dict[str, Any] = {"load_average": [round(load, 2) for load in os.getloadavg()]}
    return found | gpu_state(device) if device.type == "cuda" else found


def to_json(records: Iterable[Record]) -> dict[str, Any]:
    """The content of a record file.

    Raises:
        InputError: two records have one name, or one has a time without a figure of quality.
    """
    kept = list(records)
    for i, record in enumerate(kept):
        if record.name in {other.name for other in kept[:i]}:
            raise InputError(f"Two records are named {record.name!r}; give every case a name of its own.")
        if record.timing is not None and not record.quality:
            raise InputError(f"{record.name} has a time but no quality; measure the quality of the same results.")
    return {
        "format": FORMAT,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "records": [record.to_json() for record in kept if record.refusal is None],
        "refused": [{"name": record.name, "reason": record.refusal} for record in kept if record.refusal],
    }


def write_records(path: Path, records: Iterable[Record]) -> tuple[str, ...]:
    """Write a record file, whole or not at all.

    Returns:
        The sentences of those that were refused.

    Raises:
        InputError: see `to_json`; MachineError: all were refused, and nothing was written.
    """
    content = to_json(records)
    reasons = tuple(refused["reason"] for refused in content["refused"])
    if reasons and not content["records"]:
        raise MachineError(reasons[0])
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return reasons


def read_records(path: Path) -> RecordFile:
    """The records in a file that a benchmark wrote.

    Raises:
        InputError: it cannot be read, is none, or a record's recipe is not the one its hash says.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file of records.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON; name a file of records that a benchmark wrote.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} holds no records of the form {FORMAT}; write it anew with `fairy bench --out`.")
    try:
        records = [_from_json(entry) for entry in content["records"]]
        refused = {str(entry["name"]): str(entry["reason"]) for entry in content.get("refused", ())}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} holds a record that is not whole ({error!s}); run its benchmark again.") from error
    by_name = {record.name: record for record in records}
    for record in records:
        if by_name[record.name] is not record:
            raise InputError(f"{path} holds two records named {record.name!r}; run its benchmark again.")
        if record.refusal is not None:
            raise InputError(f"{path} cannot be used: {record.refusal}")
    return RecordFile(by_name, refused)


def _from_json(entry: dict[str, Any]) -> Record:
    record = Record(
        name=str(entry["name"]),
        recipe=dict(entry["recipe"]),
        machine=dict(entry["machine"]),
        conditions=dict(entry["conditions"]),
        timing=None if entry["timing"] is None else _timing(entry["timing"]),
        counts={str(name): _whole(count) for name, count in entry["counts"].items()},
        quality={str(name): _quality(figure) for name, figure in entry["quality"].items()},
        figures=dict(entry["figures"]),
    )
    if record.recipe_sha256 != entry["recipe_sha256"]:
        raise ValueError(f"the recipe of {record.name} is not the one of its hash")
    return record


def _timing(entry: dict[str, Any]) -> Timing:
    timing = Timing(**entry | {"throttled": tuple(entry["throttled"])})
    if not all(0 < ms < math.inf for ms in (timing.median_ms, timing.p20_ms, timing.p80_ms)) or timing.runs < 1:
        raise ValueError(f"a time must be above 0 ms, and is {timing.median_ms!r}")
    return timing


def _quality(entry: dict[str, Any]) -> Quality:
    return Quality(float(entry["value"]), entry["better"], float(entry["tolerance"]))


def _whole(count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"a count must be a whole number, and is {count!r}")
    return count
