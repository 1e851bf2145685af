"""`fairy bench gate BASE.json NEW.json`: whether a new run is worse than an older one, case by case.

- **Speed** is worse where the median moved by both a share and an amount: a share alone would fail a kernel of 20 µs
  for the clock's own noise, an amount alone a whole clip for nothing.
- **Quality** of the same run is looked at first: a time without quality counts for nothing, and a figure that got
  worse by more than the base's tolerance is a regression however fast the run was.
- **Counts** are exact: one more synchronisation is a regression.

What cannot be judged is said and fails nothing, unless `strict`: another recipe, another machine, too few runs, a
spread too wide, a case that only one of the files has.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fairy.benchmarks.records import Quality, Record, RecordFile
from fairy.benchmarks.timing import Timing
from fairy.kernels.errors import InputError

Status = Literal["pass", "improved", "needs-calibration", "recipe-mismatch", "regression"]
STATUSES: tuple[Status, ...] = ("pass", "improved", "needs-calibration", "recipe-mismatch", "regression")  # by weight
COUNTING = ("torch", "diffusers")  # what decides, beside our code, how many operations a step has


@dataclass(frozen=True, slots=True)
class Limits:
    """What still passes.

    Attributes:
        share: of the base's median. 8 % is above what clocks drift by from run to run on a GPU that is not throttled.
        amount_ms: beside it, in milliseconds. 0.05 ms is what a few launches take: below it is the clock's noise.
        min_runs: fewer say nothing.
        max_spread: greatest (80th − 20th percentile) / median. With five runs, 0.25 leaves a median uncertain by
            0.25 · 1.25 / (1.68 · √5) = 8 % (normal noise, one standard error): as much as `share`.
    """

    share: float = 0.08
    amount_ms: float = 0.05
    min_runs: int = 5
    max_spread: float = 0.25

    def __post_init__(self) -> None:
        for name in ("share", "amount_ms", "max_spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    "is not possible", name=name, value=getattr(self, name), remedy="give a number from 0 up"
                )
        if self.min_runs < 1:
            raise InputError(
                "is not possible", name="min_runs", value=self.min_runs, remedy="give a whole number from 1 up"
            )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was compared: "recipe", "speed", "quality" or "counts", and what came of it, in a sentence."""

    what: str
    status: Status
    says: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings of one case; times are medians, None where a side has none."""

    name: str
    base_ms: float | None
    new_ms: float | None
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """The gravest of the findings."""
        return max((finding.status for finding in self.findings), key=STATUSES.index)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values."""
        return {"status": self.status} | asdict(self)


def compare(base: RecordFile, new: RecordFile, limits: Limits | None = None) -> list[Verdict]:
    """Every case of either file, in the order of the base."""
    known = [_judge_or_miss(name, record, new, limits or Limits()) for name, record in base.records.items()]
    fresh = [record for name, record in new.records.items() if name not in base.records]
    return known + [_verdict(None, record, [_without_base(base, record)]) for record in fresh]


def judge(base: Record, new: Record, limits: Limits) -> Verdict:
    """One case that both files have."""
    if base.recipe_sha256 != new.recipe_sha256:
        differing = ", ".join(_differing(base.recipe, new.recipe))
        says = f"it is not the same that was run ({differing}): write a new base"
        return _verdict(base, new, [Finding("recipe", "recipe-mismatch", says)])
    findings = [*_quality(base, new), *_counts(base, new), *_speed(base, new, limits)]
    nothing = Finding("recipe", "needs-calibration", "neither time nor quality nor counts are in both files")
    return _verdict(base, new, findings or [nothing])


