"""One generation, from entry to networks, top to bottom.

A caption is encoded, the base stage makes the first frames from noise, and every further stage takes the frames of the
one before in windows: more frames, then more pixels. `plan_clip` decides, `base_stage` and `networks` compute, and
`streams` hands windows over in an order that does not change what comes of them.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.device import resolve_device, resolve_dtype, worker_devices
from fairy.runtime.files import check_outputs, only_writer_of, user_path, write_picture
from fairy.runtime.generation.base_stage import run_base
from fairy.runtime.generation.cascade import Cascade, ClipShape, Stage
from fairy.runtime.generation.clip_report import ClipReport, ClipResult, clip_writer
from fairy.runtime.generation.latent_base import LatentNetworks, is_latent
from fairy.runtime.generation.networks import CascadeNetworks, Prompted
from fairy.runtime.generation.params import ClipRequest, GenerateParams, GeneratorSetup
from fairy.runtime.generation.streams import frames_of
from fairy.runtime.generation.window_pool import HereComputer, PoolComputer, WindowComputer
from fairy.runtime.generation.windows import (
    Window,
    interpolation_windows,
    regular_places,
    super_resolution_windows,
)
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.models import embedded_generator
from fairy.runtime.plan.file_request import DEFAULT_CRF
from fairy.runtime.record.edit_report import contact_sheet, installed_versions
from fairy.runtime.record.journal import Journal, folders_of_other_containers, journal_folder
from fairy.runtime.record.progress import Monitor, Progress
from fairy.runtime.video.formats import output_format

OnProgress = Callable[[Progress], object]
PART = 8  # frames that are kept, written and told together
_MOST_TIMES = 32
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Everything that is decided before a network runs.

    Attributes:
        params: with every None filled in.
        stages, shapes: those that run, and what each makes; the result is the first `num_frames` of the last one's.
    """

    params: GenerateParams
    stages: tuple[Stage, ...]
    shapes: tuple[ClipShape, ...]
    num_frames: int

    @property
    def result(self) -> ClipShape:
        return replace(self.shapes[-1], frames=self.num_frames)

    def windows(self, index: int) -> tuple[Window, ...]:
        """The windows of a stage after the base stage."""
        stage, taken = self.stages[index], self.shapes[index - 1]
        if stage.kind == "interpolation":
            return interpolation_windows(regular_places(taken.frames, stage.times), taken.frames)
        return super_resolution_windows(stage, taken.frames)


