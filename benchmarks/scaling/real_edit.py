"""One real edit beside the simulation of one worker: whether stages that were measured apart add up."""

import numpy as np

from fairy.benchmarks.scaling.placement import Link, Workload, plan_placement
from fairy.benchmarks.scaling.simulation import simulate
from fairy.runtime import Editor, EditParams
from fairy.runtime.plan.choose_anchors import choose_anchors
from fairy.runtime.plan.stage_costs import StageCosts

_STAGES = ("text", "encode", "anchors", "frames", "decode")


def real_edit(
    costs: StageCosts,
    model: str | None,
    *,
    device: str,
    dtype: str,
    backend: str,
    num_frames: int = 9,
    num_inference_steps: int = 2,
) -> tuple[float, float]:
    """Edit random 4:3 frames in this process with the model that `costs` are of.

    Returns:
        Milliseconds that were simulated, and milliseconds that the edit's report gives for the same stages.
    """
    workload = Workload(num_frames, choose_anchors(costs.anchors, num_frames), num_inference_steps)
    without_controller = StageCosts.from_json({**costs.to_json(), "handout_ms": 0.0})
    alone = Link("none", 1.0)
    placement = plan_placement(workload, without_controller, num_workers=1, link=alone, micro_batch=costs.micro_batch)
    shape = (num_frames, max(costs.long_side * 3 // 4, 1), costs.long_side, 3)
    frames = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    params = EditParams(
        "make it snow",
        anchors=workload.anchors,
        num_inference_steps=num_inference_steps,
        micro_batch=costs.micro_batch,
        long_side=costs.long_side,
    )
    with Editor.from_pretrained(model, device=device, dtype=dtype, backend=backend) as editor:
        editor.warm_up(*shape[1:3], params)
        times_ms = editor.edit(frames, params).report.times_ms
    return simulate(placement, without_controller, alone).makespan_ms, sum(times_ms[stage] for stage in _STAGES)
