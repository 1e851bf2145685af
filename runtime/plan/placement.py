"""Who computes what when several workers edit one video: planned from measured costs, before anything runs.

    rank 0      text │ encode anchors │ a a a a a … │ decode anchors │ batch │ batch │ …
                                        ╲ ╲ ╲ ╲ ╲     every step's bank goes to the others
    the others  text │ encode frames  │   f f f f f … │ decode │ batch │ batch │ …

Phase A is one batch in which every anchor attends to all, so one worker computes it; the others run a step behind it,
or, where the link is slower than the computation, every worker computes phase A for itself. Micro-batches are those of
`batches.py`, pulled from one queue in order. Nothing here needs PyTorch.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from fairy.kernels.errors import InputError
from fairy.runtime.plan.batches import Part, cut_into_parts, default_micro_batch

BankPlan = Literal["none", "local", "broadcast", "recompute"]

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
class Link:
    """What carries the bank from rank 0 to the others.

    Attributes:
        name: as tables show it.
        gb_per_s: 10⁹ bytes a second between two workers.
        latency_ms: of one message.
        pattern: "ring", a pipelined broadcast in which every worker passes chunks on (NCCL's for large messages), or
            "tree", in which whole messages double the number of owners round by round (gloo's).
    """

    name: str
    gb_per_s: float
    latency_ms: float = 0.0
    pattern: Literal["ring", "tree"] = "ring"

    def __post_init__(self) -> None:
        if not (
            _is_number(self.gb_per_s) and self.gb_per_s > 0 and _is_number(self.latency_ms) and self.latency_ms >= 0
        ):
            raise InputError(
                f"{self.name} at {self.gb_per_s!r} GB/s, {self.latency_ms!r} ms is no link; give more than 0."
            )

    def broadcast_ms(self, num_bytes: int, num_workers: int) -> float:
        """Milliseconds until every worker has what rank 0 has."""
        if num_workers < 2:
            return 0.0
        once = num_bytes / self.gb_per_s / 1e6
        if self.pattern == "ring":
            return once + self.latency_ms * (num_workers - 1)
        return (once + self.latency_ms) * math.ceil(math.log2(num_workers))


@dataclass(frozen=True, slots=True)
class Workload:
    """The job as far as placement goes: how many frames, which are anchors, how many denoising steps."""

    num_frames: int
    anchors: tuple[int, ...]
    num_inference_steps: int

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_inference_steps < 1:
            raise InputError(
                f"{self.num_frames} frames in {self.num_inference_steps} steps are no job; both must be at least 1."
            )
        outside = [a for a in self.anchors if not 0 <= a < self.num_frames]
        if outside:
            raise InputError(f"Anchor {outside[0]} is not a frame; the frames are 0 to {self.num_frames - 1}.")
        if len(set(self.anchors)) != len(self.anchors):
            raise InputError(
                "names a frame twice", name="anchors", value=list(self.anchors), remedy="name every anchor once"
            )


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


@dataclass(frozen=True, slots=True)
class Placement:
    """The plan of one job.

    Attributes:
        parts: the video in order, every frame in exactly one part.
        micro_batch: frames denoised at once.
        num_workers: how many there are.
        active: how many of them have anything to do; ranks 0 to before `active`.
        phase_a: the ranks that compute phase A.
        bank: how the others come by it: "broadcast" from rank 0, or "recompute"; "local" with one worker, "none"
            without anchors.
        makespan_ms: expected time from the first stage to the last, without reading and writing the video.
        memory: that each worker needs.
    """

    workload: Workload
    parts: tuple[Part, ...]
    micro_batch: int
    num_workers: int
    active: int
    phase_a: tuple[int, ...]
    bank: BankPlan
    makespan_ms: float
    memory: Memory

    @property
    def batches(self) -> int:
        """Micro-batches to denoise: parts with frames that are not anchors."""
        return sum(1 for part in self.parts if part.frames)


def plan_placement(
    workload: Workload,
    costs: StageCosts,
    *,
    num_workers: int,
    link: Link,
    micro_batch: int | None = None,
    memory_bytes: int | None = None,
) -> Placement:
    """Decide who computes what, and how long it should take.

    Args:
        workload: the job.
        costs: of its stages, for as many anchors and frames a batch as the job has.
        num_workers: GPUs, or worker processes on a CPU.
        link: between them.
        micro_batch: frames a batch where the user chose a number; None = the one for the number of anchors. Workers,
            length and memory never change it, since the bytes of the result depend on it.
        memory_bytes: what a worker has; None = not to be checked.

    Raises:
        InputError: the job does not fit into a worker's memory (the sentence says what would), the costs are of other
            batches, or there is no worker.
    """
    if num_workers < 1:
        raise InputError(
            "is not possible", name="num_workers", value=num_workers, remedy="at least 1 worker must do the job"
        )
    num_anchors = len(workload.anchors)
    batch = default_micro_batch(num_anchors) if micro_batch is None else micro_batch
    _check_costs(costs, num_anchors, batch)
    if memory_bytes is not None:
        check_fits(costs, workload.num_inference_steps, memory_bytes)
    parts = cut_into_parts(workload.num_frames, frozenset(workload.anchors), batch)
    batches = sum(1 for part in parts if part.frames)
    expected = {
        bank: expected_ms(workload, costs, batches, bank=bank, active=active, link=link)
        for bank, active in _ways(num_anchors, batches, num_workers).items()
    }
    best = min(expected, key=lambda bank: expected[bank])  # of equals the first: broadcasting is the less work
    active = _ways(num_anchors, batches, num_workers)[best]
    everyone = tuple(range(active))
    return Placement(
        workload=workload,
        parts=parts,
        micro_batch=batch,
        num_workers=num_workers,
        active=active,
        phase_a={"none": (), "recompute": everyone}.get(best, (0,)),
        bank=best,
        makespan_ms=expected[best],
        memory=memory_per_worker(costs, workload.num_inference_steps),
    )


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


def bank_arrivals_ms(workload: Workload, costs: StageCosts, active: int, link: Link) -> list[tuple[float, float]]:
    """When each step's bank is computed by rank 0 and when the others have it; one transfer at a time."""
    computed = costs.text_ms + costs.anchors * costs.encode_ms
    transfer_ms = link.broadcast_ms(costs.bank_step_bytes, active)
    arrived = 0.0
    times = []
    for _ in range(workload.num_inference_steps):
        computed += costs.anchors_step_ms
        arrived = max(arrived, computed) + transfer_ms
        times.append((computed, arrived))
    return times


def expected_ms(
    workload: Workload, costs: StageCosts, batches: int, *, bank: BankPlan, active: int, link: Link
) -> float:
    """The makespan of the stages, every micro-batch taken as full and the controller as never busy.

    Only the first micro-batch of every worker can meet a bank that is not there yet; the others are alike.
    """
    steps, batch = workload.num_inference_steps, costs.micro_batch
    full_ms = costs.handout_ms + costs.batch_ms(batch, steps)
    if bank == "none":
        return _list_schedule([costs.text_ms] * active, batches, full_ms)
    phase_a_ms = costs.text_ms + costs.anchors_ms(steps)
    head_ms = phase_a_ms + costs.anchors * costs.decode_ms
    if bank != "broadcast":
        return _list_schedule([head_ms, *[phase_a_ms] * (active - 1)], batches, full_ms)
    first = costs.text_ms + costs.handout_ms + batch * costs.encode_ms
    for _, arrived in bank_arrivals_ms(workload, costs, active, link):
        first = max(first, arrived) + costs.frames_step_ms
    first += batch * costs.decode_ms
    others = min(active - 1, batches)
    return _list_schedule([head_ms, *[first] * others], batches - others, full_ms)


def _ways(num_anchors: int, batches: int, num_workers: int) -> dict[BankPlan, int]:
    """How the bank could reach the workers, each way with the number of workers that would have something to do."""
    needed = max(1, min(num_workers, batches))
    if num_anchors == 0:
        return {"none": needed}
    broadcast = min(num_workers, batches + 1)  # rank 0 may have no more to do than phase A
    if broadcast == 1:
        return {"local": 1}
    return {"broadcast": broadcast, "recompute": needed} if needed > 1 else {"broadcast": broadcast, "local": 1}


def _list_schedule(free_ms: list[float], batches: int, batch_ms: float) -> float:
    """When the last of equal batches ends, each taken by the worker that is free first, from the times given."""
    low, high = min(free_ms), min(free_ms) + batches * batch_ms
    if batches == 0 or batch_ms == 0:
        return max(free_ms)
    for _ in range(64):
        middle = (low + high) / 2
        done = sum(max(0, math.floor((middle - free) / batch_ms + 1e-9)) for free in free_ms)
        low, high = (low, middle) if done >= batches else (middle, high)
    return max(high, *free_ms)


def _check_costs(costs: StageCosts, num_anchors: int, micro_batch: int) -> None:
    if (costs.anchors, costs.micro_batch) != (num_anchors, micro_batch):
        raise InputError(
            f"The stage costs are of {costs.anchors} anchors and {costs.micro_batch} frames a batch, the job has "
            f"{num_anchors} and {micro_batch}; measure them for the job."
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