def plan_clip(cascade: Cascade, params: GenerateParams) -> ClipPlan:
    """What the stages will make. Raises InputError where the cascade cannot make what is asked for."""
    stages = _stages_for_size(cascade, params.size)
    usual = cascade.shapes[-1]
    fps = params.fps or usual.fps
    stages = _stages_for_rate(stages, fps)
    times = np.prod([stage.times for stage in stages], dtype=int)
    frames = params.num_frames or usual.frames
    base_frames = -(-(frames - 1) // int(times)) + 1
    base = stages[0]
    shapes = Cascade(stages).shapes_from(ClipShape(base_frames, base.height, base.width, fps / int(times)))
    given: dict[str, Any] = {
        "num_frames": frames,
        "fps": fps,
        "size": (shapes[-1].width, shapes[-1].height),
        "num_inference_steps": params.num_inference_steps or base.num_inference_steps,
        "guidance_scale": base.guidance_scale if params.guidance_scale is None else params.guidance_scale,
    }
    return ClipPlan(replace(params, **given), stages, shapes, frames)


def _stages_for_size(cascade: Cascade, size: int | tuple[int, int] | None) -> tuple[Stage, ...]:
    """The stages up to the size that is asked for, or the base stage at that size where it is free to choose."""
    if size is None:
        return cascade.stages
    width, height = size if isinstance(size, tuple) else (size, size)
    sizes, base = [(shape.width, shape.height) for shape in cascade.shapes], cascade.base
    if (width, height) in sizes:
        small = zip(cascade.stages, sizes, strict=True)
        return tuple(stage for stage, made in small if stage.kind != "super_resolution" or made <= (width, height))
    if base.multiple and not (width % base.multiple or height % base.multiple):
        free = replace(base, width=width, height=height)
        return (free, *(stage for stage in cascade.stages[1:] if stage.kind != "super_resolution"))
    known = ", ".join(f"{w}x{h}" for w, h in dict.fromkeys(sizes))
    others = f", or multiples of {base.multiple}" if base.multiple else ""
    remedy = f"choose one of {known}{others}, or use fairy upscale on the result"
    raise InputError("is none that the stages make", name="size", value=size, remedy=remedy)


def _stages_for_rate(stages: tuple[Stage, ...], fps: Fraction) -> tuple[Stage, ...]:
    """The stages with as many frames between as a rate needs; a cascade with several such stages keeps its own."""
    between = [stage for stage in stages if stage.kind == "interpolation"]
    if len(between) != 1:
        return stages
    times = max(1, round(fps / Fraction(stages[0].fps)))
    if times > _MOST_TIMES:
        remedy = f"choose at most {_MOST_TIMES * stages[0].fps:g}, or use fairy interpolate on the result"
        raise InputError("is more than can be made", name="fps", value=float(fps), remedy=remedy)
    made = (replace(stage, times=times) if stage is between[0] else stage for stage in stages)
    return tuple(stage for stage in made if stage.kind != "interpolation" or stage.times > 1)


@dataclass(slots=True)
class _Job:
    """One generation under way."""

    plan: ClipPlan
    monitor: Monitor
    preview: Path | None = None
    journal: Journal | None = None
    sha256: Any = field(default_factory=hashlib.sha256)
    resumed_frames: int = 0


class Generator:
    """Makes clips from text with one loaded cascade. One job at a time; a second call waits for the first to end.

    Make one with `from_pretrained`; use it as a context manager, or call `close` when done.
    """

    def __init__(
        self, folder: Path, *, name: str, device: torch.device, dtype: torch.dtype, threads: int = 1,
        offload: bool = False, motion_adapter: Path | None = None, computer: PoolComputer | None = None,
        workers: int = 1,
    ) -> None:  # fmt: skip
        """`computer`: what computes; None = this process."""
        self._networks = make_networks(folder, dtype, offload, motion_adapter, device)
        self._computer: WindowComputer = computer or HereComputer(self._networks, threads)
        self._name, self._device, self._dtype, self._threads = name, device, dtype, threads
        self._offload, self._workers = offload, workers
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **how: Any) -> "Generator":
        """Load a generator.

        Args:
            model: a generator's folder, with a cascade.json; None = the one that ships with fairy.
            **how: the fields of `GeneratorSetup`: device, dtype, offload, gpus, workers, worker_timeout_s, threads.

        Raises:
            InputError: the generator cannot be loaded, or an option is not possible on this machine.
        """
        opened = open_setup(GeneratorSetup(model, **how))
        return cls(opened.folder, **opened.arguments)

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
            job = _Job(plan_clip(self.cascade, params), monitor, picture)
            frames = np.concatenate(list(self._parts(job, latents)))
            return ClipResult(frames, self._report(job), job.plan.result.fps)

    def generate_file(
        self,
        out: str | Path,
        params: GenerateParams,
        *,
        preview: str | Path | None = None,
        report: str | Path | None = None,
        crf: int = DEFAULT_CRF,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        resume: bool = False,
    ) -> ClipReport:
        """Make a clip into a file, which appears only when it is whole.

        Args:
            out: the file to write; its ending says the container.
            report: a JSON file for the report.
            crf: constant rate factor of the encoder, 0 (best) to 51.
            resume: go on from the frames that an interrupted job of the same into the same file had finished; it left
                them in `out` + ".job", which is removed when `out` is there.
            params, preview, on_progress, cancel: as in `generate`.
        """
        request = ClipRequest(crf=crf, preview=_path(preview), report=_path(report))
        target = user_path(out)
        output_format(target)
        check_outputs({"out": target, "preview": request.preview, "report": request.report}, _image_path(params))
        with (
            self._one_job(Monitor(on_progress, cancel)) as monitor,
            only_writer_of(target, request.preview, request.report),
        ):
            job = _Job(plan_clip(self.cascade, params), monitor, request.preview)
            job.journal = Journal(
                journal_folder(target), self._identity(job), others=folders_of_other_containers(target)
            )
            shape = job.plan.result
            with job.journal.kept_unless_done(), ExitStack() as stack:
                writer = stack.enter_context(
                    clip_writer(target, (shape.height, shape.width), shape.frames, shape.fps, request.crf)
                )
                job.journal.begin(resume=resume)
                for part in self._parts(job):
                    writer.write(part)
                stack.close()
            done = self._report(job, notes=writer.notes)
        if request.report is not None:
            done.save(request.report)
        return done

    def close(self) -> None:
        """Give back memory and processes; waits for a running job. Closing again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._computer.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parts(self, job: _Job, latents: Tensor | None = None) -> Iterator[Frames]:
        """The result in parts of uint8 [n, H, W, 3]; those of an interrupted job first."""
        frames, done = job.plan.num_frames, 0
        while job.journal is not None and done < frames and (kept := job.journal.load_frames(done)) is not None:
            done += len(kept)
            job.resumed_frames = done
            job.sha256.update(kept.tobytes())
            yield kept
        if done == frames:
            return
        stream = self._stream(job, done, latents)
        while done < frames:
            part = np.stack([to_uint8(next(stream)) for _ in range(min(PART, frames - done))])
            if job.journal is not None:
                job.journal.save_frames(done, part)
            done += len(part)
            job.sha256.update(part.tobytes())
            yield part

    def _stream(self, job: _Job, start: int, latents: Tensor | None) -> Iterator[Tensor]:
        """Frames of the last stage from `start` on."""
        plan, monitor = job.plan, job.monitor
        streams: list[tuple[int, Callable[[Iterator[Tensor]], Iterator[Tensor]]]] = []
        for index in reversed(range(1, len(plan.stages))):
            windows, stage = plan.windows(index), plan.stages[index]
            submit = partial(submit_window, self._computer, stage, plan.params.seed)
            tell = partial(_tell, monitor, stage.name, len(windows))
            needed = windows[_at(windows, start)].reads[0]
            streams.append((start, partial(_stage_stream, windows=windows, submit=submit, start=start,
                                           ahead=self._computer.ahead, tell=tell)))  # fmt: skip
            start = needed
        made: Iterator[Tensor] = iter(self._base(job, latents)[start:])
        for _, stage_stream in reversed(streams):
            made = stage_stream(made)
            if self._offload:
                made = iter(list(made))
        return made

    def _base(self, job: _Job, latents: Tensor | None) -> Tensor:
        """The base stage's frames, which an interrupted job may have left."""
        plan, monitor, shape = job.plan, job.monitor, job.plan.shapes[0]
        kept = None if job.journal is None else job.journal.load_base()
        if kept is not None:
            return kept
        params = plan.params
        if params.image is not None and plan.stages[0].factor > 1:
            raise InputError("is for generators of pixels", name="image", value=params.image, remedy="leave it out")
        with monitor.timed(plan.stages[0].name):
            features = self._networks.encode_text([params.negative_prompt, params.prompt]).cpu()
            assert params.guidance_scale is not None
            assert params.num_inference_steps is not None
            made = run_base(
                plan.stages[0],
                shape.frames,
                float(shape.fps),
                Prompted(features, params.guidance_scale),
                self._computer,
                seed=params.seed,
                steps=params.num_inference_steps,
                image=None if params.image is None else read_image(params.image, shape.height, shape.width),
                tell=lambda done, total: monitor.tell(plan.stages[0].name, done, total),
                latents=latents,
            )
        if job.journal is not None:
            job.journal.save_base(made)
        if job.preview is not None:
            pictures = [to_uint8(frame) for frame in made]
            write_picture(job.preview, contact_sheet([pictures[i : i + 8] for i in range(0, len(pictures), 8)]))
        return made

    def _identity(self, job: _Job) -> dict[str, object]:
        from fairy.runtime.plan.identity import stamps

        params = job.plan.params
        return {
            "params": params.to_json(),
            "image": stamps(_image_path(params)),
            "model": stamps(self._networks.folder),
            "precision": str(self._dtype),
            "device": {"type": self._device.type, "threads": self._threads},
            "version": installed_versions(),
        }

    def _report(self, job: _Job, notes: Sequence[str] = ()) -> ClipReport:
        shape = job.plan.result
        stages = [
            {"name": s.name, "frames": m.frames, "height": m.height, "width": m.width, "fps": str(m.fps)}
            for s, m in zip(job.plan.stages, job.plan.shapes, strict=True)
        ]
        return ClipReport(
            params=job.plan.params.to_json(),
            model=self._name,
            device=str(self._device),
            precision=str(self._dtype).removeprefix("torch."),
            threads=self._threads,
            workers=self._workers,
            lost_workers=tuple(self._computer.lost),
            resumed_frames=job.resumed_frames,
            stages=tuple(stages),
            num_frames=shape.frames,
            width=shape.width,
            height=shape.height,
            fps=str(shape.fps),
            times_ms={**job.monitor.times_ms, "total": job.monitor.elapsed_ms()},
            source={},
            notes=(*notes, *(job.journal.notes if job.journal is not None else ())),
            frames_sha256=job.sha256.hexdigest(),
            versions=installed_versions(),
        )

    @contextmanager
    def _one_job(self, monitor: Monitor) -> Iterator[Monitor]:
        with self._lock:
            if self._closed:
                raise FairyError("This Generator was closed; make another one.")
            if isinstance(self._computer, PoolComputer):
                self._computer.check = monitor.check
            yield monitor


