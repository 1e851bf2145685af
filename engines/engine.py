"""What an engine is: one graph made runnable, stateless between calls.

A backend makes engines out of graphs. Each backend is a file of its own, imported only when it is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec
from fairy.export.model import Model
from fairy.export.shapes import ENCODERS, shape_of
from fairy.export.steps import Steps, in_order
from fairy.kernels.errors import InputError

Range = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What makes one engine differ from another: the graph, and who runs it where and in which precision."""

    graph: GraphSpec
    backend: str
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Shapes:
    """What an engine must serve; ranges are (min, opt, max), opt being the size it is tuned for.

    Attributes:
        height, width: of a picture after padding, in pixels.
        frames: pictures in a micro-batch of the UNet, or in a window of a network over time. The autoencoder's graphs
            take one picture at a time.
        anchors: the largest number of anchor frames; fewer are served too.
        groups: the largest number of guidance branches; fewer are served too.
        tokens: of the text, the tokenizer's `model_max_length`.
    """

    height: Range
    width: Range
    frames: Range
    anchors: int
    groups: int = 3
    tokens: int = 77

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames"):
            low, best, high = getattr(self, name)
            if not 1 <= low <= best <= high:
                problem = "is not a range MIN:OPT:MAX of whole numbers from 1 up"
                raise InputError(problem, name=name, value=f"{low}:{best}:{high}")
        for name in ("anchors", "groups", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    "is not possible", name=name, value=getattr(self, name), remedy="it must be at least 1"
                )

    def ranges(
        self, graph: GraphSpec, vae_factor: int
    ) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Smallest, best and largest shape of every input of a graph, by name.

        Args:
            vae_factor: pixels that a latent stands for along one side; see `Model.vae_factor`.

        Raises:
            InputError: a size is not a multiple of what the networks can halve.
        """
        low, best, high = (self.sizes(graph, vae_factor, end) for end in range(3))
        return {
            tensor.name: (shape_of(tensor, low), shape_of(tensor, best), shape_of(tensor, high))
            for tensor in graph.inputs
        }

    def sizes(self, graph: GraphSpec, vae_factor: int, end: int = 1) -> dict[str, int]:
        """The symbolic dimensions of a graph's inputs at one end of the ranges: 0 = min, 1 = opt, 2 = max."""
        multiple = vae_factor * graph.multiple
        for name, pixels in (("height", self.height[end]), ("width", self.width[end])):
            if pixels % multiple:
                raise InputError(
                    "is not possible",
                    name=name,
                    value=pixels,
                    remedy=f"it must be a multiple of {multiple}",
                )
        height, width = self.height[end] // vae_factor, self.width[end] // vae_factor
        anchors = self.anchors if end else 1
        frames = 1 if graph.name.startswith(("vae_", *ENCODERS)) else max(self.frames[end], graph.frames[0])
        if any(layer.own == "batch" for layer in graph.layers):
            frames = anchors
        shared = not any("frame" in layer.segments for layer in graph.layers)  # else a segment is one frame's tokens
        levels = max((layer.level for layer in graph.layers), default=0)
        places = (anchors if shared else 1) * height * width
        each = max((layer.per_place for layer in graph.layers), default=1)
        return {
            "batch": 2 if end else 1,  # the instruction and the negative prompt
            "groups": self.groups if end else 1,
            "frames": frames,
            "tokens": self.tokens,
            "height": height,
            "width": width,
            "image_height": self.height[end],
            "image_width": self.width[end],
            "source_tokens": height * width,
            **{f"context_{level}": (places >> 2 * level) * each for level in range(levels + 1)},
        }


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built; None leaves a choice to the backend.

    Attributes:
        mem_pool_bytes: the most memory that the building may use for trying out kernels.
        optimization_level: how long the backend may search; TensorRT's 0 to 5.
        timing_cache: a file of measured kernel times, read where it exists and written afterwards.
        plugin: TensorRT runs our attention kernel instead of its own, where the kernel serves the graph.
    """

    mem_pool_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    plugin: bool = False


OnBuild = Callable[[str, int, int], bool]


class Engine(Protocol):
    """One graph, ready to run. Tensors are named as in `spec.graph` and live on `spec.device`."""

    @property
    def spec(self) -> EngineSpec: ...

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph once.

        Args:
            inputs: one tensor for every input of the graph.
            out: tensors to write some of the outputs into; the rest is allocated.

        Returns:
            every output by name; those in `out` are the tensors given there.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds. It cannot be called afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What a backend ran.

    Attributes:
        digests: of the stored engines that ran, by graph.
        fallbacks: what ran otherwise than asked for, and why, in sentences.
        steps: names of the steps that networks ran with; see `fairy.export.steps`.
    """

    digests: dict[str, str] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    def joined(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(
            {**self.digests, **other.digests},
            tuple(dict.fromkeys((*self.fallbacks, *other.fallbacks))),
            in_order((*self.steps, *other.steps)),
        )


class Backend(Protocol):
    """A way to run graphs. `name` is what reports and options call it, `steps` what its callers may rely on."""

    name: str
    steps: Steps

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        """An engine for this graph, in the backend's own precision or in another; made once and kept."""
        ...

    def take_usage(self) -> Usage:
        """What ran since this was last asked."""
        ...

    def close(self) -> None:
        """Close every engine."""
        ...


class Builder(Protocol):
    """Makes engines of one backend that outlive the process; each is a file in this folder, imported when needed."""

    name: str

    def environment(self, device: torch.device) -> dict[str, str]:
        """Everything outside the spec that can change an engine's bytes, or whether it loads.

        Versions of the packages and, on CUDA, the GPU's name, compute capability and driver.

        Raises:
            MachineError: the backend's libraries are not installed or do not work here; says what to install.
        """
        ...

    def build(
        self,
        model: Model,
        spec: EngineSpec,
        shapes: Shapes,
        options: BuildOptions,
        folder: Path,
        on_progress: OnBuild,
    ) -> None:
        """Build one engine into an empty, private folder.

        Args:
            folder: where the engine's files go; nothing else is written.
            on_progress: called with a phase's name, steps done and steps in all; returning False asks to stop.

        Raises:
            InputError, MachineError, Cancelled: with one sentence.
        """
        ...

    def load(self, spec: EngineSpec, folder: Path, device: torch.device) -> Engine:
        """The engine whose files lie in `folder`; it is called only after every file was checked."""
        ...


def check_inputs(graph: GraphSpec, inputs: Mapping[str, Tensor]) -> None:
    """Raise InputError where an input of a graph is missing or unknown."""
    names = [tensor.name for tensor in graph.inputs]
    if set(names) != set(inputs):
        odd = sorted(set(names) ^ set(inputs))[0]
        raise InputError(f"{graph.name} takes the inputs {', '.join(names[:3])}, …; {odd} is missing or unknown.")
