"""A generator's later stages for any video: `Interpolator` makes frames between frames, `Upscaler` more pixels.

A video is read frame by frame, its windows go to whoever computes them, and what comes of them is written: memory is
flat, no window reads across a cut, and sound, subtitles and titles go along.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.files import check_outputs, only_writer_of, user_path
from fairy.runtime.generation.cascade import Stage
from fairy.runtime.generation.clip_report import ClipReport
from fairy.runtime.generation.clocks import finer_clock, places_at_rate
from fairy.runtime.generation.latent_base import LatentNetworks
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.params import ClipRequest, InterpolateParams, UpscaleParams
from fairy.runtime.generation.pictures import to_float
from fairy.runtime.generation.runner import CascadeRunner, ClipJob, OnProgress
from fairy.runtime.generation.streams import Chain
from fairy.runtime.generation.windows import (
    StagePlan,
    interpolation_windows,
    regular_places,
    super_resolution_windows,
)
from fairy.runtime.inputs.frames import Frames, Source, VideoInput, open_source
from fairy.runtime.plan.file_request import DEFAULT_CRF, check_clock
from fairy.runtime.plan.identity import stamps
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video import Clock, VideoWriter
from fairy.runtime.video.formats import output_format

Params = TypeVar("Params", InterpolateParams, UpscaleParams)


@dataclass(slots=True, kw_only=True)
class VideoJob(ClipJob):
    """One video under way.

    Attributes:
        plans: the stages, in their order.
        clock: when the result's frames are shown, None where the source has no clock.
    """

    source: Source
    params: InterpolateParams | UpscaleParams
    plans: tuple[StagePlan, ...]
    clock: Clock | None


@dataclass(frozen=True, slots=True)
class VideoResult:
    """A whole video in memory: uint8 [T, height, width, 3], how it was made, and when its frames are shown."""

    frames: Frames
    report: ClipReport
    clock: Clock | None


class VideoStages(CascadeRunner[CascadeNetworks | LatentNetworks], ABC, Generic[Params]):
    """What `Interpolator` and `Upscaler` share."""

    @abstractmethod
    def _plan(self, source: Source, params: Params, monitor: Monitor) -> VideoJob:
        """Decide everything that follows; whatever is impossible is refused here."""

    def run(
        self,
        video: VideoInput,
        params: Params,
        *,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
    ) -> VideoResult:
        """Take a video and return all of what is made of it.

        Args:
            video: a file, a folder of images, or uint8 frames [T, H, W, 3].
            on_progress: called with `Progress` at every window.
            cancel: set it to stop the job at its next window.

        Raises:
            InputError, MachineError, NumericalError, Cancelled: each says in a sentence what to do.
        """
        with self._one_job(Monitor(on_progress, cancel)) as monitor:
            job = self._plan(open_source(video, params, monitor), params, monitor)
            frames = np.concatenate(list(self._parts(job, partial(self._frames_from, job))))
            return VideoResult(frames, self._told(job), job.clock)

    def run_file(
        self,
        video: str | Path,
        out: str | Path,
        params: Params,
        *,
        report: str | Path | None = None,
        crf: int = DEFAULT_CRF,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        resume: bool = False,
    ) -> ClipReport:
        """Take a file of any length into another, in flat memory; `out` appears only when it is whole.

        Args:
            video: a video file or a folder of images.
            out: the file to write; its ending says the container.
            report: a JSON file for the report.
            crf: constant rate factor of the encoder, 0 (best) to 51.
            resume: go on from the frames that an interrupted job of the same into the same file had finished.
            params, on_progress, cancel: as in `run`.
        """
        request = ClipRequest(crf=crf, report=None if report is None else user_path(report))
        source_path, target = user_path(video), user_path(out)
        if not source_path.exists():
            raise InputError(f"{video} does not exist; check the path.")
        output_format(target)
        check_outputs({"out": target, "report": request.report}, source_path)
        check_clock(has_clock=not source_path.is_dir(), fps=params.source_fps)
        with self._one_job(Monitor(on_progress, cancel)) as monitor, only_writer_of(target, request.report):
            job = self._plan(open_source(source_path, params, monitor), params, monitor)
            journal = self._journal(target, **self._decides(job))
            writer = partial(self._writer, job, target, request.crf)
            parts = partial(self._parts, job, partial(self._frames_from, job))
            self._write(job, journal, writer, parts, resume=resume)
            done = self._told(job)
        if request.report is not None:
            done.save(request.report)
        return done

    def _stages(self, kind: str) -> list[Stage]:
        found = [stage for stage in self._networks.cascade.stages if stage.kind == kind]
        if not found:
            raise InputError(f"The generator {self._name} has no stage of the kind {kind}; choose another model.")
        return found

    def _writer(self, job: VideoJob, target: Path, crf: int) -> VideoWriter:
        source, (height, width) = job.source, job.size
        video = source.video
        return VideoWriter(
            target,
            width=width,
            height=height,
            clock=job.clock,
            source=video,
            source_range=None if video is None else (source.first, source.first + source.num_frames),
            crf=crf,
            max_pixels=source.max_pixels,
            cancel=job.monitor.cancel,
        )

    def _frames_from(self, job: VideoJob, start: int) -> Iterator[Tensor]:
        """Frames of the result from `start` on."""
        seed = job.params.seed if isinstance(job.params, UpscaleParams) else 0
        chain = Chain(job.plans, self._computer, job.monitor, start=start, seed=seed)
        with closing(job.source.read(range(chain.begin, job.source.num_frames) if chain.begin else None)) as read:
            yield from chain.frames(map(to_float, read), one_by_one=False)

    def _decides(self, job: VideoJob) -> dict[str, object]:
        """What of the job decides the result's bytes."""
        video = job.source.video
        path = video.path if video is not None else getattr(job.source, "path", None)
        return {
            "source": {"files": stamps(path), "first": job.source.first, "num_frames": job.source.num_frames},
            "params": job.params.to_json(),
            "windows": hashlib.sha256(repr([plan.windows for plan in job.plans]).encode()).hexdigest(),
        }

    def _told(self, job: VideoJob) -> ClipReport:
        stages = [{"name": plan.stage.name, "windows": len(plan.windows)} for plan in job.plans]
        return self._report(job, job.params.to_json(), stages, source=job.source.describe())


