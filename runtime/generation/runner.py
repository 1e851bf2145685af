"""What `Generator`, `Storyteller`, `Interpolator`, `Upscaler` share: one loaded model, one job at a time, a report."""

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fairy.engines.backends import check_backend
from fairy.engines.engine import Usage
from fairy.export.bases.cascade import TEXT_ENCODER
from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.device import resolve_device, resolve_dtype, worker_devices
from fairy.runtime.files import user_path
from fairy.runtime.generation.cascade import FILE
from fairy.runtime.generation.clip_report import ClipReport
from fairy.runtime.generation.latent_base import LatentNetworks, is_latent
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.params import GeneratorSetup
from fairy.runtime.generation.pictures import to_uint8
from fairy.runtime.generation.window_pool import HereComputer, PoolComputer, WindowComputer
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.models import EMBEDDED_GENERATOR, embedded_generator, find_generator
from fairy.runtime.plan.identity import stamps
from fairy.runtime.record.edit_report import installed_versions
from fairy.runtime.record.journal import Journal, folders_of_other_containers, journal_folder
from fairy.runtime.record.progress import Monitor, Progress
from fairy.runtime.video import VideoWriter


class LoadedNetworks(Protocol):
    """What is said of any model's networks in a report."""

    folder: Path
    device: torch.device
    dtype: torch.dtype

    @property
    def backend_name(self) -> str:
        """Which backend runs."""
        ...

    def engines(self) -> list[str]:
        """Digests of the built engines that might run."""
        ...

    def take_usage(self) -> Usage:
        """What ran in this process since this was last asked."""
        ...


OnProgress = Callable[[Progress], object]
Networks = TypeVar("Networks", bound=LoadedNetworks)
PART = 8  # frames that are kept, written and told together


@dataclass(slots=True, kw_only=True)
class ClipJob:
    """One clip under way.

    Attributes:
        num_frames, size: of the result, size as (height, width).
        notes: sentences for the report.
        journal: where finished frames are kept, and found, while a file is written.
        sha256: of the frames so far; resumed_frames: those that an interrupted job had finished.
    """

    monitor: Monitor
    num_frames: int
    size: tuple[int, int]
    notes: list[str] = field(default_factory=list)
    journal: Journal | None = None
    sha256: Any = field(default_factory=hashlib.sha256)
    resumed_frames: int = 0


