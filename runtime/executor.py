"""Where the networks run: here in this process, or in worker processes (`workers/pool.py`)."""

from collections.abc import Generator, Iterator
from typing import Protocol

import torch
from torch import Tensor

from fairy.engines.engine import Usage
from fairy.runtime.anchors import CarriedAnchor, Context
from fairy.runtime.batches import Part
from fairy.runtime.device import cpu_threads
from fairy.runtime.job import Job
from fairy.runtime.methods.edit import edit_units
from fairy.runtime.methods.options import runs_in_parts
from fairy.runtime.networks import Bank, Networks, OnBank
from fairy.runtime.source import Frames

Edited = tuple[list[Frames], dict[int, Frames]]
"""Source frames as they were read, and those of them that were edited, by frame number."""


class Executor(Protocol):
    """Computes jobs, one at a time."""

    @property
    def workers(self) -> int:
        """How many processes compute."""
        ...

    def edit(self, job: Job, reads: Iterator[list[Frames]]) -> Generator[Edited, None, None]:
        """Both phases of a job.

        Args:
            reads: for every segment its anchors' frames (none without anchors), then those of every part, in order.

        Yields:
            for every segment its anchors, then every part in order; a part's anchors are not repeated.
        """
        ...

    def take_usage(self) -> Usage:
        """What ran since this was last asked."""
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


class InProcess:
    """The networks of this process."""

    workers = 1

    def __init__(self, networks: Networks, threads: int) -> None:
        self._networks = networks
        self._threads = threads

    def edit(self, job: Job, reads: Iterator[list[Frames]]) -> Generator[Edited, None, None]:
        """Phase A, then phase B part by part, or unit by unit where the method is such; see `Executor`."""
        carried: CarriedAnchor | None = None
        number = 0
        for segment in job.segments:
            if not runs_in_parts(job.method):
                yield from edit_units(self._networks, job, segment, reads, self._threads)
                continue
            job.precision = job.asked_precision
            with cpu_threads(self._threads):
                text = self._networks.encode_text(job, segment.prompt)
            pictures = next(reads)
            with cpu_threads(self._threads):
                edited, bank = edit_anchors(self._networks, job, segment.anchors, pictures, text, carried)
            job.segments_done += 1
            yield pictures, edited
            for part in segment.parts:
                pictures = next(reads)
                with cpu_threads(self._threads):
                    latents = load_latents(job, number)
                    if latents is None:
                        frames = frames_of(part, pictures)
                        latents = denoise_frames(self._networks, job, part.frames, frames, text, bank)
                        save_latents(job, number, latents)
                    edited = decode_frames(self._networks, job, part.frames, latents)
                number += 1
                yield pictures, edited
            if job.params.continue_look and bank is not None:
                carried = bank.last_anchor()
            del bank  # before the next one is made

    def take_usage(self) -> Usage:
        """What the backend ran."""
        return self._networks.backend.take_usage()

    def close(self) -> None:
        """Close the backend."""
        self._networks.backend.close()


def frames_of(part: Part, pictures: list[Frames]) -> list[Frames]:
    """Those of a part's frames that are not anchors."""
    return [pictures[i - part.start] for i in part.frames]


@torch.inference_mode()
def edit_anchors(
    networks: Networks,
    job: Job,
    anchors: tuple[int, ...],
    pictures: list[Frames],
    text: Tensor,
    carried: CarriedAnchor | None = None,
    on_bank: OnBank = lambda bank, step: None,
) -> tuple[dict[int, Frames], Bank | None]:
    """Phase A: the edited anchors by frame number, and the bank that the other frames attend to."""
    if not anchors:
        return {}, None
    image_latents = networks.encode(job, pictures)
    latents, bank = networks.denoise_anchors(job, anchors, image_latents, text, carried, on_bank)
    return dict(zip(anchors, networks.decode(job, latents), strict=True)), bank


@torch.inference_mode()
def denoise_frames(
    networks: Networks, job: Job, frames: tuple[int, ...], pictures: list[Frames], text: Tensor, bank: Context | None
) -> Tensor:
    """Phase B for one micro-batch, up to the latents [frames, c, h, w], float32."""
    if not frames:
        return torch.empty(0, *job.latent_shape)
    return networks.denoise_frames(job, frames, networks.encode(job, pictures), text, bank)


@torch.inference_mode()
def decode_frames(networks: Networks, job: Job, frames: tuple[int, ...], latents: Tensor) -> dict[int, Frames]:
    """Latents of `denoise_frames` to edited frames by frame number."""
    return dict(zip(frames, networks.decode(job, latents.to(networks.device)), strict=True)) if frames else {}


def load_latents(job: Job, number: int) -> Tensor | None:
    """The latents of a part that an interrupted edit had finished, if there are any; progress is told."""
    latents = None if job.journal is None else job.journal.load(number)
    part = job.parts[number]
    if latents is None or not part.frames:
        return None
    if tuple(latents.shape) != (len(part.frames), *job.latent_shape):
        return None
    job.tell_resumed()
    return latents


def save_latents(job: Job, number: int, latents: Tensor) -> None:
    """Keep the latents of a finished part in the job's journal, where it has one."""
    if job.journal is not None and len(latents):
        job.journal.save(number, latents)
