"""One backend on some graphs, alone in its process: ``python -m benchmarks.engine_case build|run CASE.json``.

`bench_engines.py` writes the case: model, backend, device, precision, threads, a folder for the engines, and for every
graph a safetensors file of inputs with the outputs that eager gives in float64. Building is a process of its own, so
that its memory is not counted as the engine's. The last line printed is JSON.
"""

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.timing import time_ms
from fairy.engines.backends import make_builder
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import BuildOptions, Engine, EngineSpec, Shapes
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.shapes import dtype_of

_PER_FORWARD = ("median_ms", "p20_ms", "p80_ms")


def main() -> None:
    """Run the part of the case that the arguments name."""
    part, case = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(case["threads"])
    precision, device = getattr(torch, case["precision"]), torch.device(case["device"])
    checkpoint = load_checkpoint(case["model"], dtype=precision, device=device)
    specs = graph_specs(checkpoint)
    work = _build if part == "build" else _run
    rows = {
        name: work(case, checkpoint, EngineSpec(specs[name], case["backend"], str(device), case["precision"]))
        for name in case["graphs"]
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rows": rows, "peak_bytes": peak}))


def _build(case: dict[str, Any], checkpoint: Checkpoint, spec: EngineSpec) -> dict[str, Any]:
    """Build one engine into the case's folder."""
    folder = Path(case["folder"]) / spec.graph.name
    folder.mkdir(parents=True)
    started = time.perf_counter()
    make_builder(spec.backend).build(
        checkpoint, spec, Shapes(**case["shapes"]), BuildOptions(), folder, lambda phase, done, total: True
    )
    return {"build_s": time.perf_counter() - started}


def _run(case: dict[str, Any], checkpoint: Checkpoint, spec: EngineSpec) -> dict[str, Any]:
    """Load, run and compare one engine."""
    graph, device, precision = spec.graph, torch.device(case["device"]), getattr(torch, case["precision"])
    tensors = load_file(case["graphs"][graph.name])
    inputs = {t.name: tensors[f"in/{t.name}"].to(device, dtype_of(t, precision)) for t in graph.inputs}
    exact = {t.name: tensors[f"out/{t.name}"] for t in graph.outputs}
    started = time.perf_counter()
    engine = _engine(case, checkpoint, spec)
    load_s = time.perf_counter() - started
    outputs = engine(inputs)
    found = time_ms(
        lambda: engine(inputs, outputs), device=device, budget_ms=case["budget_ms"], min_runs=5, graph=False
    )
    engine.close()
    errors = [float((outputs[n].double().cpu() - exact[n]).norm() / exact[n].norm()) for n in exact]
    forwards = inputs["sample"].shape[0] * inputs["sample"].shape[1] if "sample" in inputs else 1
    return {
        "load_s": load_s,
        "timing": asdict(found) | {name: getattr(found, name) / forwards for name in _PER_FORWARD},
        "error": max(errors),
    }


def _engine(case: dict[str, Any], checkpoint: Checkpoint, spec: EngineSpec) -> Engine:
    device = torch.device(spec.device)
    if spec.backend == "eager":
        return EagerBackend(checkpoint, device, getattr(torch, spec.precision)).engine(spec.graph)
    return make_builder(spec.backend).load(spec, Path(case["folder"]) / spec.graph.name, device)


if __name__ == "__main__":
    main()
