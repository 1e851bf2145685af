"""Launch configurations as data: which block sizes, warps and stages a kernel runs with, by op, shape and GPU.

Winners that `python -m fairy.kernels.tune` measured lie in `configs/<op>,device_name=<GPU>.json`:

    {"op": …, "device_name": …, "capability": [major, minor], "versions": {"torch": …, "triton": …},
     "exact": [names of dims that must be equal],
     "entries": [{"dims": {name: size}, "config": {"blocks": …, "num_warps": …, "num_stages": …}, "ms": …}]}

At run time the entry nearest in shape is taken and nothing is ever timed, so that every worker chooses alike. A GPU
without a table of its own takes that of another one of its compute capability (an H200 that of an H100).
"""

import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import torch

from fairy.kernels.errors import InputError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """How a Triton kernel is launched.

    Attributes:
        blocks: names and values of the kernel's tuned `tl.constexpr` parameters.
        num_warps: warps of 32 threads in a program.
        num_stages: how deep loads of a loop are pipelined.
    """

    blocks: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def __getitem__(self, name: str) -> int:
        """The value of one block parameter; KeyError where there is none of that name."""
        return dict(self.blocks)[name]

    def as_kwargs(self) -> dict[str, int]:
        """Everything a Triton launch takes beside its arguments."""
        return {**dict(self.blocks), "num_warps": self.num_warps, "num_stages": self.num_stages}

    def to_json(self) -> dict[str, Any]:
        """The form in which `from_json` reads it."""
        return {"blocks": dict(self.blocks), "num_warps": self.num_warps, "num_stages": self.num_stages}

    @classmethod
    def from_json(cls, value: object) -> "Config":
        """A config from its JSON form.

        Raises:
            InputError: a part is missing, superfluous, or no positive integer.
        """
        if not isinstance(value, dict) or set(value) != {"blocks", "num_warps", "num_stages"}:
            raise InputError(f"A config has blocks, num_warps and num_stages, not {value!r}.")
        numbers = {"num_warps": value["num_warps"], "num_stages": value["num_stages"]}
        blocks = _integers(value["blocks"], "blocks")
        return cls(tuple(blocks.items()), **_integers(numbers, "warps and stages"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured shape: the winner and its median time."""

    dims: tuple[tuple[str, int], ...]
    config: Config
    ms: float


@dataclass(frozen=True, slots=True)
class Table:
    """What was tuned for one op on one kind of GPU.

    Attributes:
        op, device_name: what the file's name says too.
        exact: names of the dims in which an entry must equal the shape at hand.
        entries: the winners.
        versions: of torch and Triton when it was measured.
        capability: the GPU's compute capability; None = not known.
    """

    op: str
    device_name: str
    exact: tuple[str, ...]
    entries: tuple[Entry, ...]
    versions: tuple[tuple[str, str], ...] = ()
    capability: tuple[int, int] | None = None

    def nearest(self, dims: Mapping[str, int]) -> Entry | None:
        """The entry equal in the exact dims and, in the others, nearest by Euclidean distance of logarithms."""
        candidates = [e for e in self.entries if all(dict(e.dims).get(n) == dims.get(n) for n in self.exact)]
        return min(candidates, key=lambda entry: self._distance(dict(entry.dims), dims), default=None)

    def _distance(self, tuned: Mapping[str, int], wanted: Mapping[str, int]) -> float:
        free = (set(tuned) | set(wanted)) - set(self.exact)
        return sum((math.log1p(tuned.get(n, 0)) - math.log1p(wanted.get(n, 0))) ** 2 for n in free)

    def to_json(self) -> str:
        """The text of its file."""
        entries = [{"dims": dict(e.dims), "config": e.config.to_json(), "ms": e.ms} for e in self.entries]
        content = {
            "op": self.op,
            "device_name": self.device_name,
            "capability": None if self.capability is None else list(self.capability),
            "versions": dict(self.versions),
            "exact": list(self.exact),
            "entries": entries,
        }
        return json.dumps(content, indent=1) + "\n"


def parse_table(text: str) -> Table:
    """A table from its file's text.

    Raises:
        InputError: not JSON, or not in the format this file's head shows.
    """
    try:
        content = json.loads(text)
        entries = tuple(
            Entry(tuple(_integers(e["dims"], "dims").items()), Config.from_json(e["config"]), float(e["ms"]))
            for e in content["entries"]
        )
        versions = tuple((str(k), str(v)) for k, v in content["versions"].items())
        exact = tuple(str(name) for name in content["exact"])
        known = content.get("capability")
        capability = None if known is None else (int(known[0]), int(known[1]))
        return Table(str(content["op"]), str(content["device_name"]), exact, entries, versions, capability)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"it is not a table of tuned configs ({type(error).__name__}: {error})") from error


def table_name(op: str, device_name: str) -> str:
    """The name of a table's file."""
    return f"{op},device_name={device_name.replace(' ', '_').replace('/', '_')}.json"


def pick_config(op: str, dims: Mapping[str, int], device: torch.device, default: Config) -> Config:
    """The config that was measured for the nearest shape on this kind of GPU, else the default.

    Args:
        op: name of the op, as `fairy.kernels.tune` knows it.
        dims: the sizes that the op's table is keyed by.
        device: where the kernel will run; on the CPU (Triton's interpreter) the default is right.
        default: a config that is safe everywhere.

    Where there is no usable table for the GPU, a warning, once per op, names the command that makes one; where none of
    its entries is of this kind of problem, the log does.
    """
    if device.type != "cuda":
        return default
    return _pick(op, tuple(sorted(dims.items())), _device_name(device), _capability(device), default)


@cache
def _pick(
    op: str, dims: tuple[tuple[str, int], ...], device_name: str, capability: tuple[int, int], default: Config
) -> Config:
    table = _shipped_table(op, device_name, capability)
    if table is None:
        return default
    entry = table.nearest(dict(dims))
    if entry is None:
        _warn_of_no_entry(op, device_name, tuple((name, dict(dims).get(name)) for name in table.exact))
        return default
    return entry.config


@cache
def _warn_of_no_entry(op: str, device_name: str, exact: tuple[tuple[str, int | None], ...]) -> None:
    """Said once for each kind of problem that was not measured."""
    kind = ", ".join(f"{name} = {size}" for name, size in exact)
    _LOG.warning("There are no tuned configs of %s with %s for %s%s", op, kind, device_name, _remedy(op))


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _folder() -> Traversable:
    return files("fairy.kernels") / "configs"


@cache
def _shipped_table(op: str, device_name: str, capability: tuple[int, int]) -> Table | None:
    """The table that came with the package; cached, so that what is wrong with it is said once."""
    own = table_name(op, device_name)
    related = sorted(path.name for path in _folder().iterdir() if path.name.startswith(f"{op},device_name="))
    for name in (own, *(name for name in related if name != own)):
        path = _folder() / name
        try:
            table = parse_table(path.read_text(encoding="utf-8"))
        except OSError:
            continue
        except InputError as error:
            if name == own:
                warnings.warn(f"{path} cannot be used: {error}{_remedy(op)}", stacklevel=2)
                return None
            continue
        if name == own or table.capability == capability:
            return table
    warnings.warn(f"There are no tuned configs of {op} for {device_name}{_remedy(op)}", stacklevel=2)
    return None


def _remedy(op: str) -> str:
    return f"; a safe default is used; `python -m fairy.kernels.tune --op {op}` measures better ones."


def _integers(values: object, what: str) -> dict[str, int]:
    if not isinstance(values, dict) or not all(type(v) is int and v >= 0 for v in values.values()):
        raise InputError(f"The {what} of a config must be named integers of at least 0, not {values!r}.")
    return {str(name): value for name, value in values.items()}
