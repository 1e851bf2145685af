"""The simulation beside real processes: workers that meet by gloo and a file, and sleep as long as their stages cost.

Sleeping stages leave scheduling, messages and transfers real and need no GPU; stages that compute would fight for the
cores of one machine. A busy machine wakes sleepers late: the simulation is given stages as long as they really were.
``python -m fairy.benchmarks.scaling.rehearsal`` is the process that forks the workers; it reads
what to do from stdin and prints JSON.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fairy.benchmarks.scaling.placement import Link, Placement, Workload, plan_placement
from fairy.benchmarks.scaling.simulation import simulate
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.plan.choose_anchors import choose_anchors
from fairy.runtime.plan.stage_costs import StageCosts

WORKERS = (1, 2, 4)
_TRIALS = 5  # broadcasts that are timed


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One run; milliseconds.

    Attributes:
        planned_ms: what the planner expected of stages of their nominal length.
        simulated_ms: the same plan with stages as long as they took on the average.
        measured_ms: from the first order to the last result.
        broadcast_ms: of one step's bank, measured before the run; what planner and simulation are given.
        parts: those that were done, in the order they were; every one of the job exactly once.
    """

    workers: int
    bank: str
    broadcast_ms: float
    planned_ms: float
    simulated_ms: float
    measured_ms: float
    parts: tuple[int, ...]

    @property
    def deviation(self) -> float:
        """How much longer the processes took than was simulated, as a share."""
        return self.measured_ms / self.simulated_ms - 1


def rehearse(
    costs: StageCosts,
    *,
    workers: Sequence[int] = WORKERS,
    num_frames: int | None = None,
    num_inference_steps: int = 2,
    deadline_s: float = 300.0,
) -> list[Rehearsal]:
    """Run the job once for each number of workers; of three micro-batches for each of the most, unless told.

    Raises:
        InputError: there are more workers than have anything to do. MachineError: a worker failed, or the deadline
            passed; then all processes have been ended.
    """
    if num_frames is None:
        num_frames = costs.anchors + 3 * max(workers) * costs.micro_batch
    batches = -(-(num_frames - costs.anchors) // costs.micro_batch)
    if max(workers) > batches:
        raise InputError(f"{max(workers)} workers have only {batches} micro-batches; rehearse with more frames.")
    order = {
        "costs": costs.to_json(),
        "workers": list(workers),
        "frames": num_frames,
        "steps": num_inference_steps,
        "deadline_s": deadline_s,
    }
    command = [sys.executable, "-P", "-m", "fairy.benchmarks.scaling.rehearsal"]
    pipe = subprocess.PIPE
    crew = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        output, problems = crew.communicate(json.dumps(order), deadline_s)
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"The rehearsal was not done after {deadline_s:g} s; try fewer frames.") from error
    finally:
        _end(crew)
    if crew.returncode:
        last = (problems.strip().splitlines() or ["no word"])[-1]
        raise MachineError(f"The rehearsal's processes failed ({last}).")
    return [Rehearsal(**{**row, "parts": tuple(row["parts"])}) for row in json.loads(output)]


def compare(rows: Sequence[Rehearsal]) -> str:
    """Simulated and measured makespan side by side."""
    lines = ["workers  bank       broadcast     planned   simulated    measured  measured − simulated"]
    for row in rows:
        lines.append(
            f"{row.workers:7d}  {row.bank:<9} {row.broadcast_ms:8.1f} ms {row.planned_ms:8.0f} ms "
            f"{row.simulated_ms:8.0f} ms {row.measured_ms:8.0f} ms  {100 * row.deviation:+.1f} %"
        )
    return (
        "real processes over gloo, every stage a sleep of its length (simulated: of the length the sleeps had):\n"
        + "\n".join(lines)
    )


def _end(crew: "subprocess.Popen[str]") -> None:
    """End the process and all that it forked, however it went."""
    with suppress(ProcessLookupError):
        os.killpg(crew.pid, signal.SIGKILL)
    crew.wait()


# -- in the process that forks the workers --------------------------------------------------------------------------


def main() -> None:
    """Rehearse what stdin asks for and print one row for each number of workers."""
    order = json.load(sys.stdin)
    costs = StageCosts.from_json(order["costs"])
    workload = Workload(order["frames"], choose_anchors(costs.anchors, order["frames"]), order["steps"])
    rows = [_rehearse(costs, workload, number, order["deadline_s"]) for number in order["workers"]]
    print(json.dumps([asdict(row) for row in rows]))


def _rehearse(costs: StageCosts, workload: Workload, number: int, deadline_s: float) -> Rehearsal:
    with tempfile.TemporaryDirectory() as folder:
        ends = [_start_worker(rank, number, Path(folder), costs, workload) for rank in range(number)]
        broadcast_ms = max(_receive(end, deadline_s)["broadcast_ms"] for end in ends)
        link = _link_of(broadcast_ms, costs, number)
        placement = plan_placement(
            workload, costs, num_workers=number, link=link, micro_batch=costs.micro_batch, memory_bytes=None
        )
        started = time.perf_counter()
        clock = Stopwatch()
        done = _control(ends, placement, costs, clock, deadline_s)
        measured_ms = (time.perf_counter() - started) * 1e3
        for end in ends:
            clock.add(_receive(end, deadline_s))
    return Rehearsal(
        workers=number,
        bank=placement.bank,
        broadcast_ms=broadcast_ms,
        planned_ms=placement.makespan_ms,
        simulated_ms=simulate(placement, replace(costs, **clock.means_ms()), link).makespan_ms,
        measured_ms=measured_ms,
        parts=tuple(done),
    )