@dataclass(frozen=True, slots=True)
class Opened:
    """Where a generator lies, and the arguments of `Generator`."""

    folder: Path
    arguments: Mapping[str, Any]


def open_setup(setup: GeneratorSetup) -> Opened:
    """Find a generator's folder and the devices that are to compute. Raises InputError."""
    folder = embedded_generator() if setup.model is None else user_path(setup.model)
    adapter = None if setup.motion_adapter is None else user_path(setup.motion_adapter)
    for what, where in (("generator", folder), ("motion adapter", adapter)):
        if where is not None and not where.is_dir():
            raise InputError(f"The {what} {str(where)!r} is no folder; name one that holds its files.")
    device = resolve_device(setup.device)
    dtype = resolve_dtype(setup.dtype, device)
    make_networks(folder, dtype, setup.offload, adapter, torch.device("cpu"))  # refuses what it cannot be
    devices = worker_devices(device, setup.gpus, setup.workers)
    computer = None
    if len(devices) > 1:
        make = partial(make_networks, folder, dtype, setup.offload, adapter)
        computer = PoolComputer(make, devices, threads=setup.threads, timeout_s=setup.worker_timeout_s)
    name = "fairy-generator" if setup.model is None else str(setup.model)
    how = {"name": name, "device": device, "dtype": dtype, "threads": setup.threads, "offload": setup.offload}
    return Opened(folder, how | {"motion_adapter": adapter, "computer": computer, "workers": len(devices)})


