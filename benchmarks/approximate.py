"""What every approximation gains and what it costs: `fairy bench approximate`, in a checkout.

Rows: the exact edit, then fewer steps (Euler's rule, LCM's), the small decoder, guidance on half of the steps, the bank
in 8 bit, the last four together, and large linear layers in 8 bit. All edit the same clips in turns. Columns: time,
size of the bank, PSNR to the exact edit's frames and to the instruction's exact target, warp error along the true flow,
Tem-Con; means over clips with 95 % intervals. Clips differ far more than ways, so speed is compared clip by clip. A CPU
only simulates 8 bit products: that row has no time there.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fairy.benchmarks.measures import FrameFeatures, Frames, estimate, psnr, tem_con, warp_error
from fairy.benchmarks.timing import machine
from fairy.engines.backends import serves
from fairy.export.steps import FP8_LINEARS
from fairy.kernels.errors import InputError
from fairy.runtime.device import resolve_device
from fairy.runtime.editor import Editor
from fairy.runtime.files import user_path, write_atomically
from fairy.runtime.plan.params import EditParams
from fairy.runtime.record.edit_report import EditResult

INSTRUCTIONS = ("sepia", "snow", "palette", "night", "background", "texture")
COLUMNS = {
    "seconds": "s a frame",
    "speedup": "times as fast",
    "bank_mb": "bank, MB",
    "psnr_exact_db": "PSNR to the exact edit, dB",
    "psnr_target_db": "PSNR to the target, dB",
    "warp_error": "warp error, 10⁻⁴",
    "tem_con": "Tem-Con",
}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to edit.

    Attributes:
        changes: of `EditParams`.
        small_decoder: whether that makes the pictures.
        linears: as for `Editor.from_pretrained`.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    small_decoder: bool = False
    linears: str | None = None

    @property
    def editor(self) -> tuple[bool, str | None]:
        """What of it an Editor is made with."""
        return self.small_decoder, self.linears


Editors = dict[tuple[bool, str | None], Editor]
"""By what of a `Way` they were made with."""

EXACT, LINEARS = "exact", "linear layers in 8 bit"
WAYS: dict[str, Way] = {
    EXACT: Way(),
    "Euler, 5 steps": Way({"sampler": "euler", "num_inference_steps": 5}),
    "LCM, 4 steps": Way({"sampler": "lcm", "num_inference_steps": 4}),
    "small decoder": Way(small_decoder=True),
    "guidance on half of the steps": Way({"guidance_end": 0.5}),
    "bank in 8 bit": Way({"bank_dtype": "float8"}),
    "the last four together": Way(
        {"sampler": "lcm", "num_inference_steps": 4, "guidance_end": 0.5, "bank_dtype": "float8"}, small_decoder=True
    ),
    LINEARS: Way(linears="float8"),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """One row on one clip; None where a figure does not apply.

    Attributes:
        seconds: of the whole edit in memory, a frame. speedup: the exact edit's seconds, divided by these. Both None
            where the way is simulated.
        bank_mb: 10⁶ bytes.
        psnr_exact_db: to the exact edit's frames; None for itself. psnr_target_db: None where the instruction leaves
            the target open.
    """

    row: str
    clip: str
    seconds: float | None
    speedup: float | None
    bank_mb: float
    psnr_exact_db: float | None
    psnr_target_db: float | None
    warp_error: float
    tem_con: float


def run(
    *,
    model: str | None,
    clips: int,
    frames: int,
    size: int,
    repeats: int,
    decoder: str,
    device: str,
    dtype: str,
    backend: str,
    threads: int,
    out: Path | None,
    tell: Callable[[str], object],
) -> Iterator[str]:
    """Measure; gives the lines to print.

    Args:
        clips, frames, size: how many, of how many square frames, of how many pixels a side.
        repeats: edits of every clip in every way; the fastest counts.
        out: a folder for results.json and results.md; None = nothing is written.

    Raises:
        InputError: an option is not possible, the model has no small decoder, or this is not a checkout.
    """
    for name, value, least in (("clips", clips, 1), ("frames", frames, 2), ("size", size, 32), ("repeats", repeats, 1)):
        if value < least:
            raise InputError("is not possible", name=name, value=value, remedy=f"give at least {least}")
    make_clip = _clip_maker()
    place = resolve_device(device)
    options: dict[str, Any] = {"device": place, "dtype": dtype, "backend": backend, "threads": threads}
    with ExitStack() as stack:
        editors: Editors = {}
        for way in WAYS.values():
            if way.editor not in editors and (way.linears is None or serves("compiled", place, {FP8_LINEARS})):
                how = options | _backend_of(way, backend, place)
                made = Editor.from_pretrained(model, decoder=decoder if way.small_decoder else None, **how)
                editors[way.editor] = stack.enter_context(made)
        features = FrameFeatures(editors[WAYS[EXACT].editor]._networks.checkpoint.vae)
        figures: list[Figures] = []
        for editor in editors.values():
            editor.warm_up(size, size)
        for i in range(clips):
            clip = make_clip(i, INSTRUCTIONS[i % len(INSTRUCTIONS)], num_frames=frames, size=size)
            figures += measure(clip, editors, features, repeats, simulated=place.type == "cpu")
            tell(f"{i + 1}/{clips} clips")
    found = machine(place) | {"threads": threads, "backend": backend, "repeats": repeats, "tem_con": features.name}
    text = f"{_heading(found, clips, frames, size)}\n\n{table(figures)}\n"
    yield text
    if out is not None:
        yield _write(user_path(out), text, {**found, "frames": frames, "size": size}, figures)


def measure(
    clip: Any, editors: Editors, features: FrameFeatures, repeats: int, *, simulated: bool = False
) -> Iterator[Figures]:
    """Every row that there is an Editor for on one clip (`clips.Clip`), in turns.

    Args:
        simulated: 8 bit products are; they have no time, and are computed once.
    """
    results: dict[str, EditResult] = {}
    ways = {row: way for row, way in WAYS.items() if way.editor in editors}
    timed = {row for row, way in ways.items() if way.linears is None or not simulated}
    seconds = dict.fromkeys(ways, float("inf"))
    for turn in range(repeats):
        for row, way in ways.items():
            if turn and row not in timed:
                continue
            started = time.perf_counter()
            results[row] = editors[way.editor].edit(clip.source, EditParams(clip.prompt, **way.changes))
            seconds[row] = min(seconds[row], time.perf_counter() - started)
    exact: Frames = results[EXACT].frames
    for row, result in results.items():
        yield Figures(
            row=row,
            clip=clip.name,
            seconds=seconds[row] / len(clip.source) if row in timed else None,
            speedup=seconds[EXACT] / seconds[row] if row in timed else None,
            bank_mb=result.report.bank_bytes / 1e6,
            psnr_exact_db=None if row == EXACT else psnr(result.frames, exact),
            psnr_target_db=None if clip.kind == "free" else psnr(result.frames, clip.target),
            warp_error=warp_error(result.frames, clip.flows, clip.visible),
            tem_con=tem_con(features(result.frames)),
        )


def table(figures: list[Figures]) -> str:
    """Markdown: means with 95 % intervals over clips."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in dict.fromkeys(f.row for f in figures):
        mine = [f for f in figures if f.row == row]
        cells = []
        for column in COLUMNS:
            values = [value for f in mine if (value := getattr(f, column)) is not None]
            alike = len(set(values)) == 1
            cells.append("–" if not values else f"{values[0]:.4g}" if alike else str(estimate(values)))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _backend_of(way: Way, backend: str, device: torch.device) -> dict[str, Any]:
    """What runs a way: as asked for, but that 8 bit needs a backend with steps; on a CPU nothing is compiled for it."""
    if way.linears is None:
        return {}
    if device.type == "cpu":
        return {"linears": way.linears, "backend": "compiled", "without": ("inductor",)}
    return {"linears": way.linears, "backend": "compiled" if backend == "compiled" else "cuda-graphs"}


