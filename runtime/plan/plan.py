"""One edit's plan: everything that is decided before anything is computed."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec
from fairy.export.model import EditModel
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.guidance import Guidance, make_guidance
from fairy.runtime.denoise.sampler import Schedule, make_schedule, without_first
from fairy.runtime.inputs.companions import Companion, open_companion
from fairy.runtime.inputs.frames import Source, VideoInput, open_source
from fairy.runtime.inputs.inversion import INVERTIBLE
from fairy.runtime.inputs.looks import check_looks
from fairy.runtime.inputs.masks import Mask, open_mask
from fairy.runtime.inputs.segmenter import Segmenter, masks_of, pictures_in
from fairy.runtime.methods import Method, find_method
from fairy.runtime.methods.fits import check_model, runs_in_parts
from fairy.runtime.methods.method_graphs import graphs_by_name
from fairy.runtime.plan.batches import Part
from fairy.runtime.plan.controls import ControlUse, check_segmenter, control_uses, kinds_of, style_of
from fairy.runtime.plan.geometry import Geometry, make_geometry
from fairy.runtime.plan.order import UNITS_AT_ONCE, Order
from fairy.runtime.plan.params import MODEL_OPTIONS, EditParams
from fairy.runtime.plan.segments import Segment, first_step, frames_of_prompts, plan_segments
from fairy.runtime.plan.shots import check_detector, find_cuts
from fairy.runtime.record.progress import Monitor

_SOME_LATENTS = (64, 64)  # a size, where only the names are checked


@dataclass(frozen=True, slots=True)
class Plan:
    """What one edit will do.

    Attributes:
        params: every parameter filled in.
        segments: the video cut into what is edited by one instruction against its own anchors, and those into the
            parts that leave one after another.
        micro_batch: frames denoised at once.
        graphs: the graphs by name, with anchors in the layers the parameters say.
        latent_shape: [channels, h, w] of one frame's latents, padded.
        initial: the caller's own initial noise [1 or frames, c, h, w], or None.
        precision: of the computation, as it was asked for.
        mask: which pixels of which frame are edited; None = all, and in a worker, whom masks reach with their frames.
        controls: ControlNets and adapters that add something.
        style: a picture that is a prompt, and how much of it.
        given: what of that they see the user brings, in their order; in a worker none, as of masks.
        text_sees: whether the model's text is encoded together with a picture.
    """

    params: EditParams
    source: Source
    geometry: Geometry
    schedule: Schedule
    guidance: Guidance
    segments: tuple[Segment, ...]
    micro_batch: int
    graphs: Mapping[str, GraphSpec]
    latent_shape: tuple[int, int, int]
    initial: Tensor | None
    precision: torch.dtype
    mask: Mask | None = None
    controls: tuple[ControlUse, ...] = ()
    given: tuple[Companion, ...] = ()
    style: tuple[Path, float] | None = None
    text_sees: bool = False

    def text_of(self, segment: Segment) -> Literal["nothing", "shot", "anchor", "frame"]:
        """Which picture the instruction of a segment is encoded with; see `fairy.runtime.inputs.texts`."""
        if not self.text_sees:
            return "nothing"
        return (self.params.text_picture or "shot") if segment.anchors else "frame"

    @property
    def method(self) -> Method:
        """Who reads whose keys and values, and what follows a step."""
        return find_method(self.params.method)

    @property
    def order(self) -> Order:
        """In which order the method's units are computed."""
        return self.params.order or self.method.orders[0]

    @property
    def anchors(self) -> tuple[int, ...]:
        """Those of all segments, in order."""
        return tuple(a for segment in self.segments for a in segment.anchors)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those of all segments, in order."""
        return tuple(part for segment in self.segments for part in segment.parts)

    @property
    def batches(self) -> int:
        """How many parts have frames that are not anchors."""
        return sum(1 for segment in self.segments for part in segment.parts if part.frames)

    @property
    def most_anchors(self) -> int:
        """Anchors in the largest bank, where the method has one."""
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
    def channels(self) -> int:
        """Of a frame as it is handed on: its colours and, where there is one, its mask, then what controls see."""
        given = sum(1 for use in self.controls if use.channel is not None)
        return (4 if self.params.masked else 3) + 3 * given

    @property
    def guided_steps(self) -> int:
        """How many of the schedule's steps from the first on are guided."""
        whole = len(self.schedule) + self.schedule.skipped
        return max(0, round(float(self.params.guidance_end) * whole) - self.schedule.skipped)

    @property
    def keeps(self) -> bool:
        """Whether something of the frames is kept: not every pixel is edited in every step."""
        weaker = any(min(segment.strengths) < 1.0 for segment in self.segments)
        return self.params.masked or bool(self.params.anchor_images) or weaker

    @property
    def alike(self) -> bool:
        """Whether all frames begin with the same noise and nothing else."""
        one_noise = self.params.noise == "shared" and (self.initial is None or len(self.initial) == 1)
        whole = all(min(segment.strengths) == 1.0 for segment in self.segments)
        return one_noise and whole and not self.params.anchor_images and not self.controls

    def begins_at(self, strength: float) -> int:
        """The step of the schedule at which frames are edited first; the number of steps = never."""
        skipped = self.schedule.skipped
        return first_step(strength, len(self.schedule) + skipped) - skipped


