"""Every backend on the same graphs and inputs: ``pytest benchmarks/bench_engines.py [--full]``.

Each runs alone in a process, and is built in another, so that its peak memory is its own. Columns: seconds to build and
to load an engine, milliseconds a sample-forward (one picture in one guidance branch), peak memory of the process that
ran all its graphs, relative L2 error against eager in float64. `--full` adds the compiled backend, which a CPU builds
in minutes.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fairy.benchmarks.records import Quality, Record, make_record
from fairy.benchmarks.timing import Timing
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import Shapes
from fairy.export.bases.stable_diffusion import graph_specs
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.graphs import GraphSpec
from fairy.export.shapes import random_inputs
from fairy.runtime.models import embedded_model

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = ("unet_anchor", "unet_frame", "vae_decoder")
HEIGHT, WIDTH, FRAMES, ANCHORS = 192, 256, 3, 3


def test_engines(
    device: torch.device,
    full: bool,
    tmp_path: Path,
    show: Callable[[str], None],
    keep: Callable[[Sequence[Record]], None],
) -> None:
    precision = "float16" if device.type == "cuda" else "float32"
    checkpoint = load_checkpoint(embedded_model())
    sizes: dict[str, Any] = {"height": (HEIGHT,) * 3, "width": (WIDTH,) * 3, "frames": (1, FRAMES, FRAMES)}
    sizes |= {"anchors": ANCHORS, "tokens": checkpoint.tokenizer.model_max_length}
    specs = graph_specs(checkpoint)
    graphs = {name: str(_reference(checkpoint, specs[name], Shapes(**sizes), tmp_path)) for name in GRAPHS}
    case = {"model": str(embedded_model()), "device": device.type, "precision": precision, "threads": 1}
    case |= {"graphs": graphs, "shapes": sizes, "budget_ms": 2000}
    show(f"\n{HEADER}")
    for backend in _backends(device, full):
        own = {**case, "backend": backend, "folder": str(tmp_path / backend)}
        built = _run("build", own, tmp_path)["rows"] if backend != "eager" else {}
        found = _run("run", own, tmp_path)
        show(_lines(backend, built, found))
        keep(_records(own, built, found, device))
        assert all(row["error"] < (1e-3 if precision == "float32" else 5e-2) for row in found["rows"].values())


HEADER = (
    f"{'backend':<12} {'graph':<12} {'build s':>8} {'load s':>7} {'ms':>9} {'p20…p80':>17} {'peak MiB':>9} {'error':>8}"
)


def _backends(device: torch.device, full: bool) -> list[str]:
    if device.type == "cuda":
        return ["eager", "compiled", "onnxruntime", "tensorrt"] if full else ["eager", "compiled"]
    return ["eager", "onnxruntime", *(["compiled"] if full else [])]


def _reference(checkpoint: Checkpoint, graph: GraphSpec, shapes: Shapes, folder: Path) -> Path:
    """Inputs of a graph and what eager makes of them in float64, in a file."""
    inputs = random_inputs(graph, shapes.sizes(graph, checkpoint.vae_factor), torch.float32, seed=0)
    backend = EagerBackend(checkpoint, torch.device("cpu"), torch.float32)
    wide = {name: t.double() if t.dtype == torch.float32 and name != "timestep" else t for name, t in inputs.items()}
    outputs = backend.engine(graph, torch.float64)(wide)
    backend.close()
    path = folder / f"{graph.name}.safetensors"
    named = {f"in/{name}": t for name, t in inputs.items()} | {f"out/{name}": t for name, t in outputs.items()}
    save_file({name: t.contiguous().clone() for name, t in named.items()}, path)
    return path


def _run(part: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / f"{case['backend']}.json"
    path.write_text(json.dumps(case))
    command = [sys.executable, "-m", "benchmarks.engine_case", part, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _records(case: dict[str, Any], built: dict[str, Any], found: dict[str, Any], device: torch.device) -> list[Record]:
    """A record of every graph; times are those of one sample-forward."""
    shapes = {name: case["shapes"][name] for name in sorted(case["shapes"])}
    recipe = {"benchmark": "engines", "model": "embedded", "shapes": shapes, "precision": case["precision"]}
    records = []
    for graph, row in found["rows"].items():
        timing = Timing(**row["timing"] | {"throttled": tuple(row["timing"]["throttled"])})
        figures = {"load_s": row["load_s"], "peak_bytes": found["peak_bytes"], **built.get(graph, {})}
        error = Quality(row["error"], "lower", 0.5 * row["error"])
        own = recipe | {"backend": case["backend"], "graph": graph, "threads": case["threads"]}
        name = f"engines, {case['backend']}, {graph}"
        records.append(
            make_record(name, own, device, timing=timing, quality={"relative_error": error}, figures=figures)
        )
    return records


def _lines(backend: str, built: dict[str, Any], found: dict[str, Any]) -> str:
    lines = []
    for name, row in found["rows"].items():
        build = f"{built[name]['build_s']:.1f}" if name in built else ""
        timing = row["timing"]
        spread = f"{timing['p20_ms']:.1f}…{timing['p80_ms']:.1f}"
        lines.append(
            f"{backend:<12} {name:<12} {build:>8} {row['load_s']:>7.2f} {timing['median_ms']:>9.1f} {spread:>17} "
            f"{found['peak_bytes'] / 2**20:>9.0f} {row['error']:>8.1e}"
        )
    return "\n".join(lines)
