"""A backend whose engines were built beforehand and lie in the store.

An engine is looked for when a graph is first asked for, compared with its manifest, and loaded. Where several serve
one graph in different ranges of shapes, a call takes the newest that serves its shapes.
"""

import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fairy.engines.eager import EagerBackend
from fairy.engines.engine import Builder, Engine, EngineSpec, Usage
from fairy.engines.store.key import full_environment, make_key, request_digest
from fairy.engines.store.store import EngineStore, StoredEngine
from fairy.export.graphs import GraphSpec
from fairy.export.lora import base_name
from fairy.export.model import Model
from fairy.export.steps import NO_STEPS, Steps, in_order
from fairy.kernels.errors import FairyError, InputError, MachineError

_SIZES = ("image_height", "image_width", "height", "width", "frames")
_SAME_BUT_FOR_VERSIONS = ("weights", "graph", "backend", "device", "precision")


@runtime_checkable
class HoldsSteps(Protocol):
    """A builder whose engines are networks with steps applied; see `fairy.export.steps`."""

    def steps(self, device: torch.device) -> Steps:
        """Those that its engines for a device hold."""
        ...


class NotBuilt(InputError):
    """The store holds nothing of a model for a backend."""


@dataclass(slots=True)
class _Candidate:
    """One engine of the store that may serve a graph; `ranges` None = any shape."""

    entry: StoredEngine
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] | None
    engine: Engine | None = None

    def serves(self, inputs: Mapping[str, Tensor]) -> bool:
        return self.ranges is None or all(
            all(low <= dim <= high for low, dim, high in zip(least, inputs[name].shape, most, strict=True))
            for name, (least, _, most) in self.ranges.items()
        )


