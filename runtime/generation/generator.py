"""One generation, from entry to networks, top to bottom.

A caption is encoded, the base stage makes the first frames from noise, and every further stage takes the frames of the
one before in windows: more frames, then more pixels. `clip_plan` decides, `base_stage` and `networks` compute, and
`streams` hands windows over in an order that does not change what comes of them.
"""

import threading
from collections.abc import Generator as Parts
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.files import check_outputs, only_writer_of, user_path, write_picture
from fairy.runtime.generation.base_stage import run_base
from fairy.runtime.generation.cascade import Cascade
from fairy.runtime.generation.clip_plan import ClipPlan, plan_clip
from fairy.runtime.generation.clip_report import ClipReport, ClipResult, clip_writer
from fairy.runtime.generation.latent_base import LatentNetworks
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.params import ClipRequest, GenerateParams
from fairy.runtime.generation.pictures import read_image, to_uint8
from fairy.runtime.generation.runner import CascadeRunner, ClipJob, OnProgress
from fairy.runtime.generation.stage_file import read_stage, write_stage
from fairy.runtime.generation.streams import Chain
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.file_request import DEFAULT_CRF
from fairy.runtime.plan.identity import stamps
from fairy.runtime.record.edit_report import contact_sheet
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video.formats import output_format

_ACROSS = 8  # frames in a row of the preview


@dataclass(slots=True, kw_only=True)
class _GenerateJob(ClipJob):
    """A generation under way.

    Attributes:
        request: what is written beside the clip, and what it goes on from.
        image: its first frame [3, H, W]; latents: noise to begin with; where given.
    """

    plan: ClipPlan
    request: ClipRequest
    image: Tensor | None
    latents: Tensor | None


