"""Who computes what when several workers edit one video: planned from measured costs, before anything runs.

    rank 0      text │ encode anchors │ a a a a a … │ decode anchors │ batch │ batch │ …
                                        ╲ ╲ ╲ ╲ ╲     every step's bank goes to the others
    the others  text │ encode frames  │   f f f f f … │ decode │ batch │ batch │ …

Phase A is one batch in which every anchor attends to all, so one worker computes it; the others run a step behind it,
or, where the link is slower than the computation, every worker computes phase A for itself. Micro-batches are those of
`batches.py`, pulled from one queue in order. Nothing here needs PyTorch.
"""

import math
from dataclasses import dataclass
from typing import Literal

from fairy.kernels.errors import InputError
from fairy.runtime.plan.batches import Part, cut_into_parts, default_micro_batch
from fairy.runtime.plan.stage_costs import Memory, StageCosts, check_fits, memory_per_worker

BankPlan = Literal["none", "local", "broadcast", "recompute"]

_NOTHING_MS = 1e-12  # so little time that no number of batches adds up to any


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
    if batches == 0 or batch_ms < _NOTHING_MS:
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
