"""What a placement would take, event by event: every worker, every micro-batch, every step that waits for its bank.

All worker-time is accounted for: workers × makespan = the work of one worker + the losses, each with its reason.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from fairy.benchmarks.scaling.placement import Link, Placement, bank_arrivals_ms
from fairy.runtime.plan.batches import Part
from fairy.runtime.plan.stage_costs import StageCosts

LOSSES = {
    "phase A": "waiting for a step of the bank that is not computed yet",
    "link": "waiting for a step of the bank that is computed but has not arrived",
    "controller": "waiting for the controller to hand out a micro-batch",
    "repeated": "doing what another worker does too: the text, and phase A where it is recomputed",
    "tail": "nothing left to do while others finish",
}


@dataclass(frozen=True, slots=True)
class Simulation:
    """How a job went.

    Attributes:
        makespan_ms: from the first stage to the last; starting workers, reading and writing video apart.
        work_ms: the stages as one worker would do them, one after another.
        losses_ms: worker-milliseconds by reason, those of `LOSSES`.
        num_workers: all that are paid for.
        part_ends_ms: when each part with frames to denoise was done.
    """

    makespan_ms: float
    work_ms: float
    losses_ms: dict[str, float]
    num_workers: int
    part_ends_ms: tuple[float, ...]

    @property
    def efficiency(self) -> float:
        """Worker-seconds of one worker, by workers × makespan."""
        return self.work_ms / (self.num_workers * self.makespan_ms) if self.makespan_ms else 1.0

    @property
    def bottleneck(self) -> str:
        """The largest loss, or "none" where nothing is lost."""
        worst = max(self.losses_ms, key=lambda reason: self.losses_ms[reason])
        return worst if self.losses_ms[worst] > 1e-9 * self.work_ms else "none"


def simulate(placement: Placement, costs: StageCosts, link: Link) -> Simulation:
    """Run a placement with stages of exactly these costs."""
    losses = dict.fromkeys(LOSSES, 0.0)
    arrivals = []
    if placement.bank == "broadcast":
        arrivals = bank_arrivals_ms(placement.workload, costs, placement.active, link)
    free = _after_phase_a(placement, costs, losses)
    heapq.heapify(free)
    controller = 0.0
    ends, parts = [], _batches(placement)
    for part in parts:
        start, rank = heapq.heappop(free)
        controller = max(controller, start) + costs.handout_ms
        losses["controller"] += controller - start
        end = _denoise(part, controller, placement, costs, arrivals if rank else [], losses)
        heapq.heappush(free, (end, rank))
        ends.append(end)
    makespan = max(end for end, _ in free)
    losses["tail"] += sum(makespan - end for end, _ in free) + makespan * (placement.num_workers - placement.active)
    return Simulation(makespan, work_ms(placement, costs), losses, placement.num_workers, tuple(ends))


def work_ms(placement: Placement, costs: StageCosts) -> float:
    """All stages of a job, each once."""
    steps = placement.workload.num_inference_steps
    anchors = costs.anchors_ms(steps) + costs.anchors * costs.decode_ms if placement.workload.anchors else 0.0
    return costs.text_ms + anchors + sum(costs.batch_ms(len(part.frames), steps) for part in _batches(placement))


def _batches(placement: Placement) -> Iterator[Part]:
    """The parts that have frames to denoise, in order."""
    return (part for part in placement.parts if part.frames)


def _after_phase_a(placement: Placement, costs: StageCosts, losses: dict[str, float]) -> list[tuple[float, int]]:
    """When each rank is ready for its first micro-batch; what is done more than once is a loss."""
    losses["repeated"] += costs.text_ms * (placement.active - 1)
    phase_a_ms = costs.anchors_ms(placement.workload.num_inference_steps)
    free = []
    for rank in range(placement.active):
        end = costs.text_ms
        if rank in placement.phase_a:
            end += phase_a_ms
            losses["repeated"] += phase_a_ms if rank else 0.0
        if rank == 0 and placement.phase_a:
            end += costs.anchors * costs.decode_ms
        free.append((end, rank))
    return free


def _denoise(
    part: Part,
    time_ms: float,
    placement: Placement,
    costs: StageCosts,
    arrivals: list[tuple[float, float]],
    losses: dict[str, float],
) -> float:
    """When a micro-batch that begins at `time_ms` is decoded; its steps wait for banks that are still to come."""
    time_ms += len(part.frames) * costs.encode_ms
    steps = placement.workload.num_inference_steps
    if arrivals and time_ms < arrivals[-1][1]:
        for computed, arrived in arrivals:
            losses["phase A"] += max(0.0, min(computed, arrived) - time_ms)
            losses["link"] += max(0.0, arrived - max(time_ms, computed))
            time_ms = max(time_ms, arrived) + costs.frames_step_ms
    else:
        time_ms += steps * costs.frames_step_ms
    return time_ms + len(part.frames) * costs.decode_ms
