"""Everything that wants a GPU: ``python -m fairy.benchmarks.gpu.run CALL OUT``; `gpu.sh` sets up a bare machine for it.

Every part is a process of its own with its own time limit; one that fails or is late becomes a row with the reason and
stops no other. Each part writes its figures under OUT as soon as it has some, and `OUT/call-N.json` is written anew
after each part, so that what was measured is never lost. That file holds the records of all parts: `fairy bench gate`
takes it as it is. `--list` names the parts; a later part is a line in `plan.py`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fairy.benchmarks.gpu.plan import CALLS, FIGURES, LENT_S, OUT, Part, parts, total_s
from fairy.benchmarks.records import FORMAT
from fairy.benchmarks.timing import machine
from fairy.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 4  # a rehearsal's limits are so many times longer: it has neither 16 cores nor a machine of its own
LAST_WORDS_S = 4.0  # so long before its limit a part is interrupted, that it may say what it has
TAIL = 4000  # characters of a part's output that the row keeps; the log has all


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part went: "passed", "failed" or "late", why not if it did not, its figures and the end of its output.

    `figures` is what it wrote: a file of records, or JSON of its own.
    """

    name: str
    status: str
    seconds: float
    reason: str | None
    figures: Any
    output: str


def run_part(part: Part, out: Path, *, small: bool = False) -> Outcome:
    """Run one part to its end or its limit; never raises for what the part does. Its log and figures stay in `out`."""
    start = time.monotonic()
    figures, log = out / f"{part.slug}.json", out / f"{part.slug}.log"
    figures.unlink(missing_ok=True)
    command = part.small_command() if small else part.command
    limit_s = part.limit_s * (PATIENCE if small else 1)
    if not command:
        return Outcome(part.name, "passed", 0.0, None, None, "")
    command = tuple(a.replace(FIGURES, str(figures)).replace(OUT, str(out)) for a in command)
    try:
        with log.open("wb") as file:
            code = _run(command, file.fileno(), limit_s)
    except OSError as error:
        return Outcome(part.name, "failed", 0.0, f"it could not be started: {error}", None, "")
    seconds = round(time.monotonic() - start, 2)
    output = log.read_text(errors="replace")[-TAIL:]
    found = _figures(figures)
    if code is None:
        return Outcome(part.name, "late", seconds, f"stopped at its limit of {limit_s:g} s", found, output)
    reason = f"exit code {code}: {_last_line(output)}" if code else None
    return Outcome(part.name, "failed" if code else "passed", seconds, reason, found, output)


def run_all(
    chosen: Sequence[Part], out: Path, device: torch.device, name: str, *, small: bool = False
) -> list[Outcome]:
    """Run the parts one after another; `out/NAME.json` holds what there is after each."""
    outcomes: list[Outcome] = []
    for part in chosen:
        print(f"{part.name} …", flush=True)
        outcomes.append(run_part(part, out, small=small))
        last = outcomes[-1]
        print(f"    {last.status} after {last.seconds:.1f} s{f': {last.reason}' if last.reason else ''}", flush=True)
        content = json.dumps(content_of(outcomes, device), indent=1)
        write_atomically(out / f"{name}.json", (content + "\n").encode())
    return outcomes


def content_of(outcomes: Sequence[Outcome], device: torch.device) -> dict[str, Any]:
    """The records of every part in one file of records, beside how the parts went."""
    records, refused, rows = [], [], []
    for outcome in outcomes:
        if isinstance(outcome.figures, dict) and outcome.figures.get("format") == FORMAT:
            records += outcome.figures["records"]
            refused += outcome.figures["refused"]
            outcome = replace(outcome, figures=None)
        rows.append(asdict(outcome))
    return {"format": FORMAT, "machine": machine(device), "parts": rows, "records": records, "refused": refused}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where every part passed, 1 where one did not, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m fairy.benchmarks.gpu.run", description="Run all that wants a GPU.")
    parser.add_argument("call", type=int, nargs="?", choices=CALLS, help="the first call or the second")
    parser.add_argument("out", type=Path, nargs="?", help="the folder of the results")
    parser.add_argument("--only", action="append", help="names of parts; may be repeated")
    parser.add_argument("--small", action="store_true", help="rehearse: small sizes, a GPU is not needed")
    parser.add_argument("--list", action="store_true", help="name the parts and their limits")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"call {part.call}  {part.limit_s:4g} s  {part.name}" for part in parts()))
        print(f"at most {total_s():g} s with both starts, of {LENT_S:g} s")
        return 0
    if options.out is None:
        parser.error("name the call, 1 or 2, and a folder for the results")
    if not torch.cuda.is_available() and not options.small:
        print("This needs a CUDA GPU, and the machine has none that torch can use.", file=sys.stderr)
        return 2
    chosen = [part for part in parts() if part.call == options.call]
    unknown = sorted(set(options.only or ()) - {part.name for part in chosen})
    if unknown:
        parser.error(f"call {options.call} has no part {unknown[0]!r}; --list names them")
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [part for part in chosen if options.only is None or part.name in options.only]
    outcomes = run_all(chosen, out, device, f"call-{options.call}", small=options.small)
    for outcome in outcomes:
        print(f"{outcome.status:7} {outcome.seconds:6.1f} s  {outcome.name}")
        if outcome.figures is not None:
            print(json.dumps(outcome.figures)[:1500])
    return int(any(outcome.status != "passed" for outcome in outcomes))


def _run(command: Sequence[str], out: int, limit_s: float) -> int | None:
    """The exit code, or None where the limit was reached; then its whole process group has been stopped."""
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
    last_words_s = min(LAST_WORDS_S, limit_s / 4)
    try:
        return process.wait(limit_s - last_words_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            with suppress(subprocess.TimeoutExpired):  # tests tell then what failed by now
                process.send_signal(signal.SIGINT)
                process.wait(last_words_s)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _figures(path: Path) -> Any:
    """What a part wrote, or None where it wrote nothing whole."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main())
