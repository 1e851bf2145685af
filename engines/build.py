"""Engines are built in four steps: plan what is needed, estimate what it takes, build under a lock, verify.

An engine that does not compute what eager computes is never published.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fairy.engines.backend_names import BUILDABLE
from fairy.engines.engine import Builder, BuildOptions, EngineSpec, OnBuild, Shapes
from fairy.engines.store.key import EngineKey, full_environment, make_key, source_fingerprint
from fairy.engines.store.manifest import Provenance
from fairy.engines.store.store import EngineStore, StoredEngine
from fairy.engines.verify import TOLERANCES, compare, errors_by_output
from fairy.export.graphs import GraphSpec
from fairy.export.lora import base_name
from fairy.export.model import Model
from fairy.kernels.errors import Cancelled, InputError, MachineError

# Backends whose engines serve any shape: nothing about shapes is asked, and none is part of their keys.
ANY_SHAPE = ("onnxruntime",)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Rules of thumb for graphs that were never built here: seconds for a UNet and for anything else, and seconds for each
# GB of weights. Export dominates onnxruntime; TensorRT and compilers try kernels out.
_SECONDS = {"onnxruntime": (40.0, 8.0, 6.0), "tensorrt": (120.0, 40.0, 60.0), "compiled": (90.0, 30.0, 20.0)}
_EXPORT_BYTES = 800 << 20  # what tracing takes beside the weights
_GRAPH_BYTES = 4 << 20  # an engine's nodes, without weights


@dataclass(frozen=True, slots=True)
class Estimate:
    """What building one engine will take; `measured` where the store holds one of the same graph and backend."""

    seconds: float
    disk_bytes: int
    memory_bytes: int
    measured: bool


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """One engine to be built; `stored` where it is in the store already."""

    spec: EngineSpec
    key: EngineKey
    estimate: Estimate
    stored: StoredEngine | None

    def to_json(self) -> dict[str, Any]:
        """What is planned, as plain values."""
        return {
            "graph": self.spec.graph.name,
            "digest": self.key.digest,
            "in_store": self.stored is not None,
            "seconds": round(self.estimate.seconds, 1),
            "disk_bytes": self.estimate.disk_bytes,
            "memory_bytes": self.estimate.memory_bytes,
            "measured": self.estimate.measured,
        }


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Which engines are wanted.

    Attributes:
        backend, device, precision: "onnxruntime", the device they will run on, torch.float32.
        shapes: what they must serve; None for a backend whose engines serve any.
        graphs: names of graphs; None = those that a job of the model usually needs.
        layers: self-attention layers that see the anchors, "all" or "decoder".
    """

    backend: str
    device: torch.device
    precision: torch.dtype
    shapes: Shapes | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    graphs: tuple[str, ...] | None = None
    layers: str = "all"

    def __post_init__(self) -> None:
        if self.backend not in BUILDABLE:
            raise InputError(f"Backend {self.backend!r} has no engines to build; choose one of {', '.join(BUILDABLE)}.")
        if self.backend in ANY_SHAPE and (self.shapes is not None or self.options != BuildOptions()):
            raise InputError(
                f"Engines of {self.backend} serve every shape and know no build options; leave out --height, --width, "
                "--frames, --anchors and TensorRT's options."
            )


def plan_build(model: Model, request: BuildRequest, builder: Builder, store: EngineStore) -> tuple[PlannedEngine, ...]:
    """What has to be built. Nothing is written.

    Raises:
        InputError: a graph or shape is not possible. MachineError: the backend does not work here.
    """
    if request.backend not in ANY_SHAPE and request.shapes is None:
        raise InputError(f"Engines of {request.backend} need shapes; give height, width, frames and anchors.")
    environment = full_environment(builder, request.device)
    precision = str(request.precision).removeprefix("torch.")
    planned = []
    for graph in _wanted(model, request):
        if request.shapes is not None:
            request.shapes.ranges(graph, model.vae_factor)  # refuse what is impossible before anything is built
        spec = EngineSpec(graph, request.backend, str(request.device), precision)
        key = make_key(model, spec, builder, environment, request.shapes, request.options)
        planned.append(PlannedEngine(spec, key, estimate(model, spec, store), store.find(key)))
    return tuple(planned)


def estimate(model: Model, spec: EngineSpec, store: EngineStore) -> Estimate:
    """Time, disk and memory that building an engine takes: as measured for the like, else by rules of thumb."""
    weights = num_parameters(model, spec.graph)
    disk = weights * _BYTES[spec.precision] + _GRAPH_BYTES
    memory = _EXPORT_BYTES + weights * (4 + _BYTES[spec.precision])
    like = [
        entry.manifest.made.timings_s["build"]
        for entry in store.engines()
        if entry.manifest.key.get("backend") == spec.backend
        and entry.manifest.key["graph"]["name"] == spec.graph.name
        and "build" in entry.manifest.made.timings_s
        and 0.5 < entry.manifest.num_bytes / disk < 2
    ]
    unet, other, per_gigabyte = _SECONDS[spec.backend]
    seconds = (unet if spec.graph.layers else other) + weights * 4e-9 * per_gigabyte
    return Estimate(sum(like) / len(like) if like else seconds, disk, memory, bool(like))


