"""Whether memory stays flat: `python -m benchmarks.soak` edits a long generated film and watches every process.

The film is encoded frame by frame and edited by `fairy edit` in one step; the private memory of that command and of
all its helpers is read once a second. From a minute after the first edited frame on it must not grow any more. Writes
`soak.json` and `soak.png` with `--out`, and exits with 1 where it grew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from examples.make_clip import write_clip

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Soak:
    """What was watched.

    Attributes:
        seconds, mebibytes: when, and the private memory of all processes then.
        settled_mebibytes: the most until a minute after the first edited frame; largest_mebibytes: the most afterwards.
        first_frame_s, total_s: until the first edited frames were ready, and until the end.
    """

    frames: int
    width: int
    height: int
    workers: int
    seconds: tuple[float, ...]
    mebibytes: tuple[float, ...]
    settled_mebibytes: float
    largest_mebibytes: float
    first_frame_s: float
    total_s: float

    @property
    def growth_mebibytes(self) -> float:
        """How much more there was later than until then."""
        return max(0.0, self.largest_mebibytes - self.settled_mebibytes)


def watch(command: Sequence[str], interval_s: float = 1.0) -> tuple[list[float], list[float]]:
    """Run a command to its end; seconds, and MiB of it and all its descendants at each.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    seconds, memory = [], []
    process = subprocess.Popen(command)
    try:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            seconds.append(time.monotonic() - started)
            memory.append(_private(root) / MIB)
            time.sleep(interval_s)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, memory


def _private(root: psutil.Process) -> int:
    """Memory that a process and its descendants have for themselves: libraries' code, which others share, apart."""
    total = 0
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in family:
        try:
            total += each.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def soak(
    frames: int, width: int, height: int, workers: int, settle_s: float, model: str | None, options: Sequence[str] = ()
) -> Soak:
    """Make a film, edit it with further `options` of `fairy edit`, and watch."""
    with tempfile.TemporaryDirectory(prefix="fairy-soak-") as folder:
        film, out, report = (Path(folder) / name for name in ("film.mp4", "edited.mp4", "report.json"))
        write_clip(film, frames, width, height)
        command = [sys.executable, "-m", "fairy.runtime.cli.main", "edit", str(film), "make it snow", "-o", str(out)]
        command += ["--steps", "1", "--workers", str(workers), "--report", str(report), "--quiet", *options]
        seconds, memory = watch([*command, *(["--model", model] if model else [])])
        told = json.loads(report.read_text())
    if told["num_frames"] != frames:
        raise RuntimeError(f"{told['num_frames']} of {frames} frames were edited")
    times = told["times_ms"]
    settled = times["first_frame"] / 1e3 + settle_s
    early = [m for s, m in zip(seconds, memory, strict=True) if s <= settled]
    late = [m for s, m in zip(seconds, memory, strict=True) if s > settled]
    return Soak(
        frames,
        width,
        height,
        workers,
        tuple(round(s, 1) for s in seconds),
        tuple(round(m, 1) for m in memory),
        round(max(early, default=0.0), 1),
        round(max(late, default=0.0), 1),
        round(times["first_frame"] / 1e3, 2),
        round(times["total"] / 1e3, 1),
    )


def plot(result: Soak, path: Path) -> None:
    """Memory over time as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(result.seconds, result.mebibytes)
    axes.set(xlabel="s", ylabel="MiB, all processes", ylim=(0, None), title=f"{result.frames} frames")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, watch, print; 1 where memory grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--settle", type=float, default=60.0, help="seconds after the first frame in which memory may grow"
    )
    parser.add_argument("--tolerance", type=float, default=32.0, help="MiB that it may grow afterwards")
    parser.add_argument("--model", help="a folder in diffusers' format [the embedded model]")
    parser.add_argument("--out", type=Path, help="a folder for soak.json and soak.png")
    options = parser.parse_args(arguments)
    result = soak(options.frames, options.width, options.height, options.workers, options.settle, options.model)
    print(
        f"{result.frames} frames of {result.width}×{result.height}, {result.workers} worker(s): {result.total_s} s, "
        f"first frame after {result.first_frame_s} s; at most {result.settled_mebibytes} MiB until "
        f"{options.settle:g} s later, {result.largest_mebibytes} MiB afterwards"
    )
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "soak.json").write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")
        plot(result, options.out / "soak.png")
    if result.growth_mebibytes > options.tolerance:
        print(f"memory grew by {result.growth_mebibytes:.1f} MiB, more than {options.tolerance:g}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