class CascadeRunner(Generic[Networks]):
    """See this file's head. Make one with `from_pretrained`; use it as a context manager, or call `close` when done."""

    _kind = "generator"  # what its model is called

    def __init__(self, setup: GeneratorSetup) -> None:
        """Find the model and the devices. Raises InputError; see `from_pretrained`."""
        folder = self._shipped() if setup.model is None else find_generator(setup.model)
        adapter = None if setup.motion_adapter is None else user_path(setup.motion_adapter)
        for what, where in ((self._kind, folder), ("motion adapter", adapter)):
            if where is not None and not where.is_dir():
                raise InputError(f"The {what} {str(where)!r} is no folder; name one that holds its files.")
        device = resolve_device(setup.device)
        dtype = resolve_dtype(setup.dtype, device)
        devices = worker_devices(device, setup.gpus, setup.workers)
        if (folder / FILE).is_file():
            check_has_weights(folder)
            check_backend(setup.backend, device)
        make = partial(self._make_networks, folder, dtype, setup, adapter)
        self._networks: Networks = make(device)
        self._setup = setup
        self._computer: WindowComputer = (
            HereComputer(self._networks, setup.threads)
            if len(devices) == 1
            else PoolComputer(make, devices, threads=setup.threads, timeout_s=setup.worker_timeout_s)
        )
        self._workers = len(devices)
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **how: Any) -> Self:
        """Load a generator, or the stages of one.

        Args:
            model: a generator's folder, with a cascade.json; None = the one that ships with fairy.
            **how: the fields of `GeneratorSetup`: device, dtype, offload, gpus, workers, worker_timeout_s, threads, and
                for clips from text motion_adapter.

        Raises:
            InputError: it cannot be loaded, or an option is not possible on this machine.
        """
        return cls(GeneratorSetup(model, **how))

    def close(self) -> None:
        """Give back memory and processes; waits for a running job. Closing again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._computer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return model_name(self._setup)

    @staticmethod
    def _shipped() -> Path:
        """The folder of the model that ships."""
        return embedded_generator()

    @staticmethod
    def _make_networks(
        folder: Path, dtype: torch.dtype, setup: GeneratorSetup, motion_adapter: Path | None, device: torch.device
    ) -> Networks:
        """The networks of a folder, here or in a worker. Raises InputError where it holds none."""
        return cast(Networks, make_networks(folder, dtype, setup, motion_adapter, device))

    @contextmanager
    def _one_job(self, monitor: Monitor) -> Iterator[Monitor]:
        with self._lock:
            if self._closed:
                raise FairyError(f"This {type(self).__name__} was closed; make another one.")
            self._computer.begin(monitor.check)
            yield monitor

    def _parts(self, job: ClipJob, frames_from: Callable[[int], Iterator[Tensor]]) -> Generator[Frames, None, None]:
        """The result in parts of uint8 [n, H, W, 3]; those of an interrupted job first.

        Args:
            frames_from: the result's frames from a number on, asked for only where some are missing.
        """
        done = 0
        while job.journal is not None and done < job.num_frames:
            kept = job.journal.load_frames(done)
            if kept is None:
                break
            done += len(kept)
            job.resumed_frames = done
            job.sha256.update(kept.tobytes())
            yield kept
        frames = frames_from(done) if done < job.num_frames else iter(())
        while done < job.num_frames:
            part = np.stack([to_uint8(next(frames)) for _ in range(min(PART, job.num_frames - done))])
            if job.journal is not None:
                job.journal.save_frames(done, part)
            done += len(part)
            job.sha256.update(part.tobytes())
            yield part

    def _write(
        self,
        job: ClipJob,
        journal: Journal,
        open_writer: Callable[[], VideoWriter],
        parts: Callable[[], Generator[Frames, None, None]],
        *,
        resume: bool,
    ) -> None:
        """A job's parts into a file, which appears when it is whole; until then the journal has what is finished."""
        job.journal = journal
        with journal.kept_unless_done(), open_writer() as writer:
            journal.begin(resume=resume)
            with closing(parts()) as made:
                for part in made:
                    writer.write(part)
        job.notes += writer.notes

    def _journal(self, out: Path, **decides: object) -> Journal:
        """The journal of a job into `out`; `decides`: what of the job decides the bytes, beside the model."""
        identity = {
            **decides,
            "kind": type(self).__name__,
            "model": stamps(self._networks.folder),
            "precision": str(self._networks.dtype),
            "backend": {"name": self._networks.backend_name, "engines": self._networks.engines()},
            "device": {"type": self._networks.device.type, "threads": self._setup.threads},
            "version": installed_versions(),
        }
        return Journal(journal_folder(out), identity, others=folders_of_other_containers(out))

    def _report(
        self,
        job: ClipJob,
        params: dict[str, Any],
        stages: Sequence[dict[str, Any]],
        *,
        fps: str | None = None,
        source: dict[str, Any] | None = None,
    ) -> ClipReport:
        usage = self._networks.take_usage()
        notes = [*usage.fallbacks, *job.notes, *(job.journal.notes if job.journal is not None else ())]
        return ClipReport(
            params=params,
            model=self._name,
            backend=self._networks.backend_name,
            engines=usage.digests,
            device=str(self._networks.device),
            precision=str(self._networks.dtype).removeprefix("torch."),
            threads=self._setup.threads,
            workers=self._workers,
            lost_workers=tuple(self._computer.lost),
            resumed_frames=job.resumed_frames,
            stages=tuple(stages),
            num_frames=job.num_frames,
            width=job.size[1],
            height=job.size[0],
            fps=fps,
            times_ms={**job.monitor.times_ms, "total": job.monitor.elapsed_ms()},
            source=source or {},
            notes=tuple(dict.fromkeys(notes)),
            frames_sha256=job.sha256.hexdigest(),
            versions=installed_versions(),
        )


def make_networks(
    folder: Path, dtype: torch.dtype, setup: GeneratorSetup, motion_adapter: Path | None, device: torch.device
) -> CascadeNetworks | LatentNetworks:
    """The networks of a folder, here or in a worker; none is loaded yet. Raises InputError where it holds none."""
    if is_latent(folder):
        if setup.backend not in ("auto", "eager"):
            remedy = "generators in diffusers' format run with eager alone; leave it out"
            raise InputError("is not for this generator", name="backend", value=setup.backend, remedy=remedy)
        return LatentNetworks(folder, device, dtype, motion_adapter=motion_adapter)
    if motion_adapter is not None:
        raise InputError("goes with a Stable Diffusion 1.5 checkpoint", name="motion_adapter", value=motion_adapter)
    return CascadeNetworks(
        folder,
        device,
        dtype,
        resident=not setup.offload,
        backend=setup.backend,
        store=setup.store,
        name=model_name(setup),
    )


def check_has_weights(folder: Path) -> None:
    """Raise InputError where a cascade's folder only describes it."""
    if not (folder / TEXT_ENCODER).is_dir():
        raise InputError(
            f"{folder.name} describes a cascade without weights; count what it takes with `fairy generate --dry-run`, "
            "or name a generator that has some."
        )


def model_name(setup: GeneratorSetup) -> str:
    """What commands call the generator."""
    return EMBEDDED_GENERATOR if setup.model is None else str(setup.model)