def plan_edit(
    checkpoint: EditModel,
    video: VideoInput,
    params: EditParams,
    monitor: Monitor,
    *,
    latents: Tensor | None,
    precision: torch.dtype,
    usual_batch: int | None = None,
    segmenter: Segmenter | None = None,
) -> Plan:
    """Look at the input and decide everything that follows. Raises InputError for whatever is impossible."""
    check_model(checkpoint, params)
    control_uses(checkpoint, params)
    style_of(checkpoint, params)
    check_segmenter(params.mask_from, known=segmenter is not None)
    make_schedule_of(checkpoint, resolved_for(checkpoint, params))  # a wrong sampler is told before decoding
    if params.shots == "auto":
        check_detector()
    with monitor.timed("probe"):
        source = open_source(video, params, monitor)
    params = replace(params, prompts=frames_of_prompts(params, source))
    if params.shots == "auto":
        params = replace(params, shots=find_cuts(source, monitor))
    plan = plan_source(checkpoint, source, params, latents=latents, precision=precision, usual_batch=usual_batch)
    check_looks(params, source.size)
    with monitor.timed("probe"):
        given = [use.sees for use in plan.controls if use.channel is not None]
        plan = replace(plan, given=tuple(open_companion("control", path, source, monitor) for path in given))
    mask = _mask(params, source, monitor, segmenter)
    return plan if mask is None else replace(plan, mask=mask)


def _mask(params: EditParams, source: Source, monitor: Monitor, segmenter: Segmenter | None) -> Mask | None:
    """The mask of a source that was looked at: the user's, or of what is named."""
    if params.mask_from is not None:
        assert segmenter is not None
        made = masks_of(params.mask_from, source, segmenter, monitor)
        mask = open_mask(pictures_in(made), source, params.mask_feather, monitor)
        weakref.finalize(mask.pictures.moving, made.close)  # they are there for as long as they may be read
        return mask
    if params.mask is None:
        return None
    with monitor.timed("probe"):
        return open_mask(params.mask, source, params.mask_feather, monitor)


def resolved_for(checkpoint: EditModel, params: EditParams) -> EditParams:
    """The parameters with all that the model recommends, or is made for, filled in."""
    return params.resolved({**checkpoint.usual, **checkpoint.recommended})


def make_schedule_of(
    checkpoint: EditModel, params: EditParams, latent_size: tuple[int, int] = _SOME_LATENTS
) -> Schedule:
    """The schedule of resolved parameters, for latents of a size (h, w), on which it may depend."""
    exact = INVERTIBLE if checkpoint.condition == "depth" else {}
    config, steps = {**checkpoint.scheduler_config, **exact}, int(params.num_inference_steps or 0)
    return make_schedule(str(params.sampler), config, steps, shift=checkpoint.flow_shift(latent_size, steps))


