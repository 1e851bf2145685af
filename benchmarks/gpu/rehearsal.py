"""What a rehearsal looks at when both calls are over: ``python -m fairy.benchmarks.gpu.rehearsal OUT``."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from fairy.benchmarks.gpu.plan import CALLS, parts
from fairy.benchmarks.gpu.results import read_out, summary
from fairy.benchmarks.gpu.run import PATIENCE, run_part

_MIDDLE_S = 60.0  # by when an edit without end has ended two of them
_EARLY_S = 4.0  # when parts are stopped: hardly any has told anything by then


def check(out: Path) -> list[str]:
    """What is wrong, in sentences."""
    found = []
    for call in CALLS:
        path = out / f"call-{call}.json"
        rows = json.loads(path.read_text())["parts"] if path.exists() else []
        wanted = [part.name for part in parts() if part.call == call]
        if [row["name"] for row in rows] != wanted:
            found.append(f"call {call} left rows of {len(rows)} parts, not of {len(wanted)}")
        found += [f"{row['name']}: {row['status']}, {row['reason']}" for row in rows if row["status"] != "passed"]
        for part in (part for part in parts() if part.call == call):
            if part.small_command() and not (out / f"{part.slug}.log").exists():
                found.append(f"{part.name} left no log")
    return [*found, *stopped(out / "stopped")]


def stopped(out: Path) -> list[str]:
    """What parts leave that are stopped before their time: the log always, and figures where any were told."""
    out.mkdir(exist_ok=True)
    found = []
    for part in parts():
        if not part.small_command():
            continue
        outcome = run_part(replace(part, limit_s=_EARLY_S / PATIENCE), out, small=True)
        if not (out / f"{part.slug}.log").exists():
            found.append(f"{part.name}, stopped after {_EARLY_S:g} s, left no log")
        if outcome.status not in ("late", "passed"):
            found.append(f"{part.name}, stopped after {_EARLY_S:g} s, was {outcome.status}")
    edit = next(part for part in parts() if part.name == "edit")
    endless = replace(edit, command=(*edit.command[:-1], "1000"), limit_s=_MIDDLE_S / PATIENCE)
    outcome = run_part(endless, out, small=True)
    if outcome.status != "late" or not outcome.figures or "edit_2" not in outcome.figures:
        found.append("the edit, stopped in the middle, did not leave what it had measured")
    return found


def main(out: Path) -> int:
    """Print what the run would have decided, and what is wrong; 0 where nothing is."""
    print(summary(read_out(out)))
    wrong = check(out)
    print(*(wrong or ["the rehearsal found nothing wrong"]), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
