"""An exported file against what it was made from: well-formed, and equal to torch on several shapes.

torch runs first and its results are saved; then onnxruntime runs alone in a process of its own, so that no more than
one copy of the weights beside the checkpoint's is ever in memory.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from fairy.export.graphs import GraphSpec
from fairy.export.model import Model
from fairy.export.precision import with_network_in
from fairy.export.shapes import random_inputs
from fairy.kernels.errors import InputError, MachineError

# Relative error in the L2 norm of an output: rounding through the depth of a UNet, with an order of magnitude to spare.
TOLERANCES = {"float32": 1e-4, "float16": 3e-2}
_DEADLINE_S = 3600


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a file is from torch.

    Attributes:
        max_abs_error: the largest of all elements, outputs and shapes.
        relative_error: the largest quotient of L2 norms, error to reference, of all outputs and shapes.
        shapes: sizes by symbolic dimension, one entry a run.
    """

    max_abs_error: float
    relative_error: float
    shapes: tuple[dict[str, int], ...]


def check_graph(
    model: Model,
    spec: GraphSpec,
    path: Path,
    precision: str,
    shapes: tuple[dict[str, int], ...] | None = None,
) -> Parity:
    """Check a file with onnx and compare it with the graph's module in float32, with the weights of that precision.

    Args:
        path: what `export_onnx` wrote for `spec`.
        precision: the file's, "float32" or "float16".
        shapes: sizes by symbolic dimension; None = `default_shapes`.

    Raises:
        InputError: onnxruntime is not installed.
        MachineError: the file is malformed, does not run, or computes something else.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("Checking an export needs onnxruntime: pip install onnxruntime, or export without the check.")
    check_file(path)
    chosen = default_shapes(model, spec) if shapes is None else shapes
    with tempfile.TemporaryDirectory(prefix="fairy-parity-") as folder:
        _save_reference(model, spec, precision, chosen, Path(folder))
        errors = _run_alone(path, Path(folder))
    for sizes, (_, relative) in zip(chosen, errors, strict=True):
        if not relative <= TOLERANCES[precision]:  # not a number is too much as well
            raise MachineError(
                f"{path} does not compute what torch computes: relative error {relative:.2g} at {sizes}, "
                f"where {TOLERANCES[precision]:.2g} is allowed."
            )
    return Parity(max(a for a, _ in errors), max(r for _, r in errors), chosen)


def check_file(path: Path) -> None:
    """Run onnx.checker with shape inference. Raises MachineError where it finds a fault."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MachineError(f"{path} is not a well-formed ONNX file ({str(error).splitlines()[0]}).") from error


def default_shapes(model: Model, spec: GraphSpec) -> tuple[dict[str, int], ...]:
    """Sizes that hurt: one to three groups, one to five frames, sides that differ, odd lengths of text and context."""
    unit = spec.multiple if spec.multiple > 1 else 8
    runs = (
        {"groups": 1, "frames": 1, "height": 2 * unit, "width": unit, "tokens": 5, "batch": 1},
        {"groups": 3, "frames": 5, "height": unit, "width": 3 * unit, "tokens": 77, "batch": 2},
        {"groups": 2, "frames": 3, "height": 3 * unit, "width": 2 * unit, "tokens": 16, "batch": 3},
    )
    return tuple(_complete(spec, model.vae_factor, run, anchors) for anchors, run in enumerate(runs, 1))


def _complete(spec: GraphSpec, vae_factor: int, run: dict[str, int], anchors: int) -> dict[str, int]:
    """The sizes a graph's inputs really have, with those that follow from the picture's added."""
    sizes = run | {"frames": max(run["frames"], spec.frames[0]), "source_tokens": run["height"] * run["width"]}
    for side in ("height", "width"):
        sizes[f"image_{side}"] = run[side] * vae_factor
    for level in {layer.level for layer in spec.layers}:
        # Context need not be as long as the anchors' tokens: one token more is served as well.
        sizes[f"context_{level}"] = anchors * (run["height"] >> level) * (run["width"] >> level) + anchors % 2
    used = {dim for tensor in spec.inputs for dim in tensor.dims}
    return {name: size for name, size in sizes.items() if name in used}


def _save_reference(
    model: Model, spec: GraphSpec, precision: str, runs: tuple[dict[str, int], ...], folder: Path
) -> None:
    """Inputs and outputs of every run, as `in.<name>` and `out.<name>` of `<number>.safetensors`."""
    dtype = getattr(torch, precision)
    module = with_network_in(model, spec, dtype, torch.float32).build(spec).eval()
    for number, sizes in enumerate(runs):
        inputs = random_inputs(spec, sizes, dtype, seed=number)
        exact = [t.float() if t.is_floating_point() else t for t in inputs.values()]
        with torch.inference_mode():
            results = module(*exact)
        names = (tensor.name for tensor in spec.outputs)
        tensors = {f"in.{name}": t for name, t in inputs.items()}
        tensors |= {f"out.{name}": t.contiguous() for name, t in zip(names, results, strict=True)}
        save_file(tensors, folder / f"{number}.safetensors")


def _run_alone(path: Path, folder: Path) -> list[tuple[float, float]]:
    """Errors of every run, from a process that holds the session and nothing else."""
    command = [sys.executable, "-P", "-m", "fairy.export.onnx.parity_session", str(path), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{path} did not run through within {_DEADLINE_S} s in onnxruntime.") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise MachineError(f"{path} does not run in onnxruntime (exit code {done.returncode}: {last}).")
    return [(float(absolute), float(relative)) for absolute, relative in json.loads(done.stdout)]
