"""One job: everything that is decided before anything is computed, and what the report says afterwards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fairy.engines.engine import Usage
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.steps import STEPS
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.guidance import Guidance, make_guidance
from fairy.runtime.denoise.sampler import Schedule, make_schedule
from fairy.runtime.inputs.frames import Source, VideoInput, open_source
from fairy.runtime.inputs.inversion import INVERTIBLE
from fairy.runtime.methods import Method, find_method
from fairy.runtime.methods.fits import check_model, runs_in_parts
from fairy.runtime.methods.graphs import graphs_by_name
from fairy.runtime.plan.batches import Part
from fairy.runtime.plan.geometry import Geometry, make_geometry
from fairy.runtime.plan.order import UNITS_AT_ONCE, Order
from fairy.runtime.plan.params import EditParams
from fairy.runtime.plan.segments import Segment, frames_of_prompts, plan_segments
from fairy.runtime.plan.shots import check_detector, find_cuts
from fairy.runtime.record.journal import Journal
from fairy.runtime.record.progress import Monitor
from fairy.runtime.record.result import EditReport, installed_versions

# What depth-conditioned models are made for, where neither the user nor fairy.json says otherwise.
DEPTH_DEFAULTS: dict[str, Any] = {"num_inference_steps": 50, "sampler": "ddim", "image_guidance_scale": 1.0}


@dataclass(slots=True)
class Job:
    """What one edit does; the lower half changes while it runs.

    Attributes:
        params: every parameter filled in.
        segments: the video cut into what is edited by one instruction against its own anchors, and those into the
            parts that leave one after another. anchors, parts: those of all segments, in order; batches: how many parts
            have frames that are not anchors.
        graphs: the graphs by name, with anchors in the layers the parameters say.
        latent_shape: [channels, h, w] of one frame's latents, padded.
        initial: the caller's own initial noise [1 or frames, c, h, w], or None.
        asked_precision: of the computation; precision: the same, or float32 for the rest of a segment whose bank
            needed it.
        frames_at_once: `micro_batch`, or less from the moment the memory did not suffice.
        journal: where finished micro-batches are kept, and found, while a file is edited.
        lost_workers, redone_batches: worker processes that ended before the job did, and what others did again.
    """

    params: EditParams
    source: Source
    geometry: Geometry
    schedule: Schedule
    guidance: Guidance
    segments: tuple[Segment, ...]
    micro_batch: int
    graphs: dict[str, GraphSpec]
    latent_shape: tuple[int, int, int]
    initial: Tensor | None
    monitor: Monitor
    asked_precision: torch.dtype
    precision: torch.dtype

    frames_at_once: int
    journal: Journal | None = None
    workers: int = 1
    lost_workers: list[str] = field(default_factory=list)
    redone_batches: int = 0
    batches_done: int = 0
    segments_done: int = 0
    steps_told: int = 0
    shared_noise: dict[int, Tensor] = field(default_factory=dict)
    bank_bytes: int = 0
    fallbacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)

    anchors: tuple[int, ...] = field(init=False)
    parts: tuple[Part, ...] = field(init=False)
    batches: int = field(init=False)

    @property
    def method(self) -> Method:
        """Who reads whose keys and values, and what follows a step."""
        return find_method(self.params.method)

    @property
    def order(self) -> Order:
        """In which order the method's units are computed."""
        return self.params.order or self.method.orders[0]

    def __post_init__(self) -> None:
        self.anchors = tuple(a for segment in self.segments for a in segment.anchors)
        self.parts = tuple(part for segment in self.segments for part in segment.parts)
        self.batches = sum(1 for part in self.parts if part.frames)

    @property
    def most_anchors(self) -> int:
        """Anchors in the largest bank of the job, where its method has one."""
        carried = int(self.params.continue_look and len(self.segments) > 1)
        return max(len(segment.anchors) for segment in self.segments) + carried

    @property
    def likely_bytes(self) -> int:
        """What the edited file may take of the disk: half a bit a pixel, as at a high quality."""
        height, width = self.result_size
        return (1 << 20) + height * width * self.source.num_frames // 16

    @property
    def result_size(self) -> tuple[int, int]:
        """(height, width) of the result, in pixels."""
        return self.geometry.source if self.params.size == "source" else self.geometry.scaled

    @property
    def guided_steps(self) -> int:
        """How many steps from the first on are guided."""
        return round(float(self.params.guidance_end) * len(self.schedule))

    def tell_resumed(self) -> None:
        """Report that a micro-batch did not have to be denoised. Raises Cancelled."""
        self.batches_done += 1
        self.tell_step("frames", -1)

    def tell_step(self, stage: str, step: int) -> None:
        """Report that a denoising step of the anchors or of the current micro-batch is done. Raises Cancelled."""
        steps = len(self.schedule)
        if stage == "anchors":
            self.monitor.tell("anchors", self.segments_done * steps + step + 1, len(self.segments) * steps)
        else:
            # A batch that is computed again in float32 does not make the progress run backwards.
            self.steps_told = max(self.steps_told, self.batches_done * steps + step + 1)
            self.monitor.tell("frames", self.steps_told, self.batches * steps)

    def note_first_frame(self) -> None:
        """Remember when the first edited frames were ready."""
        self.monitor.times_ms.setdefault("first_frame", self.monitor.elapsed_ms())


