"""What the parts of `plan.py` do: ``python -m fairy.benchmarks.gpu.parts NAME --figures FILE``.

Each writes its figures anew whenever it has one more.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairy.benchmarks.family_counts import count_family
from fairy.benchmarks.gpu.model import write_model
from fairy.benchmarks.ladder.case import make_case
from fairy.benchmarks.ladder.networks import FULL, SMALL, Size, make_networks
from fairy.benchmarks.ladder.ours import OurRung
from fairy.benchmarks.public_models import PUBLIC
from fairy.benchmarks.public_models import SMALL as SMALL_MODELS
from fairy.benchmarks.timing import copy_gb_per_s, machine, matmul_tflop_per_s
from fairy.engines.backends import make_backend
from fairy.engines.graphed import graphed_steps
from fairy.runtime import Editor, EditParams
from fairy.runtime.files import write_atomically

STEPS, ANCHORS = 10, 3
PROMPT = "make it a watercolour painting"
_TRACE_BYTES = 5 << 20
_ROWS = 30  # of the profile's table


@dataclass(slots=True)
class Figures:
    """A part's results, on the disk as soon as they are told."""

    path: Path
    found: dict[str, Any] = field(default_factory=dict)

    def tell(self, **more: Any) -> None:
        """Add some and write all."""
        self.found |= more
        write_atomically(self.path, (json.dumps(self.found, indent=1) + "\n").encode())
        print(json.dumps(more)[:2000], flush=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part runs, and how large."""

    device: torch.device
    dtype: torch.dtype
    size: Size
    frames: int

    @classmethod
    def of(cls, *, small: bool) -> "Place":
        """Full size on a GPU; small, on the CPU or a GPU, in a rehearsal."""
        on_gpu = torch.cuda.is_available()
        dtype = torch.float16 if on_gpu else torch.float32
        size = replace(SMALL, height=64, width=64) if small else FULL
        return cls(torch.device("cuda" if on_gpu else "cpu"), dtype, size, 9 if small else 120)


def clip(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth pattern that moves: uint8 [frames, height, width, 3]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij", sparse=True)
    waves = [np.sin((x + 3 * t) / (9 + 4 * c)) + np.cos((y - 2 * t) / (7 + 5 * c)) for c in range(3)]
    return np.stack([np.broadcast_to(127.5 + 60 * wave, (frames, height, width)) for wave in waves], -1).astype(
        np.uint8
    )


def ceilings(place: Place, figures: Figures, _: argparse.Namespace) -> None:
    """What the machine gives at most: a large matrix product on random data, a large copy."""
    figures.tell(machine=machine(place.device), torch=torch.__version__)
    figures.tell(copy_gb_per_s=copy_gb_per_s(place.device))
    types = (torch.float16, torch.bfloat16) if place.device.type == "cuda" else (torch.float32,)
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        figures.tell(**{f"matmul_{name}_tflop_per_s": matmul_tflop_per_s(place.device, dtype)})


def edit(place: Place, figures: Figures, options: argparse.Namespace) -> None:
    """The mission's number: 120 frames of 512×384, ten steps, three anchors, array in and array out."""
    frames = clip(place.frames, place.size.height, place.size.width)
    with _editor(place, figures) as editor:
        for number in range(options.times):
            report = _edit(editor, frames)
            figures.tell(**{f"edit_{number + 1}": report})
    hashes = {figures.found[f"edit_{n + 1}"]["frames_sha256"] for n in range(options.times)}
    figures.tell(same_bytes=len(hashes) == 1)
    if len(hashes) != 1:
        raise SystemExit("two edits of the same clip differ")


def ways(place: Place, figures: Figures, _: argparse.Namespace) -> None:
    """The same short edit: a bank in host memory changes no byte, and recording calls nothing but rounding."""
    frames = clip(min(place.frames, 15), place.size.height, place.size.width)
    found: dict[str, NDArray[np.uint8]] = {}
    hashes: dict[str, str] = {}
    graphs = "cuda-graphs" if place.device.type == "cuda" else "eager"
    tried: dict[str, dict[str, Any]] = {
        "graphs": {"backend": graphs},
        "host bank": {"backend": graphs, "bank": "host"},
    }
    if place.device.type == "cuda":
        tried["plain"] = {"backend": graphs, "without": ("cuda-graphs",)}
    for name, how in {**tried, "eager": {"backend": "eager"}}.items():
        with _editor(place, figures, **how) as editor:
            result = editor.edit(frames, _params())
            found[name], hashes[name] = result.frames, result.report.frames_sha256
            figures.tell(**{name: _short(result.report)})
        _forget()
    for other in [name for name in ("plain", "eager") if name in found]:
        levels = np.abs(found["graphs"].astype(int) - found[other].astype(int))
        figures.tell(**{f"graphs_to_{other}_levels": {"mean": float(levels.mean()), "largest": int(levels.max())}})
    same = hashes["graphs"] == hashes["host bank"]
    figures.tell(host_bank_same_bytes=same)
    if not same:
        raise SystemExit("a bank in host memory changes bytes")


def embedded(place: Place, figures: Figures, _: argparse.Namespace) -> None:
    """The embedded model, whose pictures mean something: the GPU's edit against the CPU's."""
    frames = clip(6, 64, 64)
    params = EditParams("turn it into a thermal image", num_inference_steps=4, anchors=2, micro_batch=2)
    found = {}
    for name, device, dtype in (("cpu", "cpu", "float32"), ("here", str(place.device), "auto")):
        with Editor.from_pretrained(device=device, dtype=dtype) as editor:
            result = editor.edit(frames, params)
            found[name] = result.frames.astype(float)
            figures.tell(**{name: _short(result.report)})
    psnr = 10 * np.log10(255**2 / max(float(np.square(found["cpu"] - found["here"]).mean()), 1e-9))
    figures.tell(psnr_db=psnr)
    if psnr < 40:
        raise SystemExit(f"the GPU's edit is {psnr:.1f} dB from the CPU's")


def profile(place: Place, figures: Figures, options: argparse.Namespace) -> None:
    """Where the time of one micro-batch goes: torch's profiler over both phases, two steps each."""
    case = _case(place, 3)
    rung = OurRung(case, "d", "ours", graphed_steps(place.device) - {"cuda-graphs"})
    rung.run()
    cuda = place.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        rung.run()
    averages = profiler.key_averages()
    by = "device_time_total" if cuda else "cpu_time_total"
    rows = sorted(averages, key=lambda row: -getattr(row, f"self_{by}"))[:_ROWS]
    figures.tell(
        rows=[{"name": r.key[:120], "calls": r.count, "self_us": getattr(r, f"self_{by}")} for r in rows],
        kernels=sum(row.count for row in averages if row.device_type.name == ("CUDA" if cuda else "CPU")),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        packed = gzip.compress(path.read_bytes(), 9)
    figures.tell(trace_bytes=len(packed))
    if len(packed) <= _TRACE_BYTES:
        write_atomically(options.trace, packed)


def micro_batches(place: Place, figures: Figures, _: argparse.Namespace) -> None:
    """What a frame costs in micro-batches of several sizes, with the default's steps: what B is chosen from."""
    networks = make_networks(place.size, place.device, place.dtype)
    measured: dict[str, float] = {}
    for frames in (3,) if place.size.unet else (3, 5, 8, 12, 15, 20):
        case = make_case(replace(place.size, frames=frames), networks, place.device, place.dtype)
        rung = OurRung(case, "d", "ours", graphed_steps(place.device))
        rung.run()
        rung.run()
        laps = [rung.run() for _ in range(3)]
        measured[str(frames)] = sorted(lap.frames_ms[1] for lap in laps)[1] / frames
        figures.tell(ms_a_frame_and_step=measured)


def family(place: Place, figures: Figures, options: argparse.Namespace) -> None:
    """A model of another family at its public size, random weights: a whole edit in four steps on three anchors.

    Frames a second and peak memory stand beside what was counted; the text is encoded in the first edit's time too.
    """
    small, dtype = place.size.unet is not None, torch.bfloat16 if place.device.type == "cuda" else torch.float32
    frames = clip(9 if small else options.frames, place.size.height, place.size.width)
    started = time.perf_counter()
    torch.manual_seed(0)
    model = (SMALL_MODELS if small else PUBLIC)[options.model](place.device, dtype)
    figures.tell(model=options.model, make_s=time.perf_counter() - started)
    backend = make_backend("cuda-graphs" if place.device.type == "cuda" else "eager", model, place.device, dtype)
    params = EditParams(PROMPT, num_inference_steps=4, anchors=ANCHORS, long_side=max(frames.shape[1:3]))
    with closing(Editor(model, backend, device=place.device, dtype=dtype)) as editor:
        for number in range(options.times):
            figures.tell(**{f"edit_{number + 1}": _edit(editor, frames, params)})
    if not small:
        counted = count_family(options.model)
        figures.tell(counted_tflop_a_frame=counted.frame_flops / 1e12, counted_bank_bytes=counted.whole_bank_bytes)


def _case(place: Place, frames: int) -> Any:
    networks = make_networks(place.size, place.device, place.dtype)
    return make_case(replace(place.size, frames=frames), networks, place.device, place.dtype)


def _editor(place: Place, figures: Figures, **how: Any) -> Any:
    """An Editor of a random model, which is written first where no part before has done so."""
    started, name = time.perf_counter(), str(place.dtype).removeprefix("torch.")
    kind = f"{place.size.name}-{place.size.height}-{place.device.type}-{name}"
    model = Path(tempfile.gettempdir()) / f"fairy-random-{kind}"
    if not model.exists():
        with tempfile.TemporaryDirectory(dir=model.parent) as folder:
            write_model(Path(folder) / "model", place.size, place.device, place.dtype).rename(model)
        figures.tell(write_model_s=time.perf_counter() - started)
        started = time.perf_counter()
    editor = Editor.from_pretrained(model, device=str(place.device), dtype=name, **how)
    figures.tell(load_s=time.perf_counter() - started)
    return closing(editor)


def _edit(editor: Editor, frames: NDArray[np.uint8], params: EditParams | None = None) -> dict[str, Any]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = editor.edit(frames, params or _params())
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"seconds": seconds, "frames_per_s": len(frames) / seconds, "peak_bytes": peak, **_short(result.report)}


def _params() -> EditParams:
    return EditParams(PROMPT, num_inference_steps=STEPS, anchors=ANCHORS, seed=0)


def _short(report: Any) -> dict[str, Any]:
    names = ("backend", "precision", "micro_batch", "times_ms", "fallbacks", "steps", "frames_sha256", "num_frames")
    return {name: getattr(report, name) for name in names}


def _forget() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Place, Figures, argparse.Namespace], None]] = {
    "ceilings": ceilings,
    "edit": edit,
    "ways": ways,
    "embedded": embedded,
    "profile": profile,
    "micro-batches": micro_batches,
    "family": family,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fairy.benchmarks.gpu.parts", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--model", choices=SMALL_MODELS, default="dreamlite-mobile", help="of the part family")
    parser.add_argument("--frames", type=int, default=120, help="of the part family")
    parser.add_argument("--trace", type=Path, default=Path("trace.json.gz"))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    PARTS[options.part](Place.of(small=options.small), Figures(options.figures), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
