"""A UNet graph run by `FastUNet` with the steps that were chosen; see `fairy.export.steps`."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fairy.engines.conditions import Conditions
from fairy.engines.engine import EngineSpec
from fairy.engines.numerics import steady_numerics
from fairy.export.bases.fast_unet import FastUNet
from fairy.export.graphs import GraphSpec
from fairy.kernels.errors import InputError

Run = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]


class FastEngine:
    """One UNet graph; stateless between calls but for what compilers and CUDA graphs keep of its code."""

    def __init__(self, spec: EngineSpec, unet: FastUNet, run: Run) -> None:
        """`run`: what computes a call from tensors by name to the outputs in order."""
        self.spec = spec
        self._unet: FastUNet | None = unet
        self._run = run
        self._context = {tensor.name for tensor in spec.graph.inputs[3:]}

    def prepare(self, text: Tensor, timesteps: Tensor, frames: int) -> Conditions:
        """See `Preparing`: keys and values of the text, and time embeddings as biases, where these steps are on."""
        unet = self._opened()
        with torch.inference_mode():
            constant = unet.prepare_text(text) if "text-kv" in unet.steps else {"text": text}
            if "time-embeddings" in unet.steps:
                return Conditions(constant, unet.prepare_times(timesteps, text.dtype))
            return Conditions(constant, [{"timestep": t.expand(frames)} for t in timesteps])

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`.

        Text and time may be given as the graph's own inputs or as `prepare` made them. `sample` may have one group
        fewer than there are texts: its first picture then serves the first two branches.

        Raises:
            InputError: an input is missing or unknown, or the groups do not fit.
        """
        unet = self._opened()
        self._check(inputs)
        with torch.inference_mode(), steady_numerics(self.spec.precision):
            whole = "one-batch" in unet.steps
            results = self._run(inputs) if whole else run_one_by_one(self._run, self.spec.graph, inputs)
            outputs = dict(zip((tensor.name for tensor in self.spec.graph.outputs), results, strict=True))
            given = out or {}
            # What is not copied anyway is, since a CUDA graph writes to the same place next time.
            return {
                name: given[name].copy_(t) if name in given else (t.clone() if "cuda-graphs" in unet.steps else t)
                for name, t in outputs.items()
            }

    def close(self) -> None:
        """Let go of the weights and of what was compiled."""
        self._unet, self._run = None, _closed

    def _opened(self) -> FastUNet:
        if self._unet is None:
            raise InputError(f"The engine of {self.spec.graph.name} was closed.")
        return self._unet

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        name = self.spec.graph.name
        fixed = {"sample", *self._context}
        kinds = {_kind(name) for name in set(inputs) - fixed}
        if not fixed <= set(inputs) or kinds != {"text", "time"}:
            odd = sorted(fixed - set(inputs)) or sorted({"text", "timestep"} ^ kinds)
            raise InputError(f"{name} takes the inputs sample, timestep, text, …; {odd[0]} is missing or unknown.")
        groups, texts = inputs["sample"].shape[0], _first(inputs, "text").shape[0]
        if groups not in (texts, texts - 1):
            raise InputError(f"{name} was given {groups} groups of pictures and {texts} of text.")


def run_one_by_one(run: Run, graph: GraphSpec, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """A call in pieces of one branch, and one frame where frames do not look at each other."""
    sample = inputs["sample"]
    texts = _first(inputs, "text").shape[0]
    joint = any(layer.own == "batch" for layer in graph.layers)
    frames: Iterable[slice] = [slice(None)] if joint else [slice(f, f + 1) for f in range(sample.shape[1])]
    rows = []
    for g in range(texts):
        picture = max(0, g - (texts - sample.shape[0]))
        # A recorded graph answers every piece in the same buffers.
        pieces = [tuple(t.clone() for t in run(_piece(inputs, g, picture, f))) for f in frames]
        rows.append([torch.cat(parts, 1) for parts in zip(*pieces, strict=True)])
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def _piece(inputs: Mapping[str, Tensor], group: int, picture: int, frames: slice) -> dict[str, Tensor]:
    """The inputs of one branch and of some of its frames."""
    piece = {}
    for name, t in inputs.items():
        if name == "sample":
            piece[name] = t[picture : picture + 1, frames]
        elif name == "timestep":
            piece[name] = t[frames]
        elif name.startswith("time."):
            piece[name] = t
        else:  # text, and context that all frames share or that each has of its own
            own = t[group : group + 1]
            piece[name] = own[:, frames] if name.startswith(("context.", "control.")) and own.shape[1] > 1 else own
    return piece


def _kind(name: str) -> str:
    """What an input says: "text" or "time", whether prepared or not, else its own name."""
    if name == "timestep" or name.startswith("time."):
        return "time"
    return "text" if name == "text" or name.startswith("text.") else name


def _first(inputs: Mapping[str, Tensor], kind: str) -> Tensor:
    return next(t for name, t in inputs.items() if _kind(name) == kind)


def _closed(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    raise InputError("This engine was closed.")