def plan_source(
    checkpoint: EditModel,
    source: Source,
    params: EditParams,
    *,
    latents: Tensor | None,
    precision: torch.dtype,
    usual_batch: int | None = None,
) -> Plan:
    """The plan of a source that was looked at, with shots and prompts as frame numbers. It reads none of its frames.

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
    controls, style = control_uses(checkpoint, params), style_of(checkpoint, params)
    latent_shape = (checkpoint.latent_channels, *geometry.latent(checkpoint.vae_factor))
    return Plan(
        params=params,
        source=source,
        geometry=geometry,
        schedule=_from_first_step(make_schedule_of(checkpoint, params, latent_shape[1:]), segments),
        guidance=_guidance(params),
        segments=segments,
        micro_batch=micro_batch,
        graphs=_graphs(checkpoint, params, segments, controls, styles=style is not None),
        latent_shape=latent_shape,
        initial=_initial_noise(latents, source.num_frames, latent_shape),
        precision=precision,
        controls=controls,
        style=style,
        text_sees=checkpoint.text_sees,
    )


def _from_first_step(schedule: Schedule, segments: tuple[Segment, ...]) -> Schedule:
    """The schedule from the first step at which anything is edited, or else from the last."""
    first = first_step(max(max(segment.strengths) for segment in segments), len(schedule))
    return without_first(schedule, min(first, len(schedule) - 1)) if first else schedule


def _guidance(params: EditParams) -> Guidance:
    """The guidance of resolved parameters."""
    scales = float(params.guidance_scale or 0), float(params.image_guidance_scale or 0)
    guidance = make_guidance(*scales, params.guidance_low, params.guidance_high_steps)
    if params.guidance_end < 1.0 and guidance.branches[0] != 0:
        problem = "leaves the instruction's branch, which guidance_scale = 0 leaves out"
        end, remedy = params.guidance_end, "choose a larger guidance_scale"
        raise InputError(problem, name="guidance_end", value=end, remedy=remedy)
    return guidance


def _graphs(
    checkpoint: EditModel,
    params: EditParams,
    segments: tuple[Segment, ...],
    controls: tuple[ControlUse, ...],
    *,
    styles: bool,
) -> dict[str, GraphSpec]:
    """The graphs by name; the network's take what controls add and a picture's tokens, where there are some."""
    graphs, kinds = _plain_graphs(checkpoint, params, segments), kinds_of(controls)
    if not kinds and not styles:
        return graphs
    return {
        name: checkpoint.guided(graph, kinds, styled=styles) if graph.layers else graph
        for name, graph in graphs.items()
    }


def _plain_graphs(checkpoint: EditModel, params: EditParams, segments: tuple[Segment, ...]) -> dict[str, GraphSpec]:
    layers, method = str(params.layers), find_method(params.method)
    how = {name: value for name in MODEL_OPTIONS if (value := getattr(params, name)) is not None}
    if checkpoint.text_sees and not all(segment.anchors for segment in segments):
        how["text_picture"] = "frame"
    graphs = checkpoint.graphs(layers=layers, **how)
    if runs_in_parts(method):
        return graphs
    return graphs | graphs_by_name(graphs["unet"], method, layers, {s.stop - s.start for s in segments})


def _initial_noise(latents: Tensor | None, num_frames: int, shape: tuple[int, int, int]) -> Tensor | None:
    """The caller's noise as float32 [1 or frames, c, h, w]; a wrong shape names the right one."""
    if latents is None:
        return None
    if not isinstance(latents, Tensor) or tuple(latents.shape) not in (shape, (num_frames, *shape)):
        given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(
            f"latents are {given}, but this edit needs a tensor of shape {list(shape)} for all frames "
            f"or {[num_frames, *shape]} for each."
        )
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents hold NaN or infinite values; give unit normal noise.")
    return latents.detach().float().cpu().reshape(-1, *shape)