def num_parameters(model: Model, graph: GraphSpec) -> int:
    """Weights that a graph holds."""
    module = model.network(model.network_of(graph))
    if graph.name in ("vae_encoder", "vae_decoder"):
        module = getattr(module, graph.name.removeprefix("vae_"))
    return sum(parameter.numel() for parameter in module.parameters())


def run_build(
    planned: Sequence[PlannedEngine],
    model: Model,
    builder: Builder,
    store: EngineStore,
    *,
    command: str,
    on_progress: OnBuild = lambda phase, done, total: True,
) -> tuple[StoredEngine, ...]:
    """Build what is not in the store yet, one engine after the other; those that are done stay whatever follows.

    Args:
        command: what was typed, for the manifests.
        on_progress: called with a phase's name, steps done and steps in all; returning False asks to stop.

    Raises:
        InputError, MachineError, Cancelled: with one sentence.
    """
    _check_room([plan for plan in planned if plan.stored is None], store)
    done = []
    for plan in planned:
        build = _build_of(plan, model, builder, command, on_progress)

        def wait(graph: str = plan.spec.graph.name) -> bool:
            return on_progress(f"{graph}: waiting for another process", 0, 0)

        done.append(plan.stored or store.publish(plan.key, build, wait))
    return tuple(done)


def stale_reason(entry: StoredEngine, builders: Callable[[str], Builder]) -> str | None:
    """Why an engine of the store will not be used any more: other versions or sources of ours; None if it will.

    Where the backend or its device is not at hand nothing can be said against its engines.
    """
    key = entry.manifest.key
    device = torch.device(key["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    try:
        builder = builders(key["backend"])
        environment = dict(full_environment(builder, device))
    except (InputError, MachineError):
        return None
    if key["source"] != source_fingerprint(type(builder).__module__):
        return "it was built by another version of fairy"
    changed = [name for name in sorted({*key["environment"], *environment}) if _differs(key, environment, name)]
    return f"it was built with another {', '.join(changed)}" if changed else None


def _differs(key: dict[str, Any], environment: dict[str, str], name: str) -> bool:
    return bool(key["environment"].get(name) != environment.get(name))


def _wanted(model: Model, request: BuildRequest) -> list[GraphSpec]:
    specs, names = model.graphs(layers=request.layers), request.graphs
    unknown = [name for name in names or () if name not in specs]
    if unknown:
        raise InputError(f"There is no graph named {unknown[0]!r}; choose from {', '.join(specs)}.")
    return [specs[name] for name in (names or model.usual_graphs)]


def _check_room(planned: Sequence[PlannedEngine], store: EngineStore) -> None:
    needed = sum(plan.estimate.disk_bytes for plan in planned)
    place = next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise MachineError(
            f"The engines need about {needed / 1e9:.1f} GB, but {place} has {free / 1e9:.1f} GB left; free some space "
            "or name another --store."
        )


def _build_of(
    plan: PlannedEngine, model: Model, builder: Builder, command: str, on_progress: OnBuild
) -> Callable[[Path], Provenance]:
    """The work of one engine: built into a folder, loaded from there, compared with eager."""
    name, device = plan.spec.graph.name, torch.device(plan.spec.device)

    def tell(phase: str, done: int, total: int) -> bool:
        return on_progress(f"{name}: {phase}", done, total)

    def build(folder: Path) -> Provenance:
        started = time.perf_counter()
        # A backend that serves any shape looks at none.
        shapes = plan.key.shapes or Shapes((64, 64, 64), (64, 64, 64), (1, 1, 1), anchors=1)
        builder.build(model, plan.spec, shapes, plan.key.options, folder, tell)
        built = time.perf_counter()
        if not tell("verify", 0, 1):
            raise Cancelled("The build was cancelled; engines that were finished before stay in the store.")
        engine = builder.load(plan.spec, folder, device)
        loaded = time.perf_counter()
        try:
            errors = errors_by_output(compare(engine, model, plan.key.shapes, device))
        finally:
            engine.close()
        _check_errors(name, plan.spec.precision, errors)
        tell("verify", 1, 1)
        timings = {"build": built - started, "load": loaded - built, "verify": time.perf_counter() - loaded}
        return Provenance(_model(model), command, {k: round(s, 3) for k, s in timings.items()}, errors)

    return build


def _check_errors(graph: str, precision: str, errors: dict[str, float]) -> None:
    output, worst = max(errors.items(), key=lambda item: item[1])
    if worst > TOLERANCES[precision]:
        raise MachineError(
            f"The engine of {graph} was not stored: its output {output} is {worst:.2g} away from eager's (relative "
            f"L2), more than the {TOLERANCES[precision]:g} allowed in {precision}."
        )


def _model(model: Model) -> str:
    """What the model can be loaded by from any folder."""
    base = base_name(model.name)
    path = Path(base).expanduser()
    return str(path.absolute()) + model.name.removeprefix(base) if path.exists() else model.name
