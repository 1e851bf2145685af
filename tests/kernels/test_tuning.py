"""Which launch configuration is taken: nearest shape, exact dims, and what happens where there is no good table."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairy.kernels import tuning
from fairy.kernels.errors import InputError
from fairy.kernels.tuning import Config, Entry, Table, parse_table, pick_config, table_name

GPU, CUDA = "Made Up 9000/X", torch.device("cuda")
DEFAULT = Config((("BLOCK", 7),), 1, 1)


def _config(block: int) -> Config:
    return Config((("BLOCK", block), ("ROWS", 2)), 4, 3)


def _table(*sizes: tuple[int, int, int]) -> Table:
    """Entries of (head_dim, rows, channels); each config's BLOCK is the entry's number."""
    entries = [
        Entry((("head_dim", d), ("rows", r), ("channels", c)), _config(i), 0.5) for i, (d, r, c) in enumerate(sizes)
    ]
    return Table("made_up", GPU, ("head_dim",), tuple(entries), (("torch", "1"), ("triton", "2")))


WHOLE = _table((1, 1, 1)).to_json()
BROKEN = ["", "[]", '{"entries": 3}', WHOLE[:-20], WHOLE.replace("2", "x")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tables, and a GPU of that name."""
    monkeypatch.setattr(tuning, "_folder", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    caches = (tuning._pick, tuning._device_name, tuning._capability, tuning._shipped_table)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def _write(folder: Path, table: Table) -> None:
    (folder / table_name(table.op, table.device_name)).write_text(table.to_json())


def test_as_kwargs_is_what_a_launch_takes() -> None:
    assert _config(64).as_kwargs() == {"BLOCK": 64, "ROWS": 2, "num_warps": 4, "num_stages": 3}
    assert _config(64)["ROWS"] == 2


def test_json_round_trip() -> None:
    table = _table((40, 3072, 320), (80, 768, 640))
    assert parse_table(table.to_json()) == table
    assert Config.from_json(json.loads(json.dumps(_config(5).to_json()))) == _config(5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"blocks": {}, "num_warps": 4},
        {"blocks": {"BLOCK": "64"}, "num_warps": 4, "num_stages": 2},
        {"blocks": {"BLOCK": 64.0}, "num_warps": 4, "num_stages": 2},
        {"blocks": {"BLOCK": 64}, "num_warps": -1, "num_stages": 2},
        {"blocks": {"BLOCK": 64}, "num_warps": 4, "num_stages": 2, "extra": 1},
    ],
)
def test_a_config_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="config"):
        Config.from_json(value)


def test_the_nearest_entry_is_that_of_a_plain_search(folder: Path) -> None:
    sizes = [(d, r, c) for d in (40, 80) for r in (1, 12, 190, 3072) for c in (32, 320, 1280)]
    _write(folder, _table(*sizes))
    for dim, rows, channels in [(40, 1, 1), (40, 50, 700), (80, 47, 320), (80, 10**6, 10**4), (40, 770, 101)]:
        found = pick_config("made_up", {"head_dim": dim, "rows": rows, "channels": channels}, CUDA, DEFAULT)
        distances = [
            math.hypot(math.log((1 + r) / (1 + rows)), math.log((1 + c) / (1 + channels))) + 1e9 * (d != dim)
            for d, r, c in sizes
        ]
        assert found["BLOCK"] == distances.index(min(distances)), (dim, rows, channels)


def test_exact_dims_never_stand_in_for_one_another(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(folder, _table((40, 100, 10), (80, 100, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pick_config("made_up", {"head_dim": 80, "rows": 1, "channels": 1}, CUDA, DEFAULT) == _config(1)
        assert pick_config("made_up", {"head_dim": 64, "rows": 100, "channels": 10}, CUDA, DEFAULT) == DEFAULT
        assert pick_config("made_up", {"head_dim": 64, "rows": 200, "channels": 10}, CUDA, DEFAULT) == DEFAULT
    (record,) = caplog.records
    assert "no tuned configs of made_up with head_dim = 64" in record.getMessage()


def test_a_gpu_of_the_same_capability_stands_in(folder: Path) -> None:
    dims = {"head_dim": 40, "rows": 100, "channels": 10}
    near, far = _table((80, 1, 1), (40, 100, 10)), _table((40, 100, 10))
    _write(folder, replace(far, device_name="A GPU of another kind", capability=(8, 0)))
    _write(folder, replace(near, device_name="Its sibling", capability=(9, 0)))
    (folder / table_name("made_up", "A broken one")).write_text("{")
    assert pick_config("made_up", dims, CUDA, DEFAULT) == _config(1)
    tuning._shipped_table.cache_clear()
    tuning._pick.cache_clear()
    _write(folder, _table((40, 100, 10)))  # its own
    assert pick_config("made_up", dims, CUDA, DEFAULT) == _config(0)


def test_no_table_is_said_once_an_op_with_the_command(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for rows in (1, 2, 3):
            for op in ("made_up", "other"):
                assert pick_config(op, {"rows": rows}, CUDA, DEFAULT) == DEFAULT
    said = [str(w.message) for w in caught]
    assert len(said) == 2
    for text, op in zip(said, ("made_up", "other"), strict=True):
        assert f"python -m fairy.kernels.tune --op {op}`" in text
        assert GPU in text


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_table_means_the_default_and_a_sentence(folder: Path, text: str) -> None:
    (folder / table_name("made_up", GPU)).write_text(text)
    with pytest.warns(UserWarning, match="cannot be used.*not a table.*fairy.kernels.tune --op made_up"):
        assert pick_config("made_up", {"rows": 1}, CUDA, DEFAULT) == DEFAULT


def test_the_cpu_takes_the_default_in_silence(folder: Path) -> None:
    _write(folder, _table((40, 100, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for op in ("made_up", "other"):
            sizes = {"head_dim": 40, "rows": 100, "channels": 10}
            assert pick_config(op, sizes, torch.device("cpu"), DEFAULT) == DEFAULT


def test_every_shipped_table_is_readable_and_named_by_what_it_holds() -> None:
    for path in (Path(tuning.__file__).parent / "configs").glob("*device_name=*.json"):
        table = parse_table(path.read_text())
        assert path.name == table_name(table.op, table.device_name)
        assert table.entries
