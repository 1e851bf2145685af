"""One backend on some graphs, alone in its process: ``python -m benchmarks.engine_case CASE.json``; prints JSON.

`bench_engines.py` writes the case: model, backend, device, precision, threads, and for every graph a safetensors file
of inputs with the outputs that eager gives in float64.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.timing import time_ms
from fairy.engines.backends import make_builder
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import BuildOptions, Engine, EngineSpec, Shapes
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.model import graph_specs
from fairy.export.shapes import dtype_of


def main() -> None:
    """Run the case that the first argument names."""
    case = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(case["threads"])
    precision = getattr(torch, case["precision"])
    checkpoint = load_checkpoint(case["model"], dtype=precision, device=torch.device(case["device"]))
    specs = graph_specs(checkpoint)
    rows = [_measure(case, checkpoint, specs[name], Path(path)) for name, path in case["graphs"].items()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rows": rows, "peak_bytes": peak}))


def _measure(case: dict[str, Any], checkpoint: Checkpoint, graph: GraphSpec, path: Path) -> dict[str, Any]:
    """Build, load, run and compare one graph."""
    device, precision = torch.device(case["device"]), getattr(torch, case["precision"])
    tensors = load_file(path)
    inputs = {t.name: tensors[f"in/{t.name}"].to(device, dtype_of(t, precision)) for t in graph.inputs}
    exact = {t.name: tensors[f"out/{t.name}"] for t in graph.outputs}
    spec = EngineSpec(graph, case["backend"], str(device), case["precision"])
    with tempfile.TemporaryDirectory() as folder:
        engine, build_s, load_s = _engine(spec, checkpoint, Shapes(**case["shapes"]), Path(folder))
        outputs = engine(inputs)
        found = time_ms(lambda: engine(inputs, outputs), device=device, budget_ms=case["budget_ms"], min_runs=3)
        engine.close()
    errors = [float((outputs[n].double().cpu() - exact[n]).norm() / exact[n].norm()) for n in exact]
    forwards = inputs["sample"].shape[0] * inputs["sample"].shape[1] if "sample" in inputs else 1
    return {
        "graph": graph.name,
        "build_s": build_s,
        "load_s": load_s,
        "ms": found.median_ms / forwards,
        "p20_ms": found.p20_ms / forwards,
        "p80_ms": found.p80_ms / forwards,
        "error": max(errors),
    }


def _engine(
    spec: EngineSpec, checkpoint: Checkpoint, shapes: Shapes, folder: Path
) -> tuple[Engine, float | None, float]:
    """The engine, seconds to build it (None for eager, which is not built) and to load it."""
    device = torch.device(spec.device)
    started = time.perf_counter()
    if spec.backend == "eager":
        engine: Engine = EagerBackend(checkpoint, device, getattr(torch, spec.precision)).engine(spec.graph)
        return engine, None, time.perf_counter() - started
    builder = make_builder(spec.backend)
    builder.build(checkpoint, spec, shapes, BuildOptions(), folder, lambda phase, done, total: True)
    built = time.perf_counter()
    engine = builder.load(spec, folder, device)
    return engine, built - started, time.perf_counter() - built


if __name__ == "__main__":
    main()