def _heading(found: Mapping[str, Any], clips: int, frames: int, size: int) -> str:
    place = found.get("gpu") or f"{found['cpu']}, {found['threads']} thread{'s' * (found['threads'] > 1)}"
    note = "" if "CLIP" in found["tem_con"] else " (not comparable with the paper's, which is CLIP's)"
    return (
        f"{place}, backend {found['backend']}, torch {found['torch']}; {clips} clips, {frames} frames, {size}×{size}; "
        f"fastest of {found['repeats']}; means with 95 % intervals over clips; Tem-Con with {found['tem_con']}{note}"
    )


def _write(folder: Path, text: str, found: Mapping[str, Any], figures: list[Figures]) -> str:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}); name another one.") from error
    ways = {row: asdict(way) for row, way in WAYS.items()}
    data = {"machine": dict(found), "ways": ways, "figures": [asdict(f) for f in figures]}
    write_atomically(folder / "results.json", (json.dumps(data, indent=1, default=str) + "\n").encode())
    write_atomically(folder / "results.md", text.encode())
    return f"{folder / 'results.json'}, {folder / 'results.md'}: written"


def _clip_maker() -> Callable[..., Any]:
    """`clips.make_clip`, which draws with `training`: only a checkout has that."""
    with _checkout():
        maker: Callable[..., Any] = import_module("benchmarks.clips").make_clip
    return maker


@contextmanager
def _checkout() -> Iterator[None]:
    """Within it the checkout's folders can be imported by their plain names."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "training").is_dir():
        raise InputError("The clips are drawn by training/, which only a checkout has; run this in one.")
    needed = find_spec("training") is None
    sys.path += [str(root)] * needed
    try:
        yield
    finally:
        if needed:
            sys.path.remove(str(root))