def plan_job(
    checkpoint: Checkpoint,
    video: VideoInput,
    params: EditParams,
    monitor: Monitor,
    *,
    latents: Tensor | None,
    precision: torch.dtype,
    usual_batch: int | None = None,
) -> Job:
    """Look at the input and decide everything that follows. Raises InputError for whatever is impossible."""
    check_model(checkpoint, params)
    make_schedule_of(checkpoint, resolved_for(checkpoint, params))  # a wrong sampler is told before decoding
    if params.shots == "auto":
        check_detector()
    with monitor.timed("probe"):
        source = open_source(video, params, monitor)
    params = replace(params, prompts=frames_of_prompts(params, source))
    if params.shots == "auto":
        params = replace(params, shots=find_cuts(source, monitor))
    return plan_source(
        checkpoint, source, params, monitor, latents=latents, precision=precision, usual_batch=usual_batch
    )


def resolved_for(checkpoint: Checkpoint, params: EditParams) -> EditParams:
    """The parameters with all that the model recommends, or is made for, filled in."""
    usual = DEPTH_DEFAULTS if checkpoint.condition == "depth" else {}
    return params.resolved({**usual, **checkpoint.recommended})


def make_schedule_of(checkpoint: Checkpoint, params: EditParams) -> Schedule:
    """The schedule of resolved parameters."""
    exact = INVERTIBLE if checkpoint.condition == "depth" else {}
    config = {**checkpoint.scheduler_config, **exact}
    return make_schedule(str(params.sampler), config, int(params.num_inference_steps or 0))


def plan_source(
    checkpoint: Checkpoint,
    source: Source,
    params: EditParams,
    monitor: Monitor,
    *,
    latents: Tensor | None,
    precision: torch.dtype,
    usual_batch: int | None = None,
) -> Job:
    """The job of a source that was looked at, with shots and prompts as frame numbers. It reads none of its frames.

    `usual_batch`: the micro-batch where none is asked for; None = chosen from the number of anchors.
    """
    recommended_anchors = params.anchors is None and checkpoint.recommended.get("anchors") is not None
    params = resolved_for(checkpoint, params)
    if recommended_anchors and isinstance(params.anchors, int):  # a recommendation must suit short videos too
        params = replace(params, anchors=min(params.anchors, source.num_frames))
    usual = usual_batch if runs_in_parts(find_method(params.method)) else UNITS_AT_ONCE
    segments, micro_batch = plan_segments(params, source.num_frames, params.micro_batch or usual)
    sizes = {"long_side": int(params.long_side or 0), "multiple": checkpoint.size_multiple}
    even = source.video is not None and source.video.halves_colour
    geometry = make_geometry(*source.size, upscale=params.upscale, even=even, **sizes)
    latent_shape = (checkpoint.vae.config.latent_channels, *geometry.latent(checkpoint.vae_factor))
    return Job(
        params=params,
        source=source,
        geometry=geometry,
        schedule=make_schedule_of(checkpoint, params),
        guidance=_guidance(params),
        segments=segments,
        micro_batch=micro_batch,
        frames_at_once=micro_batch,
        graphs=_graphs(checkpoint, params, segments),
        latent_shape=latent_shape,
        initial=_initial_noise(latents, source.num_frames, latent_shape),
        monitor=monitor,
        asked_precision=precision,
        precision=precision,
        notes=list(source.notes),
    )