def failed(verdicts: Iterable[Verdict], *, strict: bool = False) -> bool:
    """Whether there is a regression; with `strict`, whether anything is other than passed or improved."""
    good = ("pass", "improved") if strict else tuple(status for status in STATUSES if status != "regression")
    return any(verdict.status not in good for verdict in verdicts)


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as text: a line a case, with the reasons of whatever did not simply pass below it."""
    heads = ("status", "base ms", "new ms", "change", "case")
    lines = [heads, *(_cells(verdict) for verdict in verdicts)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = []
    for line, verdict in zip(lines, (None, *verdicts), strict=True):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        for finding in () if verdict is None else verdict.findings:
            if finding.status != "pass":
                text.append(f"    {finding.what}: {finding.says}")
    counted = [f"{n} {status}" for status in STATUSES if (n := sum(v.status == status for v in verdicts))]
    return "\n".join([*text, ", ".join(counted) or "no cases"])


def _judge_or_miss(name: str, base: Record, new: RecordFile, limits: Limits) -> Verdict:
    if name in new.records:
        return judge(base, new.records[name], limits)
    if name in new.refused:
        return _verdict(base, None, [Finding("speed", "needs-calibration", new.refused[name])])
    return _verdict(base, None, [Finding("recipe", "recipe-mismatch", "the new run has no such case")])


def _without_base(base: RecordFile, record: Record) -> Finding:
    return Finding(
        "speed", "needs-calibration", base.refused.get(record.name, "the base has no such case: write a new base")
    )


def _verdict(base: Record | None, new: Record | None, findings: Iterable[Finding]) -> Verdict:
    name = (base or new).name  # type: ignore[union-attr]  # one of them is always there
    times = [record.timing.median_ms if record and record.timing else None for record in (base, new)]
    return Verdict(name, times[0], times[1], tuple(findings))


def _quality(base: Record, new: Record) -> Iterator[Finding]:
    if new.timing is not None and not new.quality:
        yield Finding("quality", "regression", "the new run has a time and no quality: what it made is not known")
    for name, known in base.quality.items():
        found = new.quality.get(name)
        if found is not None:
            yield _figure(name, known, found)
        elif new.quality or new.timing is None:  # where there is a time and no quality, that was said already
            yield Finding("quality", "regression", f"{name} was measured in the base and is not in the new run")


def _figure(name: str, known: Quality, found: Quality) -> Finding:
    """One figure; the base's tolerance decides, so that a new run cannot soften it."""
    better = found.value - known.value if known.better == "higher" else known.value - found.value
    says = f"{name} {known.value:.6g} → {found.value:.6g}, tolerance {known.tolerance:.3g}"
    if better < -known.tolerance:
        return Finding("quality", "regression", f"{says}: worse")
    return Finding("quality", "pass", says)


def _counts(base: Record, new: Record) -> Iterator[Finding]:
    other = [name for name in COUNTING if _release(base, name) != _release(new, name)]
    if base.counts and other:
        versions = ", ".join(f"{name} {base.machine.get(name)} → {new.machine.get(name)}" for name in other)
        yield Finding("counts", "needs-calibration", f"other versions ({versions}): write a new base")
        return
    for name, known in base.counts.items():
        found = new.counts.get(name)
        if found is None:
            yield Finding("counts", "regression", f"{name} were counted in the base and are not in the new run")
            continue
        status: Status = "regression" if found > known else "improved" if found < known else "pass"
        yield Finding("counts", status, f"{name} {known} → {found}")


def _release(record: Record, package: str) -> str:
    """A package's version without its build, such as "+cpu"."""
    return str(record.machine.get(package)).partition("+")[0]


def _speed(base: Record, new: Record, limits: Limits) -> Iterator[Finding]:
    if base.timing is None or new.timing is None:
        if base.timing is not None:
            yield Finding("speed", "regression", "the base has a time and the new run has none")
        return
    if base.hardware != new.hardware:
        yield Finding(
            "speed", "needs-calibration", f"another machine ({base.hardware} → {new.hardware}): write a base there"
        )
        return
    doubts = [doubt for side, t in (("base", base.timing), ("new", new.timing)) for doubt in _doubts(side, t, limits)]
    if doubts:
        yield Finding("speed", "needs-calibration", "; ".join(doubts))
        return
    delta_ms = new.timing.median_ms - base.timing.median_ms
    share = delta_ms / base.timing.median_ms
    moved = abs(share) > limits.share and abs(delta_ms) > limits.amount_ms
    status: Status = "pass" if not moved else "regression" if delta_ms > 0 else "improved"
    says = f"{share:+.1%} and {delta_ms:+.4g} ms; allowed are {limits.share:.1%} or {limits.amount_ms:g} ms"
    yield Finding("speed", status, says)


def _doubts(side: str, timing: Timing, limits: Limits) -> Iterator[str]:
    """Why a distribution is no basis for a judgement."""
    if timing.runs < limits.min_runs:
        yield f"the {side} has {timing.runs} runs, {limits.min_runs} are needed"
    spread = (timing.p80_ms - timing.p20_ms) / timing.median_ms
    if spread > limits.max_spread:
        yield f"the {side}'s runs spread by {spread:.0%} of their median, at most {limits.max_spread:.0%} is usable"


def _differing(base: Any, new: Any, at: str = "") -> Iterator[str]:
    """Where two recipes differ, as dotted names."""
    if isinstance(base, dict) and isinstance(new, dict):
        for name in sorted({*base, *new}):
            yield from _differing(base.get(name), new.get(name), f"{at}.{name}" if at else str(name))
    elif base != new:
        yield f"{at} {_short(base)} → {_short(new)}"


def _short(value: Any) -> str:
    """A value as a sentence can hold it: of a digest its beginning."""
    text = repr(value)
    return text if len(text) <= 48 else f"{text[:16]}…"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    base, new = verdict.base_ms, verdict.new_ms
    change = "" if base is None or new is None else f"{new / base - 1:+.1%}"
    times = ("–" if ms is None else f"{ms:.4g}" for ms in (base, new))
    return (verdict.status, *times, change, verdict.name)