class Generator(CascadeRunner[CascadeNetworks | LatentNetworks]):
    """Makes clips from text with one loaded cascade. One job at a time; a second call waits for the first to end.

    Make one with `from_pretrained`; use it as a context manager, or call `close` when done.
    """

    @property
    def cascade(self) -> Cascade:
        """The stages that this generator has."""
        return self._networks.cascade

    def resolve(self, params: GenerateParams) -> GenerateParams:
        """The parameters as a generation uses them: for None what the cascade says."""
        return plan_clip(self.cascade, params).params

    def generate(
        self,
        params: GenerateParams,
        *,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        preview: str | Path | None = None,
        latents: Tensor | None = None,
    ) -> ClipResult:
        """Make a clip and return all of it.

        Args:
            on_progress: called with `Progress` at every step of the base stage and every window of the others.
            cancel: set it to stop the job at its next step.
            preview: a PNG or JPEG file for the base stage's frames, written before the other stages run.
            latents: unit noise that the base stage begins with, [F, C, h, w].

        Raises:
            InputError, MachineError, NumericalError, Cancelled: each says in a sentence what to do.
        """
        picture = None if preview is None else user_path(preview)
        check_outputs({"preview": picture}, _image_path(params))
        with self._one_job(Monitor(on_progress, cancel)) as monitor:
            job = self._job(params, monitor, ClipRequest(preview=picture), latents)
            frames = np.concatenate(list(self._parts(job, partial(self._frames_from, job))))
            return ClipResult(frames, self._told(job), job.plan.result.fps)

    def generate_file(
        self,
        out: str | Path,
        params: GenerateParams,
        *,
        preview: str | Path | None = None,
        keep_stage: str | Path | None = None,
        from_stage: str | Path | None = None,
        report: str | Path | None = None,
        crf: int = DEFAULT_CRF,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        resume: bool = False,
    ) -> ClipReport:
        """Make a clip into a file, which appears only when it is whole.

        Args:
            out: the file to write; its ending says the container.
            keep_stage: a .safetensors file for the frames of the last stage that runs (see `GenerateParams.stages`).
            from_stage: such a file, whose frames are gone on from instead of computing them: the same bytes come of it.
            report: a JSON file for the report.
            crf: constant rate factor of the encoder, 0 (best) to 51.
            resume: go on from the frames that an interrupted job of the same into the same file had finished; it left
                them in `out` + ".job", which is removed when `out` is there.
            params, preview, on_progress, cancel: as in `generate`.
        """
        request = ClipRequest(
            crf=crf,
            preview=_path(preview),
            keep_stage=_path(keep_stage),
            from_stage=_path(from_stage),
            report=_path(report),
        )
        target = user_path(out)
        output_format(target)
        outputs = {"preview": request.preview, "keep_stage": request.keep_stage, "report": request.report}
        check_outputs({"out": target, **outputs}, request.from_stage or _image_path(params))
        with (
            self._one_job(Monitor(on_progress, cancel)) as monitor,
            only_writer_of(target, *outputs.values()),
        ):
            job = self._job(params, monitor, request)
            shape = job.plan.result
            journal = self._journal(
                target,
                params=job.plan.params.to_json(),
                image=stamps(_image_path(params)),
                from_stage=stamps(request.from_stage),
            )
            writer = partial(clip_writer, target, job.size, shape.frames, shape.fps, request.crf)
            self._write(job, journal, writer, partial(self._all_parts, job), resume=resume)
            done = self._told(job)
        if request.report is not None:
            done.save(request.report)
        return done

    def _job(
        self, params: GenerateParams, monitor: Monitor, request: ClipRequest, latents: Tensor | None = None
    ) -> _GenerateJob:
        """Decide everything that follows; whatever is impossible is refused here."""
        plan = plan_clip(self.cascade, params)
        if request.from_stage is not None:
            if params.image is not None:
                remedy = "leave it out: the frames that are gone on from are made already"
                raise InputError("is of no use with --from", name="image", value=str(params.image), remedy=remedy)
            read_stage(request.from_stage, plan.stages, plan.shapes)
        base, result = plan.shapes[0], plan.result
        image = None if params.image is None else read_image(params.image, base.height, base.width)
        return _GenerateJob(
            monitor=monitor,
            num_frames=result.frames,
            size=(result.height, result.width),
            plan=plan,
            request=request,
            image=image,
            latents=latents,
        )

    def _all_parts(self, job: _GenerateJob) -> Parts[Frames, None, None]:
        """The result in parts; a stage that is to be kept is computed even where an interrupted job left them all."""
        yield from self._parts(job, partial(self._frames_from, job))
        if job.request.keep_stage is not None and job.resumed_frames == job.num_frames:
            self._frames_from(job, 0)

    def _frames_from(self, job: _GenerateJob, start: int) -> Iterator[Tensor]:
        """Frames of the last stage that runs, from `start` on."""
        params, plan = job.plan.params, job.plan
        text = self._networks.encode_text([params.negative_prompt, params.prompt]).cpu()
        if job.request.from_stage is None:
            done, first = 0, self._base(job, text)
        else:
            done, first = read_stage(job.request.from_stage, plan.stages, plan.shapes)
        if job.request.preview is not None:
            pictures = [to_uint8(frame) for frame in first]
            rows = [pictures[i : i + _ACROSS] for i in range(0, len(pictures), _ACROSS)]
            write_picture(job.request.preview, contact_sheet(rows))
        keep = job.request.keep_stage
        begin = start if keep is None else 0  # a stage is kept whole
        chain = Chain(plan.later[done:], self._computer, job.monitor, start=begin, seed=params.seed, text_2LC=text)
        frames = chain.frames(iter(first[chain.begin :]), one_by_one=self._setup.offload)
        if keep is None:
            return frames
        whole = torch.stack(list(frames))  # all are computed and written for later before the first is handed on
        write_stage(keep, plan.stages[-1], plan.shapes[-1], whole)
        return iter(whole[start:])

    def _base(self, job: _GenerateJob, text: Tensor) -> Tensor:
        """The base stage's frames, which an interrupted job may have left."""
        kept = None if job.journal is None else job.journal.load_base()
        if kept is not None:
            return kept
        params, stage, shape = job.plan.params, job.plan.stages[0], job.plan.shapes[0]
        with job.monitor.timed(stage.name):
            made = run_base(
                stage,
                shape.frames,
                float(shape.fps),
                text,
                self._computer,
                seed=params.seed,
                image=job.image,
                tell=partial(job.monitor.tell, stage.name),
                latents=job.latents,
            )
        if job.journal is not None:
            job.journal.save_base(made)
        return made

    def _told(self, job: _GenerateJob) -> ClipReport:
        plan = job.plan
        stages = [
            {"name": s.name, "frames": m.frames, "height": m.height, "width": m.width, "fps": str(m.fps)}
            for s, m in zip(plan.stages, plan.shapes, strict=True)
        ]
        return self._report(job, plan.params.to_json(), stages, fps=str(plan.result.fps))


def _image_path(params: GenerateParams) -> Path | None:
    return None if params.image is None else user_path(params.image)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else user_path(path)
