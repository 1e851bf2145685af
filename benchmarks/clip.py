"""`fairy bench`: a clip is edited on this machine, several times in turns, and said how fast and how good it was.

Two ways take turns: the edit as asked, and the same frame by frame (no anchors), which is what the anchors' cost and
worth are measured against. The warm-up is apart. Quality is that of the frames that were timed: the difference to the
eager reference in float32 and, for the generated clip, to its exact target and along its exact motion.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fairy.benchmarks.clip_source import INSTRUCTION, VERSION, GeneratedClip, generate_clip
from fairy.benchmarks.measures import Frames, psnr, warp_error
from fairy.benchmarks.nvml import energy_j, throttle_reasons
from fairy.benchmarks.records import Quality, Record, make_record
from fairy.benchmarks.timing import summarise
from fairy.engines.store.key import weights_digest
from fairy.export.checkpoint import Checkpoint
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.guidance import make_guidance
from fairy.runtime.device import resolve_device
from fairy.runtime.editor import Editor
from fairy.runtime.inputs.frames import open_source
from fairy.runtime.plan.params import EditParams
from fairy.runtime.record.edit_report import EditReport, EditResult
from fairy.runtime.record.progress import Monitor

STAGES = ("read", "text", "encode", "anchors", "frames", "decode")
FRAME_BY_FRAME = "frame by frame"
QUALITY_HEADS = {
    "psnr_db": "PSNR dB",
    "warp_error": "warp error 10⁻⁴",
    "psnr_to_reference_db": "PSNR to eager dB",
}
_SMALL = (6, 256)  # frames and long side of the generated clip on a CPU
_LARGE = (120, 512)  # on a GPU
_DECIDING = (
    *("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "image_guidance_scale", "sampler"),
    *("noise", "seed", "anchors", "layers", "long_side", "size"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What `fairy bench` was asked for; None means that it is chosen by the device or the model.

    Attributes:
        model: a folder or hub id; None = the embedded model.
        video: a file or folder of images; None = the generated clip.
        prompt: the instruction; None = the one whose target is known.
        frames, long_side: of the clip; of a video the first so many frames.
        steps, anchors, seed: as in `EditParams`.
        repeats: measured edits of each way.
        device, dtype, backend, threads: as for `Editor.from_pretrained`.
    """

    model: str | None = None
    video: Path | None = None
    prompt: str | None = None
    frames: int | None = None
    long_side: int | None = None
    steps: int | None = None
    anchors: int | None = None
    seed: int = 0
    repeats: int = 5
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("repeats", 1), ("long_side", 8), ("steps", 1), ("anchors", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(
                    "is not possible", name=name, value=value, remedy=f"give a whole number from {least} up"
                )
        if self.video is not None and self.prompt is None:
            raise InputError("A video of your own needs an instruction; give one with --prompt.")

    @property
    def known_target(self) -> bool:
        """Whether what the model should make of the clip is known exactly."""
        return self.video is None and self.model is None and self.prompt in (None, INSTRUCTION)


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit: its result, its wall time, the most memory it took and, where the GPU says, its energy."""

    result: EditResult
    ms: float
    peak_bytes: int
    joules: float | None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to edit the clip, and every measured edit of it."""

    name: str
    params: EditParams
    edits: tuple[Edit, ...]
    throttled: tuple[str, ...] = ()

    @property
    def report(self) -> EditReport:
        """The report of the last edit; they differ in times alone."""
        return self.edits[-1].result.report

    @property
    def frames(self) -> Frames:
        """The edited frames; every edit gives the same."""
        return self.edits[-1].result.frames


@dataclass(frozen=True, slots=True)
class Run:
    """All that was measured.

    Attributes:
        source: the frames that were edited, at the result's size.
        target: what they should have become, where that is known.
        warm_up_s: seconds of the first edits of each way, which are not counted.
    """

    request: Request
    device: torch.device
    ways: tuple[Way, ...]
    records: tuple[Record, ...]
    source: Frames
    target: Frames | None
    warm_up_s: float


def run_clip(request: Request, tell: Callable[[str], object] = lambda sentence: None) -> Run:
    """Edit, measure, compare; `tell` hears what is going on.

    Raises:
        InputError, MachineError: as `Editor.from_pretrained` and `Editor.edit`.
    """
    device = resolve_device(request.device)
    clip, frames = _clip(request, device)
    ways = _ways(request, frames)
    with _editor(request, backend=request.backend, dtype=request.dtype) as editor:
        tell(f"warming up with {len(frames)} frames of {frames.shape[2]}×{frames.shape[1]}")
        started = time.perf_counter()
        for way in ways:
            editor.edit(frames, replace(way.params, num_inference_steps=1))
        warm_up_s = time.perf_counter() - started
        measured = _in_turns(editor, frames, ways, request.repeats, device, tell)
        digests = _model_digests(editor._networks.checkpoint)
    reference = _reference(request, frames, measured, tell)
    source = {"clip": f"generated {VERSION}" if clip else "given", "sha256": _sha256(frames)}
    records = []
    for way in measured:
        quality = _quality(way, reference[way.name], clip, known_target=request.known_target)
        recipe = _recipe(way, {**source, "size": list(frames.shape)}, digests)
        name = f"clip, {way.name}, {way.report.backend} {way.report.precision}"
        timing = summarise([edit.ms for edit in way.edits], "clock", way.throttled)
        records.append(make_record(name, recipe, device, timing=timing, quality=quality, figures=_figures(way)))
    target = clip.target if clip is not None and request.known_target else None
    return Run(request, device, measured, tuple(records), frames, target, warm_up_s)


def _editor(request: Request, *, backend: str, dtype: str) -> Editor:
    return Editor.from_pretrained(
        request.model, device=request.device, dtype=dtype, backend=backend, threads=request.threads
    )


def _clip(request: Request, device: torch.device) -> tuple[GeneratedClip | None, Frames]:
    """The clip where it is generated, and the frames to edit."""
    count, side = _SMALL if device.type == "cpu" else _LARGE
    if request.video is None:
        side = request.long_side or side
        clip = generate_clip(request.frames or count, max(side * 3 // 4, 1), side)
        return clip, clip.source
    return None, _read(request.video, request.frames or count)


def _read(video: Path, count: int) -> Frames:
    """The first frames of a video, at most `count`."""
    source = open_source(video, EditParams("look"), Monitor())
    with closing(source.read(range(min(count, source.num_frames)))) as frames:
        return np.stack(list(frames))


def _ways(request: Request, frames: Frames) -> tuple[Way, ...]:
    """The edit as asked, and the same without anchors."""
    params = EditParams(
        request.prompt or INSTRUCTION,
        num_inference_steps=request.steps,
        anchors=min(3 if request.anchors is None else request.anchors, len(frames)),
        seed=request.seed,
        long_side=request.long_side or (max(frames.shape[1:3]) if request.video is None else None),
    )
    asked = Way(f"{params.anchors} anchors" if params.anchors != 1 else "1 anchor", params, ())
    if params.anchors == 0:
        return (replace(asked, name=FRAME_BY_FRAME),)
    return asked, Way(FRAME_BY_FRAME, replace(params, anchors=0), ())


def _in_turns(
    editor: Editor,
    frames: Frames,
    ways: tuple[Way, ...],
    repeats: int,
    device: torch.device,
    tell: Callable[[str], object],
) -> tuple[Way, ...]:
    """One edit of every way a round, so that drifting clocks favour none."""
    edits: dict[str, list[Edit]] = {way.name: [] for way in ways}
    throttled: set[str] = throttle_reasons(device)
    for i in range(repeats):
        for way in ways:
            edits[way.name].append(_edit(editor, frames, way.params, device))
            throttled |= throttle_reasons(device)
            tell(f"{i + 1} of {repeats}: {way.name}, {edits[way.name][-1].ms / 1e3:.2f} s")
    return tuple(replace(way, edits=tuple(edits[way.name]), throttled=tuple(sorted(throttled))) for way in ways)


def _reference(
    request: Request, frames: Frames, ways: tuple[Way, ...], tell: Callable[[str], object]
) -> dict[str, Frames]:
    """What eager in float32 makes of the clip; where that is what was timed, it is not computed again."""
    if all((way.report.backend, way.report.precision) == ("eager", "float32") for way in ways):
        return {way.name: way.frames for way in ways}
    tell("the reference: eager, float32")
    with _editor(request, backend="eager", dtype="float32") as editor:
        return {way.name: editor.edit(frames, way.params).frames for way in ways}


def _edit(editor: Editor, frames: Frames, params: EditParams, device: torch.device) -> Edit:
    before_j = energy_j(device)
    with _peak_bytes(device) as peak:
        started = time.perf_counter()
        result = editor.edit(frames, params)  # it ends with frames on the host: nothing is left to wait for
        ms = (time.perf_counter() - started) * 1e3
    after_j = energy_j(device)
    return Edit(result, ms, peak[0], None if before_j is None or after_j is None else after_j - before_j)


@contextmanager
def _peak_bytes(device: torch.device) -> Iterator[list[int]]:
    """The most memory inside the block: of tensors on the GPU, else of the process; it is there after the block."""
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # a kernel without this counts from the process's start
            Path("/proc/self/clear_refs").write_text("5")
    yield found
    if device.type == "cuda":
        found.append(torch.cuda.max_memory_allocated(device))
    else:
        lines = Path("/proc/self/status").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def _figures(way: Way) -> dict[str, Any]:
    """What the reader wants to know beside the time of the whole."""
    report, frames = way.report, len(way.frames)
    stages = {stage: _stage_ms(way, stage) for stage in STAGES}
    joules = [edit.joules for edit in way.edits if edit.joules is not None]
    return {
        "frames_per_s": frames / median(edit.ms for edit in way.edits) * 1e3,
        "runs_ms": [edit.ms for edit in way.edits],
        "stages_ms": stages,
        "ms_per_forward": (stages["anchors"] + stages["frames"]) / sample_forwards(report),
        "peak_bytes": max(edit.peak_bytes for edit in way.edits),
        "joules_per_frame": median(joules) / frames if joules else None,
        "backend": report.backend,
        "precision": report.precision,
        "frames_sha256": report.frames_sha256,
        "fallbacks": list(report.fallbacks),
    }


def _stage_ms(way: Way, stage: str) -> float:
    return median(edit.result.report.times_ms.get(stage, 0.0) for edit in way.edits)


def sample_forwards(report: EditReport) -> int:
    """How often the UNet computed one picture in one branch: steps · branches · (anchors + filled-up batches)."""
    params, anchors = report.params, len(report.anchors)
    batches = -(-(report.num_frames - anchors) // report.micro_batch)
    branches = make_guidance(params["guidance_scale"], params["image_guidance_scale"]).groups
    return int(params["num_inference_steps"]) * branches * (anchors + batches * report.micro_batch)


def _quality(way: Way, reference: Frames, clip: GeneratedClip | None, *, known_target: bool) -> dict[str, Quality]:
    """Figures of the frames that were timed; tolerances are what rounding does on another machine or batch."""
    found = {"psnr_to_reference_db": Quality(psnr(way.frames, reference), "higher", 1.0)}
    if clip is not None and clip.source.shape == way.frames.shape:
        error = warp_error(way.frames, clip.flows, clip.visible)
        found["warp_error"] = Quality(error, "lower", 0.02 * error + 0.01)
        if known_target:
            found["psnr_db"] = Quality(psnr(way.frames, clip.target), "higher", 0.05)
    return found


def _recipe(way: Way, source: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
    """What was run: the clip, the weights, every parameter that decides the result, as resolved."""
    report = way.report
    params = {name: report.params[name] for name in _DECIDING} | {"anchors": list(report.anchors)}
    return {
        "benchmark": "clip",
        "source": source,
        "model": digests,
        "params": params,
        "backend": report.backend,
        "precision": report.precision,
    }


def _model_digests(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: weights_digest(checkpoint, name) for name in ("text_encoder", "unet", "vae")}


def _sha256(frames: Frames) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


# -- the table ------------------------------------------------------------------------------------------------------

Column = Callable[[Record], str]


def columns(records: Sequence[Record]) -> dict[str, Column]:
    """What the table shows of a record, by its head; stages and quality that no record has are left out."""
    spent = [stage for stage in STAGES if any(record.figures["stages_ms"][stage] >= 0.5 for record in records)]
    stages = {f"{stage} ms": partial(_stage, stage) for stage in spent}
    known = {name for record in records for name in record.quality}
    quality = {head: partial(_quality_of, name) for name, head in QUALITY_HEADS.items() if name in known}
    return {
        "frames/s": lambda record: f"{record.figures['frames_per_s']:.3g}",
        "s a clip": lambda record: f"{_seconds(record, 'median_ms')}",
        "p20…p80": lambda record: f"{_seconds(record, 'p20_ms')}…{_seconds(record, 'p80_ms')}",
        **stages,
        "ms a forward": lambda record: f"{record.figures['ms_per_forward']:.4g}",
        "peak MiB": lambda record: f"{record.figures['peak_bytes'] / 2**20:.0f}",
        "J/frame": lambda record: _or_dash(record.figures["joules_per_frame"]),
        **quality,
    }


def table(run: Run) -> str:
    """One table: speed, memory, energy and quality of every way."""
    shown = columns(run.records)
    lines = [("", *shown)]
    for way, record in zip(run.ways, run.records, strict=True):
        lines.append((way.name, *(show(record) for show in shown.values())))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def heading(run: Run) -> str:
    """What was run, on what, in a sentence."""
    report, record = run.ways[0].report, run.records[0]
    return (
        f"{len(run.source)} frames, {report.width}×{report.height}, {report.params['num_inference_steps']} steps, "
        f"{'the embedded model' if run.request.model is None else report.model}, {report.backend} {report.precision} "
        f"on {record.hardware}; {len(run.ways[0].edits)} edits each, in turns, after a warm-up of {run.warm_up_s:.1f} s"
    )


def _stage(stage: str, record: Record) -> str:
    return f"{record.figures['stages_ms'][stage]:.0f}"


def _quality_of(name: str, record: Record) -> str:
    return f"{record.quality[name].value:.4g}" if name in record.quality else "–"


def _seconds(record: Record, which: str) -> str:
    return f"{getattr(record.timing, which) / 1e3:.3g}"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
