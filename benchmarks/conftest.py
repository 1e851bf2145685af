"""What the benchmarks share: `pytest benchmarks` runs them, `--full` the whole grid, `--figures FILE` keeps records.

They run under pytest-benchmark, which times our op as its caller sees it, launches and waiting included (and stores
that with `--benchmark-json`, compares it with `--benchmark-compare`). What the device itself took, for our op and its
alternatives side by side, is in the table, in the records and in `extra_info`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cells import Cell, Row, RunCell, measure, table
from fairy.benchmarks.records import Quality, Record, make_record, to_json
from fairy.benchmarks.timing import machine
from fairy.runtime.files import write_atomically

_RECORDS = pytest.StashKey[list[Record]]()
_BUDGET_MS = 200

Keep = Callable[[Sequence[Record]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full` and `--figures`."""
    parser.addoption("--full", action="store_true", help="all cells, and what the compiler makes of the plain form")
    parser.addoption("--figures", type=Path, default=None, help="write the records as JSON to this file")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Files named bench_*.py are collected with their folder, not only by name."""
    if file_path.name.startswith("bench_") and file_path.suffix == ".py" and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Records of the whole run."""
    config.stash[_RECORDS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `case` runs once for each that its file's `cases(on_gpu, full)` names."""
    if "case" in metafunc.fixturenames:
        found = metafunc.module.cases(_device().type == "cuda", bool(metafunc.config.getoption("--full")))
        metafunc.parametrize("case", found, ids=[_name(case) for case in found])


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one."""
    return _device()


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest, device: torch.device) -> bool:
    """Whether the whole grid is asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(autouse=True)
def _same_inputs() -> None:
    """Inputs are the same in every run, and so are errors."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def show(request: pytest.FixtureRequest, device: torch.device) -> Callable[[str], None]:
    """Print whatever pytest captures; the machine first."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def tell(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)

    tell(f"\n{machine(device)}")
    return tell


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest) -> Keep:
    """Keep records, and write what there is so far: a run that is stopped keeps its finished cells."""
    kept, path = request.config.stash[_RECORDS], request.config.getoption("--figures")

    def add(records: Sequence[Record]) -> None:
        kept.extend(records)
        if path is not None:
            write_atomically(path, (json.dumps(to_json(kept), indent=1) + "\n").encode())

    return add


@pytest.fixture(scope="module")
def _rows(show: Callable[[str], None]) -> Iterator[list[Row]]:
    """The rows of one file, printed as one table when its last cell is done."""
    rows: list[Row] = []
    yield rows
    if rows:
        show(f"\n{table(rows)}")


@pytest.fixture
def run_cell(request: pytest.FixtureRequest, device: torch.device, keep: Keep, _rows: list[Row]) -> RunCell:
    """Time all ways of a cell on the device, then ours under pytest-benchmark; print and keep what was found."""
    benchmark = request.getfixturevalue("benchmark")
    name = Path(request.path).stem.removeprefix("bench_")

    def run(cell: Cell) -> list[Row]:
        rows = measure(cell, device, budget_ms=_BUDGET_MS if device.type == "cuda" else 2 * _BUDGET_MS)
        ours = next(iter(cell.ways.values()))
        rounds = min(50, max(5, int(_BUDGET_MS / 2 / rows[0].ms)))
        benchmark.pedantic(_finished, (ours, device), rounds=rounds, warmup_rounds=1)
        records = [_record(name, cell, row, device) for row in rows]
        benchmark.extra_info |= _extra(records[0], rows)
        keep(records)
        _rows.extend(rows)
        return rows

    return run


def _name(case: Any) -> str:
    return " × ".join(map(str, case)) if isinstance(case, tuple) else str(case)


def _finished(call: Callable[[], object], device: torch.device) -> None:
    """One call, to the end of what it launched."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _record(benchmark: str, cell: Cell, row: Row, device: torch.device) -> Record:
    recipe = {"benchmark": benchmark, "cell": cell.name, "way": row.way, "dtype": str(cell.dtype), "seed": 0}
    # Another order of summing moves the largest of many rounding errors by about a half.
    error = Quality(row.error, "lower", 0.5 * row.error + torch.finfo(cell.dtype).eps)
    kept = ("gb_per_s", "tflop_per_s", "of_bound", "share_of_bound", "bound_by", "slower")
    figures = {name: getattr(row, name) for name in kept}
    name = f"{benchmark}, {cell.name}, {row.way}"
    return make_record(name, recipe, device, timing=row.timing, quality={"error": error}, figures=figures)


def _extra(ours: Record, rows: Sequence[Row]) -> dict[str, Any]:
    """What pytest-benchmark keeps beside its own clock: the time on the device of every way, and the error of ours."""
    return {
        "recipe_sha256": ours.recipe_sha256,
        "hardware": ours.hardware,
        "on_the_device": {row.way: asdict(row.timing) for row in rows},
        "error": rows[0].error,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
