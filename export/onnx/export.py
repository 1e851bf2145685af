"""A graph of a checkpoint as an ONNX file: one trace, attention as nodes with a function's body, weights beside it.

Symbolic dimensions are named as in `GraphSpec`; sides of latents are multiples of what the UNet halves. The file holds
nothing of the machine that made it.
"""

import errno
import logging
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairy.export.families import load_edit_model
from fairy.export.graphs import GraphSpec
from fairy.export.model import Model
from fairy.export.onnx.attention import BODIES, DOMAIN, OPSET, Body, attention_functions, attention_node, replaced_sdpa
from fairy.export.onnx.onnx_files import MODEL, data_file
from fairy.export.precision import with_network_in
from fairy.export.shapes import random_inputs, side_of
from fairy.kernels.errors import Cancelled, InputError, MachineError

PRECISIONS = ("float32", "float16", "bfloat16")
VAE_FACTOR = "fairy.vae_factor"  # key of the file's metadata: pixels a latent stands for
_EXTERNAL_BYTES = 32 << 20  # weights of more than this stand in a file of their own
_SDPA = torch.ops.aten.scaled_dot_product_attention.default

OnProgress = Callable[[str, int, int], bool]


@dataclass(frozen=True, slots=True)
class GraphReport:
    """One exported graph.

    Attributes:
        name: of the graph.
        path: the ONNX file; `bytes` counts it and the weights beside it.
        seconds: for the export alone, and `check_seconds` for its check.
        max_abs_error, relative_error: the largest of all outputs and shapes against torch in float32, the second as a
            quotient of L2 norms; None where the check was left out.
        shapes: what was compared: for each run, sizes by symbolic dimension.
    """

    name: str
    path: Path
    bytes: int
    seconds: float
    check_seconds: float = 0.0
    max_abs_error: float | None = None
    relative_error: float | None = None
    shapes: tuple[dict[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export_model` wrote."""

    model: str
    body: Body
    precision: str
    graphs: tuple[GraphReport, ...]


def export_onnx(model: Model, spec: GraphSpec, path: Path, *, body: Body, precision: str) -> None:
    """Write one graph to `path`, and weights above 32 MiB to `path` with `.data` appended.

    Both appear only when they are whole. Weights are cast to `precision` where the checkpoint has another.

    Args:
        model: it is not changed.
        spec: one of `model.graphs()`, or another of its UNet.
        path: a file in an existing folder.
        body: how attention is computed, see `onnx_attention.py`.
        precision: "float32", "float16" or "bfloat16"; the last is for "portable" alone.

    Raises:
        InputError: body or precision is not served, or a library for ONNX is missing.
        MachineError: the disk is full.
    """
    _check_options(body, precision)
    dtype = getattr(torch, precision)
    module = with_network_in(model, spec, dtype).build(spec, attention_node).eval()
    with _quiet(), torch.no_grad():
        made = _traced(module, spec, _dims(model, spec), dtype)
    _name_dims(made, spec)
    made.metadata_props[VAE_FACTOR] = str(model.vae_factor)
    _put_attention(made, body)
    _save(made, path)


def export_model(
    model: str | Path | Model,
    out: Path,
    *,
    graphs: Sequence[str] | None = None,
    layers: str = "all",
    body: Body = "onnxruntime",
    precision: str = "float32",
    check: bool = True,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Write graphs of a model to `out/<graph>/model.onnx`, each checked and compared with torch.

    Args:
        model: a folder in diffusers' format, a hub id, or a loaded model.
        graphs: names of graphs; None = all of them but the rare ones.
        layers: "all" or "decoder": the self-attention layers that have anchors.
        check: run onnx.checker with shape inference, and compare with torch on several shapes in onnxruntime.
        on_progress: called with (phase, done, total); it returns False to stop.

    Raises:
        InputError: a graph, body or precision is not known, or the model cannot be loaded.
        MachineError: a file does not compute what torch computes, or the disk is full.
        Cancelled: `on_progress` asked to stop.
    """
    _check_options(body, precision)
    if check and precision == "bfloat16":
        raise InputError(
            "bfloat16 cannot be checked on this machine's CPU; export it without the check, or in float16."
        )
    loaded: Model = load_edit_model(model, dtype=getattr(torch, precision)) if isinstance(model, str | Path) else model
    specs = _chosen(loaded, layers, graphs)
    reports = []
    for i, spec in enumerate(specs):
        _tell(on_progress, f"export {spec.name}", i, len(specs))
        report = _export_one(loaded, spec, Path(out), body, precision)
        if check:
            _tell(on_progress, f"check {spec.name}", i, len(specs))
            try:
                report = _checked(loaded, spec, report, precision)
            except MachineError:  # a file that computes something else is not left to be used
                for written in (report.path, data_file(report.path)):
                    written.unlink(missing_ok=True)
                raise
        reports.append(report)
    _tell(on_progress, "done", len(specs), len(specs))
    return ExportReport(loaded.name, body, precision, tuple(reports))


def _export_one(model: Model, spec: GraphSpec, out: Path, body: Body, precision: str) -> GraphReport:
    path = out / spec.name / MODEL
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made ({error.strerror}); choose another folder.") from error
    started = time.perf_counter()
    export_onnx(model, spec, path, body=body, precision=precision)
    size = sum(p.stat().st_size for p in (path, data_file(path)) if p.exists())
    return GraphReport(spec.name, path, size, time.perf_counter() - started)


def _checked(model: Model, spec: GraphSpec, report: GraphReport, precision: str) -> GraphReport:
    """The report with what the check found. Raises MachineError where the file computes something else."""
    from fairy.export.onnx.parity import check_graph

    started = time.perf_counter()
    parity = check_graph(model, spec, report.path, precision)
    return replace(
        report,
        check_seconds=time.perf_counter() - started,
        max_abs_error=parity.max_abs_error,
        relative_error=parity.relative_error,
        shapes=parity.shapes,
    )


def _chosen(model: Model, layers: str, names: Sequence[str] | None) -> list[GraphSpec]:
    specs = model.graphs(layers=layers)
    unknown = [name for name in names or () if name not in specs]
    if unknown:
        raise InputError(f"There is no graph named {unknown[0]!r}; choose from {', '.join(specs)}.")
    chosen = set(specs) - set(model.rare_graphs) if names is None else set(names)
    return [spec for name, spec in specs.items() if name in chosen]


def _check_options(body: str, precision: str) -> None:
    if body not in BODIES:
        raise InputError("is not known", name="body", value=body, remedy=f"choose one of {', '.join(BODIES)}")
    if precision not in PRECISIONS:
        raise InputError(
            "is not known", name="precision", value=precision, remedy=f"choose one of {', '.join(PRECISIONS)}"
        )
    if body == "onnxruntime" and precision == "bfloat16":
        raise InputError("onnxruntime does not compute this network in bfloat16; choose float32 or float16.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"Exporting needs {error.name}: pip install onnx onnxscript.") from error


def _tell(on_progress: OnProgress | None, phase: str, done: int, total: int) -> None:
    if on_progress is not None and on_progress(phase, done, total) is False:
        raise Cancelled("The export was cancelled; graphs that were already written stay.")


def _dims(model: Model, spec: GraphSpec) -> dict[str, Any]:
    """Symbolic dimensions as `torch.export` has them, by name; sides are multiples of what the network needs."""
    sides = {"height": spec.multiple, "width": spec.multiple}
    sides |= {f"image_{side}": model.vae_factor * spec.multiple for side in ("height", "width")}
    named = {dim for tensor in spec.inputs for dim in tensor.dims if isinstance(dim, str)}
    halved = {dim: side_of(dim) for dim in named if side_of(dim)[1]}
    names = named - set(halved)
    least, most = {"frames": spec.frames[0]}, {"frames": spec.frames[1]}
    free = {
        name: torch.export.Dim(f"{name}_units", min=least.get(name, 1), max=most.get(name, 1 << 24)) for name in names
    }
    sides |= {dim: spec.multiple >> level for dim, (_, level) in halved.items()}
    free |= {dim: free[side] for dim, (side, _) in halved.items()}
    return {name: sides[name] * dim if sides.get(name, 1) > 1 else dim for name, dim in free.items()}


def _traced(module: nn.Module, spec: GraphSpec, dims: dict[str, Any], precision: torch.dtype) -> Any:
    """The graph as an `onnx_ir.Model`, its attention as nodes without bodies."""
    # Every dimension has an example size of its own, so that no two are taken for one.
    sizes = {name: 2 + i for i, name in enumerate(sorted(dims))}
    unit = math.lcm(24, spec.multiple)
    units = {name: unit * (spec.multiple if name.startswith("image_") else 1) for name in sorted(set(dims) & _SIDES)}
    sizes |= {name: (2 + i) * unit for i, (name, unit) in enumerate(units.items())}
    sizes = {name: size for name, size in sizes.items() if not side_of(name)[1]}
    inputs = list(random_inputs(spec, sizes, precision, seed=0).values())
    axes: list[Any] = [{i: dims[d] for i, d in enumerate(t.dims) if isinstance(d, str)} for t in spec.inputs]
    context = [tuple(axes[3:])] if axes[3:] else []  # the context of a UNet is one *argument
    shapes = (*axes[:3], *context)
    program = torch.export.export(module, tuple(inputs), dynamic_shapes=shapes, strict=False)
    if any(node.target is _SDPA for node in program.graph.nodes):
        program = program.run_decompositions({_SDPA: replaced_sdpa})
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=[tensor.name for tensor in spec.outputs],
        verbose=False,
    )
    if exported is None:
        raise MachineError(f"PyTorch did not export {spec.name}.")
    return exported.model


_SIDES = frozenset({"height", "width", "image_height", "image_width"})


def _name_dims(model: Any, spec: GraphSpec) -> None:
    """Name the dimensions of inputs and outputs as the spec does, and leave out the tracer's names and notes."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with this machine's paths
        for value in node.outputs:
            value.metadata_props.clear()
            if value.shape is not None and not all(isinstance(dim, int) for dim in value.shape):
                value.shape = None  # its dimensions have the tracer's names; whoever reads the file infers them again
    for tensors, values in ((spec.inputs, model.graph.inputs), (spec.outputs, model.graph.outputs)):
        for tensor, value in zip(tensors, values, strict=True):
            value.metadata_props.clear()
            value.shape = ir.Shape(tensor.dims)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _put_attention(model: Any, body: Body) -> None:
    """Give the attention nodes their bodies; other bodies are exchanged for these."""
    import onnx_ir as ir

    for function in attention_functions(body):
        made = ir.serde.deserialize_function(function)
        model.functions[made.identifier()] = made
    model.opset_imports.setdefault(DOMAIN, 1)
    if body == "portable":
        for node in model.graph.all_nodes():
            if node.domain == DOMAIN:
                node.attributes.pop("heads")  # plugins with scalar attributes fail on some versions of TensorRT


def _save(model: Any, path: Path) -> None:
    """Write the file, and large weights beside it; each appears under its name only when both are whole."""
    import onnx_ir as ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    data = data_file(path)
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        large = weights > _EXTERNAL_BYTES
        ir.save(model, folder / path.name, external_data=data.name if large else None)
        if data.exists() or large:
            path.unlink(missing_ok=True)  # an old file must not be seen with new weights
        for written in sorted(folder.iterdir(), reverse=True):  # the weights before the file that names them
            _flush(written)
            os.replace(written, path.with_name(written.name))
        if not large:
            data.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise MachineError(f"The disk is full: {path} needs about {weights >> 20} MiB; free some space.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing without the exporter's remarks on libraries that are not installed and on its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


__all__ = ["PRECISIONS", "VAE_FACTOR", "ExportReport", "GraphReport", "export_model", "export_onnx"]
