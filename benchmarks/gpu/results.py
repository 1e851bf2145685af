"""What a run on a GPU decides: ``python -m fairy.benchmarks.gpu.results OUT [--gains FOLDER] [--commit CHECKOUT]``.

From the records that `run.py` left in OUT it makes
    configs/gains-sm_XY.json          which of our ops are faster than torch's, and the default micro-batch (`--gains`)
and, with `--commit`, in a checkout besides
    kernels/configs/*.json            the tuned configs and the gains
    benchmarks/results/gpu/GPU/       what was measured, for reading (`summary.md`) and for `fairy bench gate`
    docs/speed.md                     the measured column of the table of steps, between its marks
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairy.benchmarks.gpu.plan import CALLS
from fairy.benchmarks.records import FORMAT
from fairy.export.steps import STEPS
from fairy.kernels.errors import FairyError, InputError
from fairy.kernels.gains import OPS, gain, gains_name, parse_gains
from fairy.runtime.files import write_atomically

MARKS = ("<!-- measured on a GPU: begin -->", "<!-- measured on a GPU: end -->")
_SMALL = "3 frames"  # of guidance steps, those of a micro-batch count


def read_out(out: Path) -> dict[str, Any]:
    """Everything that a run left: {"records": …, "machine": …, part's file: its figures}.

    Raises:
        InputError: there is nothing of a run.
    """
    found: dict[str, Any] = {"records": [], "parts": []}
    for path in sorted(out.glob("*.json")):
        with suppress(ValueError):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    for name, content in list(found.items()):
        if isinstance(content, dict) and content.get("format") == FORMAT and name not in [f"call-{n}" for n in CALLS]:
            found["records"] += content["records"]
    for call in CALLS:
        content = found.get(f"call-{call}", {})
        found["parts"] += content.get("parts", [])
        found.setdefault("machine", content.get("machine"))
        found["machine"] = found["machine"] or content.get("machine")
    ceilings = found.get("ceilings", {})
    found["machine"] = found["machine"] or ceilings.get("machine") or _machine_of(found["records"])
    if not found["machine"]:
        raise InputError(f"{out} holds no results of a run on a GPU; name the folder that it wrote to.")
    return found


def make_gains(found: Mapping[str, Any]) -> dict[str, Any]:
    """The table of gains: of every op its cases, ours beside torch's; of micro-batches the milliseconds a frame."""
    ops: dict[str, list[dict[str, Any]]] = {}
    for op in OPS:
        times: dict[str, dict[str, float]] = {}
        for record in found["records"]:
            recipe = record["recipe"]
            if recipe.get("benchmark") == op and record["timing"] is not None:
                times.setdefault(recipe["cell"], {})[recipe["way"]] = record["timing"]["median_ms"]
        cases = [
            {"case": cell, "ours_ms": ways["fairy"], "plain_ms": ways["eager"]}
            for cell, ways in times.items()
            if {"fairy", "eager"} <= set(ways) and _counts(op, cell)
        ]
        if cases:
            ops[op] = cases
    machine = found["machine"]
    return {
        "capability": [int(n) for n in str(machine.get("capability", "0.0")).split(".")],
        "device_name": _name(machine),
        "versions": {name: machine.get(name) for name in ("torch", "triton")},
        "ops": ops,
        "micro_batch": found.get("micro-batches", {}).get("ms_a_frame_and_step", {}),
    }


def summary(found: Mapping[str, Any]) -> str:
    """What was measured, for reading."""
    machine = found["machine"]
    lines = [f"# {_name(machine)}", "", f"torch {machine['torch']}, triton {machine['triton']}", ""]
    lines += ["| part | how it went | s |", "|---|---|---|"]
    lines += [f"| {p['name']} | {p['status']}{_because(p)} | {p['seconds']:.1f} |" for p in found["parts"]]
    for name in ("edit", "edit-with-defaults"):
        for key, run in sorted(found.get(name, {}).items()):
            if key.startswith("edit_"):
                lines += ["", f"{name}, {key}: {run['num_frames']} frames in {run['seconds']:.2f} s "
                          f"({run['frames_per_s']:.1f} frames/s), backend {run['backend']}, {run['precision']}, "
                          f"fallbacks {run['fallbacks'] or 'none'}, {run['frames_sha256'][:16]}"]  # fmt: skip
    gains = make_gains(found)
    for op, cases in gains["ops"].items():
        lines += ["", f"{op}: {gain(cases):.2f} times as fast as torch over {len(cases)} cases"]
    if gains["micro_batch"]:
        lines += ["", "ms a frame and step by micro-batch: " + json.dumps(gains["micro_batch"])]
    return "\n".join(lines) + "\n"


def measured_steps(found: Mapping[str, Any]) -> str:
    """Seconds for a clip by rung of the ladder, as a table; what was not measured is not in it."""
    rows = {r["recipe"]["rung"]: r for r in found["records"] if r["recipe"].get("benchmark") == "ladder"}
    if not rows:
        return "No rung of the ladder was measured."
    order = ["a", "b", "c", "d", *(step.name for step in STEPS)]
    lines = [f"On {_name(found['machine'])}:", "", "| rung | s | of matmul | difference |"]
    lines.append("|---|---|---|---|")
    for key in (key for key in order if key in rows):
        row = rows[key]
        lines.append(
            f"| {row['name']} | {row['timing']['median_ms'] / 1e3:.3g} | {row['figures']['of_matmul']:.0%} "
            f"| {row['quality']['difference']['value']:.1e} |"
        )
    return "\n".join(lines)


def write_gains(found: Mapping[str, Any], folder: Path) -> Path:
    """Write the table of gains into a folder; returns where it is."""
    table = make_gains(found)
    text = json.dumps(table, indent=1) + "\n"
    parse_gains(text)
    folder.mkdir(parents=True, exist_ok=True)
    major, minor = table["capability"]
    path = folder / gains_name((major, minor))
    write_atomically(path, text.encode())
    return path


def commit(found: Mapping[str, Any], out: Path, checkout: Path) -> list[Path]:
    """Put everything to its place in a checkout; returns what was written."""
    written = [write_gains(found, checkout / "kernels" / "configs")]
    for table in sorted((out / "configs").glob("*.json")):
        written.append(Path(shutil.copy(table, checkout / "kernels" / "configs")))
    name = re.sub(r"[^A-Za-z0-9]+", "-", _name(found["machine"])).strip("-").lower()
    folder = checkout / "benchmarks" / "results" / "gpu" / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in [p for n in CALLS if (p := out / f"call-{n}.json").exists()]:
        written.append(Path(shutil.copy(path, folder)))
    write_atomically(folder / "summary.md", summary(found).encode())
    page = checkout / "docs" / "speed.md"
    text = page.read_text(encoding="utf-8")
    begin, end = (text.index(mark) for mark in MARKS)
    write_atomically(page, (text[: begin + len(MARKS[0])] + f"\n{measured_steps(found)}\n" + text[end:]).encode())
    return [*written, folder / "summary.md", page]


def _counts(op: str, cell: str) -> bool:
    """Whether a case is one of an edit's micro-batches: other sizes are there to see how it scales."""
    return cell.startswith(_SMALL) if op == "guidance_step" else "× 180" not in cell and "× 360" not in cell


def _name(machine: Mapping[str, Any]) -> str:
    return str(machine.get("gpu") or machine.get("cpu"))


def _because(part: Mapping[str, Any]) -> str:
    return f": {part['reason']}" if part["reason"] else ""


def _machine_of(records: Sequence[Mapping[str, Any]]) -> Any:
    return records[0]["machine"] if records else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fairy.benchmarks.gpu.results", description="What a run decides.")
    parser.add_argument("out", type=Path, help="the folder that the run wrote to")
    parser.add_argument("--gains", type=Path, help="write the table of gains into this folder")
    parser.add_argument("--commit", type=Path, help="put everything to its place in this checkout")
    options = parser.parse_args(arguments)
    try:
        found = read_out(options.out)
        if options.gains is not None:
            print(write_gains(found, options.gains))
        if options.commit is not None:
            print(*commit(found, options.out, options.commit), sep="\n")
        print(summary(found))
    except FairyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
