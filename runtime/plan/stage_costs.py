"""What the stages of one edit cost a worker in time and memory, and whether that fits. Nothing here needs PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fairy.kernels.errors import InputError

_SIZE_STEP = 64  # pixels; proposed long sides are multiples of it, as padded sides are for Stable Diffusion 1.5


@dataclass(frozen=True, slots=True)
class StageCosts:
    """What the stages of one job cost one worker.

    Attributes:
        name: of what model, size and machine they are.
        measured: False where they were computed from assumptions.
        precision: "float32", "float16" or "bfloat16".
        long_side: of the pictures, in pixels.
        anchors, micro_batch: frames in a batch of phase A and of phase B, for which the times hold.
        text_ms: the text, once a worker.
        encode_ms, decode_ms: one frame through the autoencoder.
        anchors_step_ms, frames_step_ms: one denoising step of a whole batch, all guidance branches.
        handout_ms: what the controller spends on a micro-batch, to hand it out and to take its result.
        weights_bytes: of all networks.
        bank_step_bytes: keys and values of the anchors at one step.
        unet_frame_bytes: working memory of a denoising step for every frame in the batch.
        vae_bytes: working memory of the autoencoder for its one frame. 0 where working memory was not measured; the
            memory planned is then a lower bound.
    """

    name: str
    measured: bool
    precision: str
    long_side: int
    anchors: int
    micro_batch: int
    text_ms: float
    encode_ms: float
    decode_ms: float
    anchors_step_ms: float
    frames_step_ms: float
    handout_ms: float
    weights_bytes: int
    bank_step_bytes: int
    unet_frame_bytes: int
    vae_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_ms", "_bytes")) and not (_is_number(value) and 0 <= value < math.inf):
                raise InputError("is not a cost", name=field.name, value=value, remedy="give a number from 0 up")
        for name, least in (("long_side", 1), ("anchors", 0), ("micro_batch", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(
                    "is not possible", name=name, value=value, remedy=f"costs need a whole number from {least} up"
                )

    @classmethod
    def from_json(cls, plain: Any) -> "StageCosts":
        """The costs that `to_json` wrote. Raises InputError where a field is missing, unknown or impossible."""
        names = {field.name for field in fields(cls)}
        given = set(plain) if isinstance(plain, dict) else set()
        if given != names:
            odd = sorted(given ^ names)[0]
            raise InputError(f"Stage costs {'lack' if odd in names else 'have the unknown field'} {odd!r}.")
        return cls(**plain)

    def to_json(self) -> dict[str, Any]:
        """Every field by name."""
        return asdict(self)

    def anchors_ms(self, num_inference_steps: int) -> float:
        """Phase A without decoding: the anchors' encoding and all their steps."""
        return self.anchors * self.encode_ms + num_inference_steps * self.anchors_step_ms

    def batch_ms(self, num_frames: int, num_inference_steps: int) -> float:
        """One micro-batch with `num_frames` frames of its own; the denoised batch is always full."""
        return num_frames * (self.encode_ms + self.decode_ms) + num_inference_steps * self.frames_step_ms


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one worker needs. The same for all: whoever survives must be able to do anybody's work."""

    weights: int
    bank: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.bank + self.working


def memory_per_worker(costs: StageCosts, num_inference_steps: int) -> Memory:
    """What a worker needs: weights, the bank of every step, and the working memory of its largest stage."""
    largest_batch = max(costs.anchors, costs.micro_batch)
    return Memory(
        weights=costs.weights_bytes,
        bank=costs.bank_step_bytes * num_inference_steps,
        working=max(costs.unet_frame_bytes * largest_batch, costs.vae_bytes),
    )


def check_fits(
    costs: StageCosts, num_inference_steps: int, memory_bytes: int, further_remedies: Sequence[str] = ()
) -> None:
    """Refuse a job that needs more than `memory_bytes` on a worker; the caller may know `further_remedies`.

    Raises:
        InputError: what it needs, what there is, and what would do: fewer frames a batch, fewer anchors, a smaller
            size, 16 bit.
    """
    memory = memory_per_worker(costs, num_inference_steps)
    if memory.total <= memory_bytes:
        return
    remedies = [*further_remedies, *_remedies(costs, num_inference_steps, memory_bytes)]
    known = costs.unet_frame_bytes > 0
    needs = f"{'' if known else 'at least '}{_gb(memory.total)}"
    working = _gb(memory.working) if known else "not known"
    raise InputError(
        f"The job needs {needs} on every worker (weights {_gb(memory.weights)}, anchor bank {_gb(memory.bank)}, "
        f"working memory {working}), but only {_gb(memory_bytes)} are there; "
        f"{'choose ' + ' or '.join(remedies) if remedies else 'use workers with more memory'}."
    )


def _remedies(costs: StageCosts, steps: int, memory_bytes: int) -> list[str]:
    """Changes with which the job fits, as parameters: each by itself or, where none would do, 16 bit and smaller."""

    def fits(changed: StageCosts) -> bool:
        return memory_per_worker(changed, steps).total <= memory_bytes

    def largest_side(of: StageCosts) -> list[str]:
        sides = range((of.long_side - 1) // _SIZE_STEP * _SIZE_STEP, 0, -_SIZE_STEP)
        return [f"long_side = {side}" for side in sides if fits(_with_long_side(of, side))][:1]

    batches = range(costs.micro_batch - 1, 0, -1)
    found = [f"micro_batch = {b}" for b in batches if fits(replace(costs, micro_batch=b))][:1]
    found += [f"anchors = {k}" for k in range(costs.anchors - 1, 0, -1) if fits(_with_anchors(costs, k))][:1]
    found += largest_side(costs)
    if costs.precision == "float32":
        found += ["dtype = float16"] if fits(_in_16_bit(costs)) else []
        found = found or [f"dtype = float16 with {side}" for side in largest_side(_in_16_bit(costs))]
    return found


def _with_anchors(costs: StageCosts, anchors: int) -> StageCosts:
    """The memory of a job with fewer anchors; times stay as they are."""
    return replace(costs, anchors=anchors, bank_step_bytes=costs.bank_step_bytes * anchors // max(costs.anchors, 1))


def _with_long_side(costs: StageCosts, long_side: int) -> StageCosts:
    """The memory of the same job at another size: all but the weights grows with the area; times stay as they are."""
    area = (long_side / costs.long_side) ** 2
    sized = ("bank_step_bytes", "unet_frame_bytes", "vae_bytes")
    return replace(costs, long_side=long_side, **{name: math.ceil(getattr(costs, name) * area) for name in sized})


def _in_16_bit(costs: StageCosts) -> StageCosts:
    """The memory of a float32 job in 16 bit: half of everything; times stay as they are."""
    halved = ("weights_bytes", "bank_step_bytes", "unet_frame_bytes", "vae_bytes")
    return replace(costs, precision="float16", **{name: math.ceil(getattr(costs, name) / 2) for name in halved})


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