class StoredGraph:
    """One graph, run by whichever of its engines in the store serves a call's shapes."""

    def __init__(self, spec: EngineSpec, choices: list[_Candidate], backend: "StoredBackend") -> None:
        self.spec = spec
        self._choices = choices
        self._backend = backend

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`. Raises InputError where no engine serves these shapes."""
        for choice in tuple(self._choices):
            if choice.serves(inputs):
                engine = self._loaded(choice)
                if engine is not None:
                    self._backend.note_engine(self.spec, choice.entry.digest)
                    return engine(inputs, out)
        return self._backend.instead(self.spec, inputs)(inputs, out)

    def load(self) -> None:
        """Load the newest engine that can be; `Engine` objects are kept."""
        while self._choices and self._loaded(self._choices[0]) is None:
            pass
        if not self._choices:
            raise self._backend.missing(self.spec)

    def close(self) -> None:
        """Close every engine that was loaded."""
        for choice in self._choices:
            if choice.engine is not None:
                choice.engine.close()
        self._choices.clear()

    def _loaded(self, choice: _Candidate) -> Engine | None:
        """The choice's engine, its files checked before it is loaded; a choice that fails is not made again."""
        if choice.engine is None:
            choice.engine = self._backend.load(self.spec, choice.entry)
            if choice.engine is None:
                self._choices.remove(choice)
        return choice.engine


class StoredBackend:
    """Engines of the store by one builder, on one device. What steps they hold is theirs: callers need not know."""

    steps: Steps = NO_STEPS

    def __init__(
        self,
        name: str,
        store: EngineStore,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        *,
        builder: Builder,
        substitute: bool = False,
    ) -> None:
        """Find out what engines would have to agree with; nothing is loaded yet.

        Args:
            substitute: let eager run what the store cannot, and report it. Where the caller asked for this backend by
                name that is an error, but for precisions it never asked for: float32 after values overflowed.

        Raises:
            MachineError: the backend's libraries do not work here.
        """
        self.name = name
        self._store = store
        self._model = model
        self._device = device
        self._dtype = dtype
        self._builder = builder
        self._substitute = substitute
        self._environment = full_environment(builder, device)
        self._graphs: dict[tuple[GraphSpec, torch.dtype], Engine] = {}
        self._eager: EagerBackend | None = None
        self._digests: dict[str, str] = {}
        self._fallbacks: dict[str, None] = {}
        self._failures: dict[GraphSpec, str] = {}

    def prepare(self, graphs: Iterable[GraphSpec]) -> None:
        """Load an engine for each of these graphs.

        Raises:
            NotBuilt: the store has none for any of them.
            InputError, MachineError: it lacks some of them, or one cannot be loaded.
        """
        found = {graph: self._choices(self._spec(graph, self._dtype)) for graph in graphs}
        lacking = [graph for graph, choices in found.items() if not choices]
        if lacking:
            spec = self._spec(lacking[0], self._dtype)
            error = self.missing(spec)
            raise NotBuilt(str(error)) if len(lacking) == len(found) and not self._stale(spec) else error
        for graph, choices in found.items():
            spec = self._spec(graph, self._dtype)
            stored = StoredGraph(spec, choices, self)
            stored.load()
            self._graphs[graph, self._dtype] = stored

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        """The stored engine of a graph, in the backend's precision unless another is named.

        Raises:
            InputError: it is not in the store; says what to run.
        """
        dtype = precision or self._dtype
        if self._eager is not None and dtype == self._dtype:
            self._eager.free_converted(graph)
        if (graph, dtype) not in self._graphs:
            spec = self._spec(graph, dtype)
            choices = self._choices(spec)
            if not choices and not self._may_substitute(spec):
                raise self.missing(spec)
            self._graphs[graph, dtype] = StoredGraph(spec, choices, self)
        return self._graphs[graph, dtype]

    def take_usage(self) -> Usage:
        """Digests of the engines that ran, and what eager ran instead, since this was last asked."""
        builder, held = self._builder, NO_STEPS
        if isinstance(builder, HoldsSteps) and self._digests:
            held = builder.steps(self._device)
        usage = Usage(dict(self._digests), tuple(self._fallbacks), in_order(held))
        self._digests.clear()
        self._fallbacks.clear()
        return usage

    def close(self) -> None:
        """Close every engine."""
        for engine in self._graphs.values():
            engine.close()
        self._graphs.clear()
        if self._eager is not None:
            self._eager.close()

    def load(self, spec: EngineSpec, entry: StoredEngine) -> Engine | None:
        """An engine of the store, loaded after all its files were compared; None where it is not to be used.

        Raises:
            MachineError: it cannot be loaded, and eager may not run instead.
        """
        if not self._store.check(entry):
            self._failures[spec.graph] = f"The engine {entry.digest[:12]} of {spec.graph.name} is broken"
            return None
        try:
            return self._builder.load(spec, entry.folder, self._device)
        except MemoryError:
            raise
        except Exception as error:  # what a library raises for an engine it cannot load is not its to promise
            reason = str(error).rstrip(".") if isinstance(error, FairyError) else f"{type(error).__name__}: {error}"
            sentence = f"The engine {entry.digest[:12]} of {spec.graph.name} cannot be loaded ({reason})"
            if not self._substitute:
                raise MachineError(f"{sentence}; build it again after `fairy engines prune --all`.") from error
            self._failures[spec.graph] = sentence
            return None

    def note_engine(self, spec: EngineSpec, digest: str) -> None:
        """Remember, for the report, that an engine ran."""
        usual = spec.precision == _name(self._dtype)
        self._digests[spec.graph.name if usual else f"{spec.graph.name} in {spec.precision}"] = digest

    def instead(self, spec: EngineSpec, inputs: Mapping[str, Tensor]) -> Engine:
        """What runs a call that no engine of the store serves: eager, reported.

        Raises:
            InputError: this backend was asked for by name; says what to run.
        """
        error = self.missing(spec, inputs)
        if not self._may_substitute(spec):
            raise error
        if self._eager is None:
            self._eager = EagerBackend(self._model, self._device, self._dtype)
        reason = str(error).partition("; run `")[0]
        self._fallbacks[f"eager ran {spec.graph.name} in {spec.precision}: {reason}."] = None
        return self._eager.engine(spec.graph, getattr(torch, spec.precision))

    def missing(self, spec: EngineSpec, inputs: Mapping[str, Tensor] | None = None) -> InputError:
        """The error for a graph that no engine of the store serves, for these inputs where they are given."""
        sizes = "" if inputs is None else _sizes(spec.graph, inputs, self._model.vae_factor)
        what = f"The store {self._store.root} has no engine of {spec.graph.name} for {self.name} in {spec.precision}"
        if spec.graph in self._failures:
            what = self._failures[spec.graph]
        elif sizes and self._choices(spec):
            what += f" that serves {sizes.replace('--', '').strip()}"
        elif self._stale(spec):
            what += " that was built by the versions installed now"
        words = ["fairy", "build", base_name(self._model.name), "--backend", self.name, "--precision", spec.precision]
        words += ["--device", self._device.type, *sizes.split()]
        words += self._model.build_words(spec.graph)
        command = shlex.join([*words, "--store", str(self._store.root)])
        return InputError(f"{what}; run `{command}`, or choose the backend eager.")

    def _may_substitute(self, spec: EngineSpec) -> bool:
        return self._substitute or spec.precision != _name(self._dtype)

    def _spec(self, graph: GraphSpec, dtype: torch.dtype) -> EngineSpec:
        return EngineSpec(graph, self.name, str(self._device), _name(dtype))

    def _choices(self, spec: EngineSpec) -> list[_Candidate]:
        found: list[_Candidate] = []
        for entry in self._store.serving(request_digest(self._key(spec))):
            shapes = entry.manifest.shapes
            with suppress(InputError):  # shapes that the networks cannot have serve no call
                ranges = None if shapes is None else shapes.ranges(spec.graph, self._model.vae_factor)
                found.append(_Candidate(entry, ranges))
        return found

    def _key(self, spec: EngineSpec) -> dict[str, object]:
        return make_key(self._model, spec, self._builder, self._environment).to_json()

    def _stale(self, spec: EngineSpec) -> bool:
        """Whether the store has an engine of this graph that was built by other versions or sources of ours."""
        key = self._key(spec)
        request = request_digest(key)
        return any(
            request_digest({name: entry.manifest.key.get(name) for name in _SAME_BUT_FOR_VERSIONS})
            == request_digest({name: key[name] for name in _SAME_BUT_FOR_VERSIONS})
            and request_digest(entry.manifest.key) != request
            for entry in self._store.engines()
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sizes(graph: GraphSpec, inputs: Mapping[str, Tensor], vae_factor: int) -> str:
    """The options of `fairy build` that these inputs of a graph need."""
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        if tensor.name in inputs:
            sizes |= {dim: n for dim, n in zip(tensor.dims, inputs[tensor.name].shape, strict=True) if dim in _SIZES}
    if "image_height" in sizes:
        return f"--height {sizes['image_height']} --width {sizes['image_width']}"
    if "height" not in sizes:
        return ""
    words = f"--height {sizes['height'] * vae_factor} --width {sizes['width'] * vae_factor}"
    if graph.name.startswith("vae_"):
        return words
    if any(layer.own == "batch" for layer in graph.layers):  # all frames of the call are anchors
        return f"{words} --anchors {sizes['frames']}"
    words += f" --frames {sizes['frames']}"
    layer = next((layer for layer in graph.layers if "shared" in layer.segments), None)
    name = "" if layer is None else layer.context(layer.segments.index("shared"))[0]
    if layer is not None and name in inputs:
        tokens = (sizes["height"] >> layer.level) * (sizes["width"] >> layer.level)
        words += f" --anchors {inputs[name].shape[2] // tokens}"
    return words
