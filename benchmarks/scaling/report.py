"""The cases of the scaling study, and what is shown of them: a table, a drawing, JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairy.benchmarks.scaling.placement import Link, Workload, plan_placement
from fairy.benchmarks.scaling.simulation import LOSSES, simulate
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.plan.choose_anchors import choose_anchors
from fairy.runtime.plan.stage_costs import StageCosts

FRAMES = (120, 1_000, 10_000, 100_000)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
# Usable one-way bandwidths of a broadcast; assumed, none of them was measured.
LINKS = (Link("NVLink", 300.0, 0.02), Link("PCIe", 20.0, 0.03), Link("Ethernet", 3.0, 0.1))
GOAL = 0.95


@dataclass(frozen=True, slots=True)
class Case:
    """One row's worth: a job on some workers over a link.

    Attributes:
        bank: how the bank reaches the others, as the planner decided.
        planned_ms, makespan_ms: what the planner expects, and what the simulation gives.
        efficiency: worker-seconds of one worker / (workers × makespan).
        bottleneck: the largest loss; `losses` has each as a share of all worker-time.
        basis: always "computed": bandwidths are assumed, and nothing ran on that many workers.
    """

    frames: int
    link: str
    workers: int
    bank: str
    planned_ms: float
    makespan_ms: float
    efficiency: float
    bottleneck: str
    losses: dict[str, float]
    memory_bytes: int
    basis: str = "computed"


def study(
    costs: StageCosts,
    *,
    num_inference_steps: int,
    frames: Iterable[int] = FRAMES,
    workers: Sequence[int] = WORKERS,
    links: Iterable[Link] = LINKS,
    memory_bytes: int | None = None,
) -> list[Case]:
    """Plan and simulate every combination. Raises InputError where a job cannot be planned."""
    cases = []
    for count in frames:
        workload = Workload(count, choose_anchors(costs.anchors, count), num_inference_steps)
        for link in links:
            cases += [_case(workload, costs, link, number, memory_bytes) for number in workers]
    return cases


def _case(workload: Workload, costs: StageCosts, link: Link, workers: int, memory_bytes: int | None) -> Case:
    placement = plan_placement(
        workload, costs, num_workers=workers, link=link, micro_batch=costs.micro_batch, memory_bytes=memory_bytes
    )
    found = simulate(placement, costs, link)
    paid_ms = found.num_workers * found.makespan_ms
    return Case(
        frames=workload.num_frames,
        link=link.name,
        workers=workers,
        bank=placement.bank,
        planned_ms=placement.makespan_ms,
        makespan_ms=found.makespan_ms,
        efficiency=found.efficiency,
        bottleneck=found.bottleneck,
        losses={reason: lost / paid_ms if paid_ms else 0.0 for reason, lost in found.losses_ms.items()},
        memory_bytes=placement.memory.total,
    )


def table(cases: Sequence[Case]) -> str:
    """Efficiency and bottleneck of every case, a column for each number of workers; `*` = the bank is recomputed."""
    workers = list(dict.fromkeys(case.workers for case in cases))
    lines = [["frames", "link", *[f"{n} worker{'s' * (n > 1)}" for n in workers], "basis"]]
    for frames, link in dict.fromkeys((case.frames, case.link) for case in cases):
        row = [case for case in cases if (case.frames, case.link) == (frames, link)]
        lines.append([f"{frames:,}".replace(",", " "), link, *map(_cell, row), row[0].basis])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def heading(costs: StageCosts, num_inference_steps: int, links: Iterable[Link]) -> str:
    """What the table is of, and what of it is measured and what assumed."""
    basis = "measured here or read from a file" if costs.measured else "computed from operations at an assumed rate"
    speeds = ", ".join(f"{link.name} {link.gb_per_s:g} GB/s" for link in links)
    reasons = "\n".join(f"  {name:<11} {why}" for name, why in LOSSES.items())
    return (
        f"{costs.name}: {num_inference_steps} steps, {costs.anchors} anchors, {costs.micro_batch} frames a batch\n"
        f"stage costs, {basis}: text {costs.text_ms:.3g} ms, encode {costs.encode_ms:.3g} and decode "
        f"{costs.decode_ms:.3g} ms a frame,\n  a step {costs.anchors_step_ms:.3g} ms (anchors), "
        f"{costs.frames_step_ms:.3g} ms (frames), hand-out {costs.handout_ms:.3g} ms; bank "
        f"{costs.bank_step_bytes / 1e6:.3g} MB a step\n"
        f"links, assumed: {speeds}; schedule: simulated; video in and out: not counted\n"
        f"efficiency = worker-seconds of one worker / (workers × makespan), and the largest loss, * bank recomputed:\n"
        f"{reasons}\n"
    )


def to_json(
    costs: StageCosts, num_inference_steps: int, links: Iterable[Link], cases: Iterable[Case]
) -> dict[str, Any]:
    """All that the table says and what it is of, as plain values."""
    return {
        "stage_costs": costs.to_json(),
        "num_inference_steps": num_inference_steps,
        "links": [asdict(link) for link in links],
        "cases": [asdict(case) for case in cases],
    }


def check_plot(path: Path) -> None:
    """What `draw` would raise of a path, before anything is computed for it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MachineError("Drawing needs the package matplotlib; install it, or leave --plot out.") from error
    if path.suffix.lower().lstrip(".") not in Figure().canvas.get_supported_filetypes():
        raise InputError(f"{path} has no ending of a picture; name a .png, .svg or .pdf file.")


def draw(cases: Sequence[Case], title: str, path: Path) -> None:
    """Efficiency against workers, a panel for each link and a line for each length.

    Raises:
        InputError: the file's ending is no picture's. MachineError: matplotlib is missing.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    links = list(dict.fromkeys(case.link for case in cases))
    figure = Figure(figsize=(1 + 3.6 * len(links), 3.6), layout="constrained")
    for axis, link in zip(figure.subplots(1, len(links), sharey=True, squeeze=False)[0], links, strict=True):
        for frames in dict.fromkeys(case.frames for case in cases):
            line = [case for case in cases if (case.link, case.frames) == (link, frames)]
            axis.plot(
                [c.workers for c in line], [100 * c.efficiency for c in line], marker="o", label=f"{frames:,} frames"
            )
        axis.axhline(100 * GOAL, color="gray", linestyle="--", linewidth=0.8)
        axis.set(title=link, xlabel="workers", xscale="log", ylim=(0, 103))
        axis.set_xticks([c.workers for c in line], [str(c.workers) for c in line], minor=False)
        axis.minorticks_off()
    figure.axes[0].set_ylabel("efficiency, % (computed)")
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120)


def _cell(case: Case) -> str:
    mark = "*" if case.bank == "recompute" else ""
    return f"{100 * case.efficiency:.1f} %{mark} {case.bottleneck}"