def _link_of(broadcast_ms: float, costs: StageCosts, number: int) -> Link:
    """The link over which gloo's broadcast takes that long."""
    unit = Link("gloo", 1.0, pattern="tree").broadcast_ms(costs.bank_step_bytes, number)
    return Link("gloo", unit / broadcast_ms if unit and broadcast_ms else 1e9, pattern="tree")


def _start_worker(rank: int, number: int, folder: Path, costs: StageCosts, workload: Workload) -> Connection:
    """Fork a worker; gives the controller's end of its pipe. It ends with this process."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    context.Process(target=_work, args=(rank, number, folder, theirs, costs, workload), daemon=True).start()
    theirs.close()
    return mine


def _control(
    ends: Sequence[Connection], placement: Placement, costs: StageCosts, clock: "Stopwatch", deadline_s: float
) -> list[int]:
    """Hand out the micro-batches to whoever is free, one after another, until all are done; their order of ending."""
    queue: Iterator[int] = (index for index, part in enumerate(placement.parts) if part.frames)
    done = []
    for end in ends:
        _send(end, {"bank": placement.bank})
    busy = set(ends)
    while busy:
        ready = wait(list(busy), deadline_s)
        if not ready:
            raise MachineError(f"No worker said anything for {deadline_s:g} s; the machine is too busy.")
        for end in [end for end in ends if end in ready]:
            message = _receive(end, deadline_s)
            done += [message["done"]] if "done" in message else []
            index = next(queue, None)
            if index is None:
                busy.remove(end)
                _send(end, {})
            else:
                clock.sleep("handout_ms", costs)
                _send(end, {"part": index, "frames": len(placement.parts[index].frames)})
    return done


# -- in a worker ----------------------------------------------------------------------------------------------------


def _work(rank: int, number: int, folder: Path, controller: Connection, costs: StageCosts, workload: Workload) -> None:
    """A worker: phase A where it is its turn, then micro-batches until there are none."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number, timeout=timedelta(seconds=60)
    )
    steps = workload.num_inference_steps
    bank = [torch.zeros(max(costs.bank_step_bytes, 1), dtype=torch.uint8) for _ in range(steps)]
    _send(controller, {"broadcast_ms": _time_broadcast(bank[0])})
    plan = _receive(controller, None)["bank"]
    clock = Stopwatch()
    clock.sleep("text_ms", costs)
    arrivals: list[Any] = []
    if rank == 0 or plan == "recompute":
        _phase_a(rank, plan, costs, clock, bank)
    elif plan == "broadcast":
        arrivals = [dist.broadcast(tensor, 0, async_op=True) for tensor in bank]
    _send(controller, {})
    while order := _receive(controller, None):
        clock.sleep("encode_ms", costs, order["frames"])
        for step in range(steps):
            if arrivals:
                arrivals[step].wait()
            clock.sleep("frames_step_ms", costs)
        arrivals = []
        clock.sleep("decode_ms", costs, order["frames"])
        _send(controller, {"done": order["part"]})
    _send(controller, clock.spent)
    dist.destroy_process_group()


def _phase_a(rank: int, plan: str, costs: StageCosts, clock: "Stopwatch", bank: Sequence[torch.Tensor]) -> None:
    """The anchors; rank 0 sends every step's bank as soon as it is there and goes on."""
    clock.sleep("encode_ms", costs, costs.anchors)
    for tensor in bank:
        clock.sleep("anchors_step_ms", costs)
        if plan == "broadcast":
            dist.broadcast(tensor, 0, async_op=True)
    if rank == 0:
        clock.sleep("decode_ms", costs, costs.anchors)


def _time_broadcast(tensor: torch.Tensor) -> float:
    """Median milliseconds until all have a tensor, a barrier's own time taken off."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(2 * _TRIALS):
        dist.barrier()
        started = time.perf_counter()
        if trial % 2:
            dist.broadcast(tensor, 0)
        dist.barrier()
        times[bool(trial % 2)].append((time.perf_counter() - started) * 1e3)
    with_it, without = (sorted(times[which])[_TRIALS // 2] for which in (True, False))
    return max(0.0, with_it - without)


class Stopwatch:
    """Sleeps in the place of stages, and knows how long they took; `spent` is [ms, units] by stage."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def sleep(self, stage: str, costs: StageCosts, units: int = 1) -> None:
        """As long as `units` times the stage: frames of the autoencoder, steps of a batch, or the whole."""
        started = time.perf_counter()
        time.sleep(units * getattr(costs, stage) / 1e3)
        self.add({stage: [(time.perf_counter() - started) * 1e3, units]})

    def add(self, spent: dict[str, list[float]]) -> None:
        """What another one has measured."""
        for stage, (ms, units) in spent.items():
            before = self.spent.get(stage, [0.0, 0])
            self.spent[stage] = [before[0] + ms, before[1] + units]

    def means_ms(self) -> dict[str, Any]:
        """Every stage's average length."""
        return {stage: ms / units for stage, (ms, units) in self.spent.items()}


def _send(end: Connection, message: dict[str, Any]) -> None:
    end.send_bytes(json.dumps(message).encode())


def _receive(end: Connection, deadline_s: float | None) -> dict[str, Any]:
    """The next message; a worker waits for the controller's as long as that lives."""
    if not end.poll(deadline_s):
        raise MachineError(f"A worker said nothing for {deadline_s:g} s; the machine is too busy.")
    message: dict[str, Any] = json.loads(end.recv_bytes())
    return message


if __name__ == "__main__":
    main()
