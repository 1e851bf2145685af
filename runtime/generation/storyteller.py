"""One story, from entry to networks, top to bottom.

Scenes become stretches of codes (`story_plan`), made one after the other: each is filled in by the masked transformer
from its scene's text and the last codes before it, whatever scene those are of, and decoded with what the decoder keeps
of the frames before (`phenaki_networks`). Nothing is encoded again on the way: the codes that were made are the prefix
of those that follow. Finished codes are kept while a file is written, so that an interrupted job goes on with the same
bytes.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.files import check_outputs, only_writer_of, user_path
from fairy.runtime.generation.clip_report import ClipReport, ClipResult, clip_writer
from fairy.runtime.generation.clocks import places_at_rate
from fairy.runtime.generation.params import ClipRequest, StoryParams, VideoParams
from fairy.runtime.generation.phenaki_networks import PhenakiNetworks, Prompted, Sampling, make_phenaki
from fairy.runtime.generation.pictures import fitted, read_image, to_float, to_uint8
from fairy.runtime.generation.runner import CascadeRunner, ClipJob, OnProgress
from fairy.runtime.generation.story_plan import StoryPlan, plan_story
from fairy.runtime.generation.window_pool import Pending
from fairy.runtime.inputs.frames import Frames, open_source
from fairy.runtime.plan.file_request import DEFAULT_CRF
from fairy.runtime.plan.identity import stamps
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video.formats import output_format

STAGE = "story"  # what progress calls it


@dataclass(slots=True, kw_only=True)
class _StoryJob(ClipJob):
    """A story under way; `given`: the frames that it begins with or continues, [F, 3, H, W], where there are some."""

    plan: StoryPlan
    given: Tensor | None


class Storyteller(CascadeRunner[PhenakiNetworks]):
    """Makes videos of any length from a changing text with one loaded model. One job at a time; a second call waits.

    Make one with `from_pretrained`; use it as a context manager, or call `close` when done.
    """

    _kind = "storyteller"
    _make_networks = staticmethod(make_phenaki)

    @staticmethod
    def _shipped() -> Path:
        """None ships yet. Raises InputError."""
        raise InputError("is needed: none ships yet", name="model", remedy="train one (make train-phenaki) and name it")

    def resolve(self, params: StoryParams) -> StoryParams:
        """The parameters as a story uses them: for None what the model says, and scenes' lengths in frames."""
        return plan_story(self._networks.model, params).params

    def generate(
        self, params: StoryParams, *, on_progress: OnProgress | None = None, cancel: threading.Event | None = None
    ) -> ClipResult:
        """Make a story and return all of it.

        Args:
            on_progress: called with `Progress` at every stretch of codes.
            cancel: set it to stop the job at its next stretch.

        Raises:
            InputError, MachineError, NumericalError, Cancelled: each says in a sentence what to do.
        """
        with self._one_job(Monitor(on_progress, cancel)) as monitor:
            job = self._job(params, monitor)
            frames = np.concatenate(list(self._story(job)))
            return ClipResult(frames, self._told(job), self._networks.model.fps)

    def generate_file(
        self,
        out: str | Path,
        params: StoryParams,
        *,
        report: str | Path | None = None,
        crf: int = DEFAULT_CRF,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        resume: bool = False,
    ) -> ClipReport:
        """Make a story of any length into a file, in flat memory; `out` appears only when it is whole.

        Args:
            out: the file to write; its ending says the container.
            report: a JSON file for the report.
            crf: constant rate factor of the encoder, 0 (best) to 51.
            resume: go on from the codes that an interrupted job of the same into the same file had finished; it left
                them in `out` + ".job", which is removed when `out` is there.
            params, on_progress, cancel: as in `generate`.
        """
        request = ClipRequest(crf=crf, report=None if report is None else user_path(report))
        target, inputs = user_path(out), _inputs(params)
        output_format(target)
        check_outputs({"out": target, "report": request.report}, *inputs)
        with self._one_job(Monitor(on_progress, cancel)) as monitor, only_writer_of(target, request.report):
            job = self._job(params, monitor)
            journal = self._journal(target, params=job.plan.params.to_json(), inputs=[*map(stamps, inputs)])
            fps = self._networks.model.fps
            writer = partial(clip_writer, target, job.size, job.num_frames, fps, request.crf)
            self._write(job, journal, writer, partial(self._story, job), resume=resume)
            done = self._told(job)
        if request.report is not None:
            done.save(request.report)
        return done

    def _job(self, params: StoryParams, monitor: Monitor) -> _StoryJob:
        """Decide everything that follows; whatever is impossible is refused here."""
        model = self._networks.model
        given, continued = None, 0
        if params.image is not None:
            given = read_image(params.image, model.height, model.width)[None]
        if params.video is not None:
            given = self._end_of_video(user_path(params.video), monitor)
            continued = len(given)
        plan = plan_story(model, params, continued=continued)
        size = model.height, model.width
        return _StoryJob(monitor=monitor, num_frames=plan.num_frames, size=size, plan=plan, given=given)

    def _end_of_video(self, path: Path, monitor: Monitor) -> Tensor:
        """The last frames of a video at the model's rate, as many as are seen before a stretch (or fewer: 1 + 2·m)."""
        model = self._networks.model
        source = open_source(path, VideoParams(), monitor)
        if source.clock is None:
            raise InputError("has no clock", name="video", value=str(path), remedy="name a video file")
        places, _ = places_at_rate(source.clock, model.fps)
        most = 2 * model.frames_before - 1
        count = min(most, len(places) - 1 + len(places) % 2)
        numbers = [int(place) for place in places[-count:]]
        with closing(source.read(sorted(set(numbers)))) as read:
            frames = dict(zip(sorted(set(numbers)), read, strict=True))
        return torch.stack([fitted(to_float(frames[number]), model.height, model.width) for number in numbers])

    def _story(self, job: _StoryJob) -> Generator[Frames, None, None]:
        """The result in parts of uint8 [n, H, W, 3]."""
        left = job.num_frames
        for frames in self._decoded(job):
            part = np.stack([to_uint8(frame) for frame in frames[:left]])
            left -= len(part)
            job.sha256.update(part.tobytes())
            yield part

    def _decoded(self, job: _StoryJob) -> Iterator[Tensor]:
        """The frames of every stretch, float32 [F, 3, H, W]; one is decoded while the next one's codes are made."""
        plan, computer = job.plan, self._computer
        codes: deque[Tensor] = deque(maxlen=self._networks.model.frames_before)
        state = None
        if job.given is not None:
            given = computer.submit("encode", job.given).result()
            codes.extend(given)
            frames, state = computer.submit("decode", given, None).result()
            if job.plan.params.image is not None:
                yield frames
        decoding: Pending | None = None
        for number in range(len(plan.stretches)):
            making = self._making(job, number, codes)
            if decoding is not None:
                frames, state = decoding.result()
                yield frames
            made = making if isinstance(making, Tensor) else making.result()
            if job.journal is not None and making is not made:
                job.journal.save(number, made)
            codes.extend(made)
            decoding = computer.submit("decode", made, state)
            job.monitor.tell(STAGE, number + 1, len(plan.stretches))
        if decoding is not None:
            yield decoding.result()[0]

    def _making(self, job: _StoryJob, number: int, codes: deque[Tensor]) -> Tensor | Pending:
        """The codes of a stretch, which an interrupted job may have left, or whoever makes them."""
        stretch, params = job.plan.stretches[number], job.plan.params
        kept = None if job.journal is None else job.journal.load(number)
        if kept is not None:
            job.resumed_frames = min(job.num_frames, job.resumed_frames + 2 * stretch.frames - (stretch.first == 0))
            return kept.long()
        assert params.guidance_scale is not None
        assert params.num_inference_steps is not None
        assert params.temperature is not None
        before = torch.stack(list(codes)) if codes else None
        text = Prompted(self._text(job, stretch.scene), params.guidance_scale)
        key = f"{params.seed}/{STAGE}/{stretch.first}"
        sampling = Sampling(params.num_inference_steps, params.temperature, key)
        sample = partial(self._computer.submit, "sample", before, stretch.frames, text, sampling)
        return sample(len(codes) == stretch.first)

    def _text(self, job: _StoryJob, scene: int) -> Tensor:
        """The features of the negative prompt and of a scene's, [2, L, C]."""
        prompt, _ = job.plan.params.scenes[scene]
        return self._networks.encode_text([job.plan.params.negative_prompt, prompt]).cpu()

    def _told(self, job: _StoryJob) -> ClipReport:
        plan, model = job.plan, self._networks.model
        scenes = [
            {"name": prompt, "frames": frames, "stretches": sum(stretch.scene == number for stretch in plan.stretches)}
            for number, (prompt, frames) in enumerate(plan.params.scenes)
        ]
        return self._report(job, plan.params.to_json(), scenes, fps=str(model.fps))


def _inputs(params: StoryParams) -> list[Path | None]:
    return [None if path is None else user_path(path) for path in (params.image, params.video)]
