"""Records: whole by themselves, named by what was run, refused where the clocks were slowed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairy.benchmarks.records import Quality, Record, make_record, read_records, write_records
from fairy.benchmarks.timing import Timing, time_ms
from fairy.kernels.errors import InputError, MachineError

CPU = torch.device("cpu")
ERROR = {"error": Quality(1e-6, "lower", 1e-7)}


def _record(name: str = "a case", *, throttled: tuple[str, ...] = ()) -> Record:
    timing = Timing(1.5, 1.4, 1.7, 6, "clock", throttled)
    return make_record(name, {"size": [2, 3], "type": "float32"}, CPU, timing=timing, quality=ERROR)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    measured = make_record(
        "sum",
        {"numbers": 1000},
        CPU,
        timing=time_ms(lambda: torch.ones(1000).sum(), device=CPU, budget_ms=5),
        counts={"launches": 2},
        quality=ERROR,
        figures={"gb_per_s": 1.25},
    )
    assert write_records(tmp_path / "a.json", [measured, _record()]) == ()
    found = read_records(tmp_path / "a.json")
    assert set(found.records) == {"sum", "a case"}
    assert found.records["sum"] == measured
    assert found.refused == {}
    assert replace(found.records["a case"], conditions={}) == replace(_record(), conditions={})


def test_it_says_where_when_and_what(tmp_path: Path) -> None:
    write_records(tmp_path / "a.json", [_record()])
    content = json.loads((tmp_path / "a.json").read_text())
    (entry,) = content["records"]
    assert content["written"].endswith("+00:00")
    assert entry["machine"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert entry["machine"]["cpu"]
    assert len(entry["conditions"]["load_average"]) == 3
    assert entry["timing"] | {"throttled": ()} == {
        "median_ms": 1.5,
        "p20_ms": 1.4,
        "p80_ms": 1.7,
        "runs": 6,
        "how": "clock",
        "throttled": (),
    }


def test_the_hash_is_that_of_the_sorted_recipe() -> None:
    import hashlib

    record = Record("x", {"b": [1, 2.5], "a": "é"}, {}, {})
    assert record.recipe_sha256 == hashlib.sha256(b'{"a":"\\u00e9","b":[1,2.5]}').hexdigest()


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), _plain, max_size=4))
def test_the_hash_depends_on_the_recipe_alone(recipe: dict[str, object]) -> None:
    one = Record("x", recipe, {"torch": "1"}, {})
    two = Record("y", dict(reversed(json.loads(json.dumps(recipe)).items())), {"torch": "2"}, {}, counts={"n": 1})
    assert one.recipe_sha256 == two.recipe_sha256
    assert replace(one, recipe=recipe | {"and": "more"}).recipe_sha256 != one.recipe_sha256


def test_what_was_throttled_is_refused(tmp_path: Path) -> None:
    hot = _record("hot", throttled=("power cap", "hardware thermal"))
    reasons = write_records(tmp_path / "a.json", [_record(), hot])
    assert reasons == (
        "hot was refused: the clocks were slowed (power cap, hardware thermal); let the machine cool and run it again.",
    )
    found = read_records(tmp_path / "a.json")
    assert set(found.records) == {"a case"}
    assert found.refused == {"hot": reasons[0]}
    with pytest.raises(MachineError, match="hot was refused"):
        write_records(tmp_path / "b.json", [hot])
    assert not (tmp_path / "b.json").exists()


def test_a_time_without_quality_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a case has a time but no quality"):
        write_records(tmp_path / "a.json", [replace(_record(), quality={})])
    with pytest.raises(InputError, match="Two records are named 'a case'"):
        write_records(tmp_path / "a.json", [_record(), _record()])
    write_records(tmp_path / "a.json", [replace(_record(), timing=None, quality={}, counts={"launches": 3})])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_quality_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="did not work"):
        Quality(value, "higher")
    with pytest.raises(InputError, match="tolerance"):
        Quality(1.0, "higher", value)
    with pytest.raises(InputError, match="better"):
        Quality(1.0, "more")  # type: ignore[arg-type]


def test_a_gpu_names_the_hardware_before_the_cpu() -> None:
    assert Record("x", {}, {"cpu": "a CPU", "threads": 4}, {}).hardware == "a CPU, 4 threads"
    assert Record("x", {}, {"cpu": "a CPU", "threads": 4, "gpu": "a GPU"}, {}).hardware == "a GPU"