def _guidance(params: EditParams) -> Guidance:
    """The guidance of resolved parameters."""
    guidance = make_guidance(float(params.guidance_scale or 0), float(params.image_guidance_scale or 0))
    if params.guidance_end < 1.0 and guidance.branches[0] != 0:
        problem = "leaves the instruction's branch, which guidance_scale = 0 leaves out"
        end, remedy = params.guidance_end, "choose a larger guidance_scale"
        raise InputError(problem, name="guidance_end", value=end, remedy=remedy)
    return guidance


def _graphs(checkpoint: Checkpoint, params: EditParams, segments: tuple[Segment, ...]) -> dict[str, GraphSpec]:
    """The graphs of a job by name."""
    layers, method = str(params.layers), find_method(params.method)
    graphs = graph_specs(checkpoint, layers=layers)
    if runs_in_parts(method):
        return graphs
    return graphs | graphs_by_name(graphs["unet"], method, layers, {s.stop - s.start for s in segments})


def report_job(
    job: Job,
    *,
    checkpoint: Checkpoint,
    backend: str,
    usage: Usage,
    device: torch.device,
    precision: torch.dtype,
    threads: int,
) -> EditReport:
    """The report of a job that is done; `precision` is the one that was asked for, `usage` what the backend ran."""
    height, width = job.result_size
    times = {**job.monitor.times_ms, "total": job.monitor.elapsed_ms()}
    used = job.params.to_json() | {"anchors": job.anchors, "micro_batch": job.micro_batch}
    return EditReport(
        source=job.source.describe(),
        params=used | {"latents": "given" if job.initial is not None else "from the seed"},
        model=checkpoint.name,
        backend=backend,
        device=str(device),
        precision=str(precision).removeprefix("torch."),
        threads=threads,
        workers=job.workers,
        lost_workers=tuple(job.lost_workers),
        redone_batches=job.redone_batches,
        resumed_batches=0 if job.journal is None else job.journal.resumed,
        anchors=job.anchors,
        micro_batch=job.micro_batch,
        segments=tuple(
            {"start": s.start, "stop": s.stop, "prompt": s.prompt, "anchors": s.anchors} for s in job.segments
        ),
        num_frames=job.source.num_frames,
        width=width,
        height=height,
        times_ms={stage: round(ms, 1) for stage, ms in times.items()},
        bank_bytes=job.bank_bytes,
        fallbacks=tuple(dict.fromkeys([*job.fallbacks, *usage.fallbacks])),
        notes=tuple(
            dict.fromkeys(
                [
                    *_approximations(checkpoint, usage.steps, device),
                    *job.notes,
                    *(job.journal.notes if job.journal is not None else ()),
                ]
            )
        ),
        engine_digests=usage.digests,
        steps=usage.steps,
        frames_sha256=job.sha256.hexdigest(),
        versions=installed_versions(),
    )


def _approximations(checkpoint: Checkpoint, ran: Sequence[str], device: torch.device) -> list[str]:
    """What was asked of the networks that changes results, in sentences."""
    folder = checkpoint.tiny_decoder_folder
    notes = [] if folder is None else [f"approximate: pictures were made by the small decoder {folder}."]
    simulated = "; the CPU simulates it" if device.type == "cpu" else ""
    return notes + [f"approximate: {s.why}{simulated}." for s in STEPS if s.name in ran and not s.exact]


def _initial_noise(latents: Tensor | None, num_frames: int, shape: tuple[int, int, int]) -> Tensor | None:
    """The caller's noise as float32 [1 or frames, c, h, w]; a wrong shape names the right one."""
    if latents is None:
        return None
    if not isinstance(latents, Tensor) or tuple(latents.shape) not in (shape, (num_frames, *shape)):
        given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(
            f"latents are {given}, but this job needs a tensor of shape {list(shape)} for all frames "
            f"or {[num_frames, *shape]} for each."
        )
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents hold NaN or infinite values; give unit normal noise.")
    return latents.detach().float().cpu().reshape(-1, *shape)