class Interpolator(VideoStages[InterpolateParams]):
    """Makes frames between a video's frames, at any times between them; see `VideoStages.run_file`."""

    def _plan(self, source: Source, params: InterpolateParams, monitor: Monitor) -> VideoJob:
        stage = self._stages("interpolation")[0]
        cuts, notes = cuts_of(source, params.shots, monitor)
        clock = _clock_of(source, params)
        made: Clock | None
        if params.fps is not None:
            if clock is None:
                remedy = "say how many frames a second the source has (source_fps), or give times"
                raise InputError("needs a clock", name="fps", value=float(params.fps), remedy=remedy)
            places, made = places_at_rate(clock, params.fps)
        else:
            times = params.times or 2
            places = regular_places(source.num_frames, times)
            made = None if clock is None else finer_clock(clock, times)
        windows = interpolation_windows(places, source.num_frames, cuts)
        plans = (StagePlan(stage, windows),)
        return _job(source, monitor, params, plans, (len(places), source.size), made, notes)


class Upscaler(VideoStages[UpscaleParams]):
    """Makes a video's frames larger; see `VideoStages.run_file`."""

    def _plan(self, source: Source, params: UpscaleParams, monitor: Monitor) -> VideoJob:
        stages = self._stages("super_resolution")
        scales, chosen = 1, []
        for stage in stages:
            if scales < params.times:
                chosen.append(stage)
                scales *= stage.scale
        if scales != params.times:
            possible = sorted({int(np.prod([s.scale for s in stages[: i + 1]])) for i in range(len(stages))})
            remedy = f"choose one of {', '.join(map(str, possible))}"
            raise InputError("is none that the stages make", name="times", value=params.times, remedy=remedy)
        height, width = (side * params.times for side in source.size)
        if height * width > params.max_pixels:
            remedy = f"at most {params.max_pixels} pixels can be made; choose smaller times, or raise max_pixels"
            raise InputError(f"would make {width}×{height}", name="times", value=params.times, remedy=remedy)
        cuts, notes = cuts_of(source, params.shots, monitor)
        frames = source.num_frames
        plans = tuple(StagePlan(stage, super_resolution_windows(stage, frames, cuts)) for stage in chosen)
        clock = _clock_of(source, params)
        return _job(source, monitor, params, plans, (frames, (height, width)), clock, notes)


def cuts_of(source: Source, shots: Any, monitor: Monitor) -> tuple[tuple[int, ...], list[str]]:
    """Frames before which another shot begins, and what is to be said about how they were found."""
    from fairy.runtime.plan.shots import check_detector, find_cuts

    if shots == "off" or source.num_frames < 2:
        return (), []
    if isinstance(shots, tuple):
        late = [frame for frame in shots if frame >= source.num_frames]
        if late:
            remedy = f"the video has {source.num_frames} frames"
            raise InputError(f"names frame {late[0]}", name="shots", value=shots, remedy=remedy)
        return shots, []
    if shots is None:
        try:
            check_detector()
        except InputError:
            return (), ["Cuts were not looked for, which needs PySceneDetect: pip install 'fairy-runtime[shots]'."]
    return find_cuts(source, monitor), []


def _job(
    source: Source,
    monitor: Monitor,
    params: InterpolateParams | UpscaleParams,
    plans: tuple[StagePlan, ...],
    shape: tuple[int, tuple[int, int]],
    clock: Clock | None,
    notes: list[str],
) -> VideoJob:
    """A job that has not begun; `shape`: frames of the result, and their (height, width)."""
    return VideoJob(
        source=source,
        monitor=monitor,
        params=params,
        plans=plans,
        num_frames=shape[0],
        size=shape[1],
        clock=clock,
        notes=[*source.notes, *notes],
    )


def _clock_of(source: Source, params: InterpolateParams | UpscaleParams) -> Clock | None:
    """The source's own clock, or that of the rate which is said."""
    if source.clock is None and params.source_fps is not None:
        return Clock.constant(source.num_frames, params.source_fps)
    return source.clock
