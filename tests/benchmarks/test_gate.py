"""The gate: every status by its own cause, and three real faults that it must see: time, a synchronisation, quality."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairy.benchmarks.gate import Limits, Verdict, compare, failed, judge, table
from fairy.benchmarks.measures import psnr
from fairy.benchmarks.records import Quality, Record, RecordFile, make_record, read_records, write_records
from fairy.benchmarks.timing import Timing, time_ms
from fairy.runtime.cli.main import run

CPU = torch.device("cpu")
TIMING = Timing(median_ms=10.0, p20_ms=9.9, p80_ms=10.2, runs=9, how="clock")
BASE = Record(
    "a case",
    {"benchmark": "made up", "size": {"height": 48, "width": 64}},
    {"cpu": "a processor", "threads": 1, "torch": "2.13.0", "diffusers": "0.42.1"},
    {},
    TIMING,
    {"launches": 100, "synchronisations": 1},
    {"psnr_db": Quality(30.0, "higher", 0.1), "error": Quality(1e-4, "lower", 1e-5)},
)


def _slower(factor: float) -> Record:
    times = {name: getattr(TIMING, name) * factor for name in ("median_ms", "p20_ms", "p80_ms")}
    return replace(BASE, timing=replace(TIMING, **times))


def _file(*records: Record, **refused: str) -> RecordFile:
    return RecordFile({record.name: record for record in records}, refused)


def _causes(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.what, finding.status) for finding in verdict.findings if finding.status != "pass"}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (BASE, set()),
        (_slower(1.079), set()),
        (_slower(1.081), {("speed", "regression")}),
        (_slower(0.919), {("speed", "improved")}),
        (replace(BASE, timing=None), {("speed", "regression")}),
        (replace(BASE, timing=replace(TIMING, runs=4)), {("speed", "needs-calibration")}),
        (replace(BASE, timing=replace(TIMING, p80_ms=12.5)), {("speed", "needs-calibration")}),
        (replace(_slower(2), machine=BASE.machine | {"cpu": "another"}), {("speed", "needs-calibration")}),
        (replace(_slower(2), recipe=BASE.recipe | {"size": {"height": 49}}), {("recipe", "recipe-mismatch")}),
        (replace(_slower(0.5), quality={}), {("quality", "regression"), ("speed", "improved")}),
        (replace(BASE, quality={"error": BASE.quality["error"]}), {("quality", "regression")}),
        (replace(BASE, quality=BASE.quality | {"psnr_db": Quality(29.91, "higher", 0)}), set()),
        (replace(BASE, quality=BASE.quality | {"psnr_db": Quality(29.89, "higher", 9)}), {("quality", "regression")}),
        (replace(BASE, quality=BASE.quality | {"error": Quality(1.2e-4, "lower", 9)}), {("quality", "regression")}),
        (replace(BASE, counts=BASE.counts | {"launches": 101}), {("counts", "regression")}),
        (replace(BASE, counts=BASE.counts | {"launches": 99}), {("counts", "improved")}),
        (replace(BASE, counts={"launches": 100}), {("counts", "regression")}),
        (replace(BASE, machine=BASE.machine | {"torch": "2.13.0+cpu"}), set()),
        (
            replace(BASE, counts={"launches": 500}, machine=BASE.machine | {"torch": "2.14.0"}),
            {("counts", "needs-calibration")},
        ),
    ],
)
def test_every_cause_has_its_status(new: Record, expected: set[tuple[str, str]]) -> None:
    (verdict,) = compare(_file(BASE), _file(new))
    assert _causes(verdict) == expected, verdict
    assert failed([verdict]) == any(status == "regression" for _, status in expected)


def test_a_share_without_an_amount_and_an_amount_without_a_share_pass() -> None:
    short, long = (
        replace(BASE, timing=Timing(ms, 0.99 * ms, 1.01 * ms, 9, "graph"), counts={}, quality=BASE.quality)
        for ms in (0.02, 60_000.0)
    )
    slower = [replace(r, timing=replace(r.timing, median_ms=ms)) for r, ms in ((short, 0.06), (long, 60_500.0))]
    for base, new in zip((short, long), slower, strict=True):
        assert judge(base, new, Limits()).status == "pass", new
        assert judge(base, new, Limits(share=0.005, amount_ms=0.01)).status == "regression", new


def test_cases_of_one_file_alone_are_said_and_fail_only_strictly() -> None:
    other = replace(BASE, name="another case")
    gone, fresh = compare(_file(BASE), _file(other))
    assert (gone.name, gone.status) == ("a case", "recipe-mismatch")
    assert (fresh.name, fresh.status) == ("another case", "needs-calibration")
    (hot,) = compare(_file(BASE), _file(**{"a case": "a case was refused: the clocks were slowed"}))
    assert hot.status == "needs-calibration"
    assert "clocks were slowed" in table([hot])
    assert not failed([gone, fresh, hot])
    assert failed([gone], strict=True)
    assert failed([fresh], strict=True)


def test_two_records_with_nothing_in_common_are_no_pass() -> None:
    empty = replace(BASE, timing=None, counts={}, quality={})
    assert judge(empty, empty, Limits()).status == "needs-calibration"


@given(
    median=st.floats(1e-3, 1e6),
    factor=st.floats(1.0, 10.0),
    share=st.floats(0, 2),
    amount=st.floats(0, 100),
)
def test_only_both_thresholds_together_fail(median: float, factor: float, share: float, amount: float) -> None:
    base = replace(BASE, timing=Timing(median, median, median, 9, "clock"))
    new = replace(BASE, timing=Timing(median * factor, median * factor, median * factor, 9, "clock"))
    moved = median * factor - median
    expected = moved / median > share and moved > amount
    verdict = judge(base, new, Limits(share=share, amount_ms=amount))
    assert failed([verdict]) == expected
    back = judge(new, base, Limits(share=share, amount_ms=amount))
    assert not failed([back]), "what became faster is never a regression"


# -- real faults ----------------------------------------------------------------------------------------------------


def _measured(call: Callable[[], object]) -> Record:
    timing = time_ms(call, device=CPU, budget_ms=60, min_runs=5)
    return make_record("a product", {"size": 96}, CPU, timing=timing, quality={"error": Quality(0.0, "lower")})


def test_a_seeded_slowdown_is_caught(tmp_path: Path) -> None:
    """A sleep of 30 ms within a product of matrices that takes about one; the spread of a loaded machine is allowed."""
    a = torch.randn(96, 96, dtype=torch.float64)

    def product() -> torch.Tensor:
        return a @ a @ a @ a

    def slow_product() -> torch.Tensor:
        time.sleep(0.03)
        return product()

    paths = [tmp_path / "base.json", tmp_path / "new.json"]
    for path, call in zip(paths, (product, slow_product), strict=True):
        write_records(path, [_measured(call)])
    base, new = map(read_records, paths)
    limits = Limits(max_spread=1e6)
    (verdict,) = compare(base, new, limits)
    assert _causes(verdict) == {("speed", "regression")}, verdict
    assert not failed(compare(base, base, limits))
    assert run(["bench", "gate", *map(str, paths), "--max-spread", "1e6"]) == 1
    assert run(["bench", "gate", *map(str, paths[:1] * 2), "--max-spread", "1e6"]) == 0


def test_a_seeded_quality_loss_is_caught() -> None:
    """Noise of two levels on the frames that were measured, with the time unchanged or even better."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (3, 24, 32, 3)).astype(np.uint8)
    frames = np.clip(target + rng.normal(0, 6, target.shape), 0, 255).round().astype(np.uint8)
    noisy = np.clip(frames + rng.normal(0, 2, frames.shape), 0, 255).round().astype(np.uint8)
    records = [
        replace(BASE, quality={"psnr_db": Quality(psnr(result, target), "higher", 0.05)}) for result in (frames, noisy)
    ]
    faster = replace(records[1], timing=_slower(0.5).timing)
    for worse in (records[1], faster):
        verdict = judge(records[0], worse, Limits())
        assert ("quality", "regression") in _causes(verdict), verdict
        assert failed([verdict])
    assert judge(records[1], records[0], Limits()).status == "pass", "better quality is no fault"


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "base.json", tmp_path / "new.json"]
    write_records(paths[0], [BASE, replace(BASE, name="steady")])
    write_records(paths[1], [_slower(1.5), replace(BASE, name="steady")])
    assert run(["bench", "gate", *map(str, paths)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["status", "base", "ms", "new", "ms", "change", "case"]
    assert lines[1].split() == ["regression", "10", "15", "+50.0%", "a", "case"]
    assert lines[2] == "    speed: +50.0% and +5 ms; allowed are 8.0% or 0.05 ms"
    assert lines[3].split() == ["pass", "10", "10", "+0.0%", "steady"]
    assert lines[4] == "1 pass, 1 regression"
    assert run(["bench", "gate", *map(str, paths), "--share", "0.6"]) == 0
    capsys.readouterr()
    assert run(["bench", "gate", *map(str, paths), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [case["status"] for case in content["cases"]] == ["regression", "pass"]
    assert content["failed"] is True


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is not JSON"),
        ("[1]", "holds no records of the form fairy-records-1"),
        ('{"format": "fairy-records-1", "records": [{"name": "x"}]}', "holds a record that is not whole"),
        ("throttled", "the clocks were slowed (power cap)"),
        ("twice", "holds two records named 'a case'"),
        ("changed", "the recipe of a case is not the one of its hash"),
        ("zero", "a time must be above 0 ms"),
    ],
)
def test_a_bad_file_is_exit_code_2_and_a_sentence(
    content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_records(good, [BASE])
    if content is not None:
        bad.write_text(_broken(good, content))
    assert run(["bench", "gate", str(good), str(bad)]) == 2
    err = capsys.readouterr().err
    assert str(bad) in err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def _broken(good: Path, how: str) -> str:
    whole = json.loads(good.read_text())
    (entry,) = whole["records"]
    if how == "throttled":
        entry["timing"]["throttled"] = ["power cap"]
    elif how == "twice":
        whole["records"].append(entry)
    elif how == "changed":
        entry["recipe"]["size"]["height"] = 1
    elif how == "zero":
        entry["timing"]["median_ms"] = 0.0
    else:
        return how
    return json.dumps(whole)


@pytest.mark.parametrize("option", [("--share", "-1"), ("--min-runs", "0"), ("--amount-ms", "nan")])
def test_impossible_limits_are_refused(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "base.json", [BASE])
    assert run(["bench", "gate", *[str(tmp_path / "base.json")] * 2, *option]) == 2
    assert option[1] in capsys.readouterr().err
