"""Everything that wants a GPU, in one go: ``python -m benchmarks.gpu --out RESULTS.json``.

Under nine minutes, and nine more for the ladder (``--only ladder`` and ``--skip ladder`` make two commands of it).

Every part is a process of its own with its own time limit; one that fails or is late becomes a row with the reason and
stops no other. The file is written anew after each part, so that what was measured is never lost; it holds the records
of all parts, so that `fairy bench gate` takes it as it is. `--list` names the parts, `--only NAME` runs some. A later
part is a line in `PARTS`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fairy.benchmarks.records import FORMAT
from fairy.benchmarks.timing import machine
from fairy.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-quiet")
FAIRY = (sys.executable, "-P", "-m", "fairy.runtime.cli")
LADDER = (
    "a,b,c,d,channels-last,anchor-attention,shared-first-block,folded-upsampling,guidance-step,inductor,cuda-graphs"
)
FIGURES = "{figures}"  # stands for a file that the part may write JSON to
TAIL = 4000  # characters of a part's output that are kept


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to run.

    Attributes:
        name: what the row is called.
        command: program and arguments; `FIGURES` among them becomes the path of a file for the part's own JSON.
        limit_s: seconds after which it is stopped.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float


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


def _benchmark(op: str, limit_s: float) -> Part:
    return Part(f"benchmark {op}", (*PYTEST, f"benchmarks/bench_{op}.py", f"--figures={FIGURES}"), limit_s)


PARTS = (
    Part("correctness of every kernel", (*PYTEST, "tests/kernels", "-m", "not slow"), 120),
    _benchmark("anchor_attention", 170),
    _benchmark("group_norm_silu", 60),
    _benchmark("geglu", 40),
    _benchmark("guidance_step", 30),
    _benchmark("upsample_conv", 55),
    _benchmark("engines", 60),
    Part("ladder", (*FAIRY, "bench", "ladder", "--rungs", LADDER, "--repeats", "3", f"--out={FIGURES}"), 540),
)


def run_part(part: Part) -> Outcome:
    """Run one part to its end or its limit; never raises for what the part does."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures, log = Path(folder) / "figures.json", Path(folder) / "log"
        command = [argument.replace(FIGURES, str(figures)) for argument in part.command]
        try:
            with log.open("wb") as out:
                code = _run(command, out.fileno(), part.limit_s)
        except OSError as error:
            return Outcome(part.name, "failed", 0.0, f"it could not be started: {error}", None, "")
        seconds = round(time.monotonic() - start, 2)
        output = log.read_text(errors="replace")[-TAIL:]
        found = _figures(figures)
    if code is None:
        return Outcome(part.name, "late", seconds, f"stopped at its limit of {part.limit_s:g} s", found, output)
    reason = f"exit code {code}: {_last_line(output)}" if code else None
    return Outcome(part.name, "failed" if code else "passed", seconds, reason, found, output)


def run_all(parts: Sequence[Part], out: Path, device: torch.device) -> list[Outcome]:
    """Run the parts one after another; `out` holds what there is after each."""
    outcomes: list[Outcome] = []
    for part in parts:
        print(f"{part.name} …", flush=True)
        outcomes.append(run_part(part))
        last = outcomes[-1]
        print(f"    {last.status} after {last.seconds:.1f} s{f': {last.reason}' if last.reason else ''}", flush=True)
        write_atomically(out, (json.dumps(_content(outcomes, device), indent=1) + "\n").encode())
    return outcomes


def _content(outcomes: Sequence[Outcome], device: torch.device) -> dict[str, Any]:
    """The records of every part in one file of records, beside how the parts went."""
    records, refused, parts = [], [], []
    for outcome in outcomes:
        if isinstance(outcome.figures, dict) and outcome.figures.get("format") == FORMAT:
            records += outcome.figures["records"]
            refused += outcome.figures["refused"]
            outcome = replace(outcome, figures=None)
        parts.append(asdict(outcome))
    return {"format": FORMAT, "machine": machine(device), "parts": parts, "records": records, "refused": refused}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where every part passed, 1 where one did not, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Run all that wants a GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the results go (JSON)")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], help="may be repeated")
    parser.add_argument("--skip", action="append", default=[], choices=[part.name for part in PARTS], help="likewise")
    parser.add_argument("--list", action="store_true", help="name the parts and their limits")
    options = parser.parse_args(arguments)
    parts = [part for part in PARTS if options.only is None or part.name in options.only]
    parts = [part for part in parts if part.name not in options.skip]
    if options.list:
        print("\n".join(f"{part.limit_s:4g} s  {part.name}" for part in parts))
        return 0
    if not torch.cuda.is_available():
        print("This needs a CUDA GPU, and the machine has none that torch can use.", file=sys.stderr)
        return 2
    outcomes = run_all(parts, options.out, torch.device("cuda"))
    print(options.out.read_text())
    return int(any(outcome.status != "passed" for outcome in outcomes))


def _run(command: Sequence[str], out: int, limit_s: float) -> int | None:
    """The exit code, or None where the limit was reached; then its whole process group has been stopped."""
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
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
