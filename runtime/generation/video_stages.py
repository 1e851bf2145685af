"""A generator's later stages for any video: `Interpolator` makes frames between frames, `Upscaler` more pixels.

A video is read frame by frame, its windows go to whoever computes them, and what comes of them is written: memory is
flat, no window reads across a cut, and sound, subtitles and titles go along.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.files import check_outputs, only_writer_of, user_path
from fairy.runtime.generation.cascade import Stage
from fairy.runtime.generation.clip_report import ClipReport
from fairy.runtime.generation.generator import OnProgress, make_networks, open_setup, submit_window, to_float, to_uint8
from fairy.runtime.generation.params import ClipRequest, GeneratorSetup, InterpolateParams, UpscaleParams
from fairy.runtime.generation.streams import frames_of
from fairy.runtime.generation.window_pool import HereComputer, PoolComputer, WindowComputer
from fairy.runtime.generation.windows import Window, interpolation_windows, regular_places, super_resolution_windows
from fairy.runtime.inputs.frames import Frames, Source, VideoInput, open_source
from fairy.runtime.plan.file_request import DEFAULT_CRF, check_clock
from fairy.runtime.record.edit_report import installed_versions
from fairy.runtime.record.journal import Journal, folders_of_other_containers, journal_folder
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video import Clock, VideoWriter
from fairy.runtime.video.formats import output_format

Params = TypeVar("Params", InterpolateParams, UpscaleParams)
PART = 8  # frames that are kept and written together


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's windows over the clip that it takes."""

    stage: Stage
    windows: tuple[Window, ...]


@dataclass(slots=True)
class VideoJob:
    """One video under way.

    Attributes:
        plans: the stages, in their order.
        num_frames, size: of the result; `clock`: when its frames are shown, None where the source has no clock.
    """

    source: Source
    monitor: Monitor
    params: InterpolateParams | UpscaleParams
    plans: tuple[StagePlan, ...]
    num_frames: int
    size: tuple[int, int]
    clock: Clock | None
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    journal: Journal | None = None
    sha256: Any = field(default_factory=hashlib.sha256)
    resumed_frames: int = 0


@dataclass(frozen=True, slots=True)
class VideoResult:
    """A whole video in memory: uint8 [T, height, width, 3], how it was made, and when its frames are shown."""

    frames: Frames
    report: ClipReport
    clock: Clock | None


class VideoStages(ABC, Generic[Params]):
    """What `Interpolator` and `Upscaler` share: one loaded cascade, one job at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        threads: int = 1,
        offload: bool = False,
        motion_adapter: Path | None = None,
        computer: PoolComputer | None = None,
        workers: int = 1,
    ) -> None:
        """`computer`: what computes; None = this process."""
        self._networks = make_networks(folder, dtype, offload, motion_adapter, device)
        self._computer: WindowComputer = computer or HereComputer(self._networks, threads)
        self._name, self._device, self._dtype, self._threads = name, device, dtype, threads
        self._workers = workers
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **how: Any) -> "VideoStages[Params]":
        """Load the stages of a generator.

        Args:
            model: a generator's folder, with a cascade.json; None = the one that ships with fairy.
            **how: the fields of `GeneratorSetup`: device, dtype, offload, gpus, workers, worker_timeout_s, threads.

        Raises:
            InputError: it cannot be loaded, has no such stage, or an option is not possible on this machine.
        """
        opened = open_setup(GeneratorSetup(model, **how))
        return cls(opened.folder, **opened.arguments)

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
            frames = np.concatenate(list(self._parts(job)))
            return VideoResult(frames, self._report(job), job.clock)

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
            job.journal = Journal(
                journal_folder(target), self._identity(job), others=folders_of_other_containers(target)
            )
            with job.journal.kept_unless_done(), self._writer(job, target, request.crf) as writer:
                job.journal.begin(resume=resume)
                with closing(self._parts(job)) as parts:
                    for part in parts:
                        writer.write(part)
            job.notes += writer.notes
            done = self._report(job)
        if request.report is not None:
            done.save(request.report)
        return done

    def close(self) -> None:
        """Give back memory and processes; waits for a running job. Closing again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._computer.close()

    def __enter__(self) -> "VideoStages[Params]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def _parts(self, job: VideoJob) -> Generator[Frames, None, None]:
        """The result in parts of uint8 [n, H, W, 3]; those of an interrupted job first."""
        done = 0
        while job.journal is not None and done < job.num_frames:
            kept = job.journal.load_frames(done)
            if kept is None:
                break
            done += len(kept)
            job.resumed_frames = done
            job.sha256.update(kept.tobytes())
            yield kept
        if done == job.num_frames:
            return
        with closing(self._reading(job, done)) as stream:
            while done < job.num_frames:
                part = np.stack([to_uint8(next(stream)) for _ in range(min(PART, job.num_frames - done))])
                if job.journal is not None:
                    job.journal.save_frames(done, part)
                done += len(part)
                job.sha256.update(part.tobytes())
                yield part

    def _reading(self, job: VideoJob, start: int) -> Generator[Tensor, None, None]:
        """Frames of the result from `start` on."""
        made: list[Callable[[Iterator[Tensor]], Iterator[Tensor]]] = []
        for plan in reversed(job.plans):
            submit = partial(submit_window, self._computer, plan.stage, job.seed)
            tell = partial(_tell, job.monitor, plan.stage.name, len(plan.windows))
            begin, stream = _stream_from(plan.windows, submit, start, self._computer.ahead, tell)
            made.append(stream)
            start = begin
        read = job.source.read(range(start, job.source.num_frames) if start else None)
        try:
            frames: Iterator[Tensor] = map(to_float, read)
            for stream in reversed(made):
                frames = stream(frames)
            yield from frames
        finally:
            read.close()

    def _identity(self, job: VideoJob) -> dict[str, object]:
        from fairy.runtime.plan.identity import stamps

        video = job.source.video
        path = video.path if video is not None else getattr(job.source, "path", None)
        return {
            "source": {"files": stamps(path), "first": job.source.first, "num_frames": job.source.num_frames},
            "kind": type(self).__name__,
            "params": job.params.to_json(),
            "windows": hashlib.sha256(repr([plan.windows for plan in job.plans]).encode()).hexdigest(),
            "model": stamps(self._networks.folder),
            "precision": str(self._dtype),
            "device": {"type": self._device.type, "threads": self._threads},
            "version": installed_versions(),
        }

    def _report(self, job: VideoJob) -> ClipReport:
        notes = [*job.source.notes, *job.notes, *(job.journal.notes if job.journal is not None else ())]
        return ClipReport(
            params=job.params.to_json(),
            model=self._name,
            device=str(self._device),
            precision=str(self._dtype).removeprefix("torch."),
            threads=self._threads,
            workers=self._workers,
            lost_workers=tuple(self._computer.lost),
            resumed_frames=job.resumed_frames,
            stages=tuple({"name": plan.stage.name, "windows": len(plan.windows)} for plan in job.plans),
            num_frames=job.num_frames,
            width=job.size[1],
            height=job.size[0],
            fps=None,
            times_ms={**job.monitor.times_ms, "total": job.monitor.elapsed_ms()},
            source=job.source.describe(),
            notes=tuple(dict.fromkeys(notes)),
            frames_sha256=job.sha256.hexdigest(),
            versions=installed_versions(),
        )

    @contextmanager
    def _one_job(self, monitor: Monitor) -> Iterator[Monitor]:
        with self._lock:
            if self._closed:
                raise FairyError(f"This {type(self).__name__} was closed; make another one.")
            if isinstance(self._computer, PoolComputer):
                self._computer.check = monitor.check
            yield monitor


