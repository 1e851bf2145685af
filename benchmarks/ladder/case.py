"""What all rungs of the ladder compute: the same pictures, text, noise and schedule; and how one pass is timed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from fairy.benchmarks.ladder.networks import BRANCHES, SCHEDULER, Size
from fairy.export.bases.stable_diffusion import VaeEncoderGraph
from fairy.export.checkpoint import Checkpoint
from fairy.runtime.denoise.guidance import Guidance, make_guidance
from fairy.runtime.denoise.sampler import Schedule, make_schedule

MEASURED_STEPS = 2  # the first step, which may be cheaper, and a later one, which stands for all that follow
TEXT_SCALE, IMAGE_SCALE = 7.5, 1.5
PROCESSOR = "processor time"


@dataclass(frozen=True, slots=True)
class Case:
    """One ladder's inputs, on `device` in `dtype` but for what is said.

    Attributes:
        networks: in `dtype`; they are shared by all rungs and changed by none.
        pictures: [K + F, 3, H, W] in −1…1, the anchors first.
        image_latents: of all pictures, by the plain encoder in float32, then cast.
        noise: unit, [1, 4, h, w], float32, the same for all frames.
        text: [3, tokens, channels], of the branches in order.
        schedule: Euler's, which draws no further noise, so that all rungs can be compared.
    """

    size: Size
    device: torch.device
    dtype: torch.dtype
    networks: Checkpoint
    pictures: Tensor
    image_latents: Tensor
    noise: Tensor
    text: Tensor
    schedule: Schedule
    guidance: Guidance

    @property
    def anchors(self) -> slice:
        """The pictures that are anchors."""
        return slice(0, self.size.anchors)

    @property
    def frames(self) -> slice:
        """The pictures of one micro-batch."""
        return slice(self.size.anchors, None)


@dataclass(frozen=True, slots=True)
class Lap:
    """One pass over everything: milliseconds of its parts, and what came out.

    Attributes:
        encode_ms, decode_ms: of one frame.
        frames_ms: of the first and of a later step of a batch of `frames`.
        anchors_ms: the same of phase A; None without anchors.
        frames: how many the batch has.
        latents: of the batch after the measured steps, [frames, 4, h, w], float32.
        work_bytes: the most memory that was used beyond what was there before; None where nobody can tell.
    """

    encode_ms: float
    decode_ms: float
    frames_ms: tuple[float, float]
    anchors_ms: tuple[float, float] | None
    frames: int
    latents: Tensor
    work_bytes: int | None = None


class Rung(Protocol):
    """One way of computing the case."""

    key: str
    name: str
    anchored: bool

    def run(self) -> Lap:
        """One pass; the first one may prepare, compile and record."""
        ...


class Laps:
    """A clock that waits for the device before it looks: the wall's, or the processor's; see `clock_of`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now = time.process_time if clock_of(device) == PROCESSOR else time.perf_counter
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Begin a lap."""
        self._wait()
        self._before = self._now()

    def after_step(self, step: int) -> None:
        """End a lap; what loops call after every step."""
        self.lap()

    def lap(self) -> float:
        """Milliseconds since the last lap; kept in `times` too."""
        self._wait()
        now = self._now()
        ms, self._before = (now - self._before) * 1e3, now
        self.times.append(ms)
        return ms

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def clock_of(device: torch.device) -> str:
    """What the ladder's clock counts on a device: on the CPU with one thread, processor time.

    That is what passes on an idle machine, and what other programs on a busy one hardly change.
    """
    return PROCESSOR if device.type == "cpu" and torch.get_num_threads() == 1 else "wall time"


def matmul_tflop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """10¹² operations a second of one large square matrix product, by the clock of the laps."""
    size = 8192 if device.type == "cuda" else 768
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    laps = Laps(device)
    for _ in range(12):
        a @ b
        laps.lap()
    return 2 * size**3 / median(laps.times[2:]) / 1e9


def make_case(size: Size, networks: Checkpoint, device: torch.device, dtype: torch.dtype) -> Case:
    """The inputs, drawn from a fixed seed on the CPU; `networks` are cast and moved already."""
    generator = torch.Generator().manual_seed(0)
    count = size.anchors + size.frames
    pictures = torch.rand(count, 3, size.height, size.width, generator=generator) * 2 - 1
    text = torch.randn(2, size.tokens, networks.text_channels, generator=generator)[[0, 1, 1]]
    noise = torch.randn(1, 4, *size.latent, generator=generator)
    with torch.inference_mode():
        encode = VaeEncoderGraph(networks.vae)
        latents = torch.cat([encode(picture.to(device, dtype)[None])[0] for picture in pictures])
    return Case(
        size,
        device,
        dtype,
        networks,
        pictures.to(device, dtype),
        latents,
        noise.to(device),
        text.to(device, dtype),
        make_schedule("euler", SCHEDULER, MEASURED_STEPS),
        make_guidance(TEXT_SCALE, IMAGE_SCALE),
    )


@contextmanager
def work_bytes(device: torch.device) -> Iterator[list[int]]:
    """The most memory used inside the block beyond what was there before, once it has ended; nothing on a CPU.

    What a process holds there is whatever its allocator kept, so that it says nothing about one rung among many.
    """
    found: list[int] = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield found
    found.append(torch.cuda.max_memory_allocated(device) - before)


__all__ = [
    "BRANCHES",
    "Case",
    "Lap",
    "Laps",
    "Rung",
    "clock_of",
    "make_case",
    "matmul_tflop_per_s",
    "work_bytes",
]
