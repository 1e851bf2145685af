"""What the benchmarks share: `pytest benchmarks` runs them, `--full` the whole grid; `--figures FILE` keeps JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.cells import Row, table
from benchmarks.timing import machine
from fairy.runtime.files import write_atomically

_ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full` and `--figures`."""
    parser.addoption("--full", action="store_true", help="all cells, and what the compiler makes of the plain form")
    parser.addoption("--figures", type=Path, default=None, help="write machine and rows as JSON to this file")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Files named bench_*.py are collected with their folder, not only by name."""
    if file_path.name.startswith("bench_") and file_path.suffix == ".py" and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Rows of the whole run."""
    config.stash[_ROWS] = []


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one."""
    return _device()


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest, device: torch.device) -> bool:
    """Whether the whole grid is asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def report(request: pytest.FixtureRequest, device: torch.device) -> Callable[[Sequence[Row]], None]:
    """Print rows as a table, whatever pytest captures, and keep them."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def keep(rows: Sequence[Row]) -> None:
        head = "" if request.config.stash[_ROWS] else f"\n{machine(device)}"
        request.config.stash[_ROWS].extend(rows)
        _keep_figures(request.config)
        with capture.global_and_fixture_disabled():
            print(f"{head}\n{table(rows)}")

    return keep


def _keep_figures(config: pytest.Config) -> None:
    """Write what there is so far: a run that is stopped keeps its finished cells."""
    path = config.getoption("--figures")
    if path is not None:
        rows = [row.to_json() for row in config.stash[_ROWS]]
        write_atomically(path, (json.dumps({"machine": machine(_device()), "rows": rows}, indent=1) + "\n").encode())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