def make_networks(
    folder: Path, dtype: torch.dtype, offload: bool, motion_adapter: Path | None, device: torch.device
) -> CascadeNetworks | LatentNetworks:
    """The networks of a folder, here or in a worker; none is loaded yet."""
    if is_latent(folder):
        return LatentNetworks(folder, device, dtype, motion_adapter=motion_adapter)
    if motion_adapter is not None:
        raise InputError("goes with a Stable Diffusion 1.5 checkpoint", name="motion_adapter", value=motion_adapter)
    return CascadeNetworks(folder, device, dtype, resident=not offload)


def submit_window(computer: WindowComputer, stage: Stage, seed: int, window: Window, frames: Tensor) -> Any:
    """Hand a window of a stage after the base stage over."""
    if stage.kind == "interpolation":
        return computer.submit("interpolate", stage.name, window, frames)
    return computer.submit("super_resolve", stage.name, window, frames, seed)


def to_uint8(frame_CHW: Tensor) -> Frames:
    """float32 [3, H, W] in 0 to 1 to uint8 [H, W, 3]."""
    made: Frames = (frame_CHW * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return made


def to_float(frame_HWC: Frames) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W] in 0 to 1."""
    return torch.tensor(frame_HWC).permute(2, 0, 1).float() / 255


def read_image(path: str | Path, height: int, width: int) -> Tensor:
    """A picture, cut to the shape of the base stage's frames in its middle and scaled: float32 [3, height, width].

    Raises:
        InputError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(user_path(path)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"The picture {path} cannot be read ({error}); name a .png or .jpg file.") from error
    x_1CHW = to_float(np.array(picture))[None]
    share = min(picture.height / height, picture.width / width)
    high, wide = max(1, int(height * share)), max(1, int(width * share))
    top, left = (picture.height - high) // 2, (picture.width - wide) // 2
    part = x_1CHW[:, :, top : top + high, left : left + wide]
    return F.interpolate(part, (height, width), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


def _stage_stream(
    frames: Iterator[Tensor], *, windows: Sequence[Window], submit: Any, start: int, ahead: int,
    tell: Callable[[int], object],
) -> Iterator[Tensor]:  # fmt: skip
    return frames_of(frames, windows, submit, start=start, ahead=ahead, tell=tell)[1]


def _at(windows: Sequence[Window], frame: int) -> int:
    return next(i for i, window in enumerate(windows) if window.makes[0] <= frame < window.makes[1])


def _tell(monitor: Monitor, name: str, total: int, done: int) -> None:
    monitor.tell(name, done, total)


def _image_path(params: GenerateParams) -> Path | None:
    return None if params.image is None else user_path(params.image)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else user_path(path)