class Interpolator(VideoStages[InterpolateParams]):
    """Makes frames between a video's frames, at any times between them; see `VideoStages.run_file`."""

    def _plan(self, source: Source, params: InterpolateParams, monitor: Monitor) -> VideoJob:
        stage = self._stages("interpolation")[0]
        cuts, notes = cuts_of(source, params.shots, monitor)
        clock = source.clock
        if clock is None and params.source_fps is not None:
            clock = Clock.constant(source.num_frames, params.source_fps)
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
        return VideoJob(source, monitor, params, plans, len(places), source.size, made, notes=notes)


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
        clock = source.clock
        if clock is None and params.source_fps is not None:
            clock = Clock.constant(frames, params.source_fps)
        return VideoJob(source, monitor, params, plans, frames, (height, width), clock, params.seed, notes)


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


def finer_clock(clock: Clock, times: int) -> Clock:
    """`times` frames for each: equally far apart between two, and the last one stays as long as its source's did."""
    fine = clock.time_base / times
    pts = clock.pts * times
    steps = np.diff(clock.pts)
    between = (pts[:-1, None] + steps[:, None] * np.arange(times)).reshape(-1)
    return Clock(np.append(between, pts[-1]), fine, clock.last_duration * times)


def places_at_rate(clock: Clock, fps: Fraction) -> tuple[tuple[Fraction, ...], Clock]:
    """Frames at a constant rate from the first one to the last one's end: their places in frames of the clip.

    A frame of the clip that is due within a thousandth of a frame of the new clock is taken as it is.
    """
    first, last = int(clock.pts[0]), int(clock.pts[-1])
    interval = 1 / (fps * clock.time_base)  # in units of the clip's clock
    count = max(1, int((clock.end - first) / interval))
    places, left = [], 0
    for number in range(count):
        time = first + number * interval
        while left + 1 < len(clock.pts) and int(clock.pts[left + 1]) <= time:
            left += 1
        if time >= last:
            places.append(Fraction(len(clock.pts) - 1))
            continue
        share = Fraction(time - int(clock.pts[left])) / int(clock.pts[left + 1] - clock.pts[left])
        near = round(share)
        places.append(Fraction(left + near) if abs(share - near) < Fraction(1, 1000) else left + share)
    start = first * clock.time_base
    base = Fraction(1, fps.numerator * start.denominator)
    pts = [int((start + number / fps) / base) for number in range(count)]
    rest = round((clock.end * clock.time_base - start - (count - 1) / fps) / base)
    return tuple(places), Clock(np.array(pts, np.int64), base, max(1, rest))


def _stream_from(
    windows: Sequence[Window], submit: Any, start: int, ahead: int, tell: Callable[[int], object]
) -> tuple[int, Callable[[Iterator[Tensor]], Iterator[Tensor]]]:
    """The first frame that must be handed in, and what makes a stream of a stream that begins there."""
    begin = next(w for w in windows if w.makes[0] <= start < w.makes[1]).reads[0]

    def stream(frames: Iterator[Tensor]) -> Iterator[Tensor]:
        return frames_of(frames, windows, submit, start=start, ahead=ahead, tell=tell)[1]

    return begin, stream


def _tell(monitor: Monitor, name: str, total: int, done: int) -> None:
    monitor.tell(name, done, total)
