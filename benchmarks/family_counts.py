"""What an edit by a model of another family costs, counted on the meta device: no weight exists, no picture is made.

Operations are those of matrix products, convolutions and attention, 2 a multiply-add, in the graphs that an edit runs.
Bounds are published peaks (`benchmarks.bounds`); a figure in seconds here was computed and never measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fairy.benchmarks.bounds import PEAKS
from fairy.benchmarks.public_models import PUBLIC
from fairy.export.graphs import GraphSpec
from fairy.export.model import EditModel
from fairy.export.shapes import dtype_of, shape_of
from fairy.kernels.errors import InputError

WIDTH, HEIGHT, FRAMES, ANCHORS, STEPS = 512, 384, 120, 3, 4
GB = 1e9
_META = torch.device("meta")
_HALF = torch.bfloat16
_ATTENTION = ("anchor_attention", "scaled_dot_product")
_BATCH = 2  # frames of a call that is counted


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations of one picture, or of one picture and step: all, and those of attention alone."""

    flops: int
    attention: int


@dataclass(frozen=True, slots=True)
class FamilyCounts:
    """What was counted of a model at 512×384 in 16 bit.

    Attributes:
        costs: of "encode", "source" (where that is done once for all steps), "anchor step", "frame step" and "decode",
            one picture each.
        bank_bytes: of one anchor at one step.
        weight_bytes: of each network.
        text_tokens: for which the text encoder works once a shot.
    """

    name: str
    costs: Mapping[str, Cost]
    bank_bytes: int
    weight_bytes: Mapping[str, int]
    text_tokens: int

    @property
    def frame_flops(self) -> int:
        """One frame in all: encoded, denoised, decoded."""
        return self._once + STEPS * self.costs["frame step"].flops

    @property
    def clip_flops(self) -> int:
        """All frames, anchors among them, without the text."""
        steps = (FRAMES - ANCHORS) * self.costs["frame step"].flops + ANCHORS * self.costs["anchor step"].flops
        return FRAMES * self._once + STEPS * steps

    @property
    def _once(self) -> int:
        """What a frame costs besides its steps."""
        return sum(cost.flops for part, cost in self.costs.items() if not part.endswith("step"))

    @property
    def whole_bank_bytes(self) -> int:
        """All anchors at all steps."""
        return ANCHORS * STEPS * self.bank_bytes

    def table(self) -> str:
        """All of it, as text."""
        lines = [
            f"{self.name} at {WIDTH}×{HEIGHT}, {STEPS} steps, {ANCHORS} anchors, 16 bit (counted)",
            "",
            f"{'one picture':<34}{'GFLOP':>12}{'of them attention':>20}",
        ]
        for part, cost in self.costs.items():
            lines.append(f"{part:<34}{cost.flops / 1e9:>12,.1f}{cost.attention / 1e9:>20,.1f}")
        text = 2 * self.weight_bytes["text_encoder"] // _HALF.itemsize * self.text_tokens
        about = f"text, {self.text_tokens} tokens, about"
        lines += [
            f"{about:<34}{text / 1e9:>12,.1f}{'once a shot':>20}",
            f"{'a frame in all':<34}{self.frame_flops / 1e9:>12,.1f}",
            f"{f'{FRAMES} frames, PFLOP':<34}{self.clip_flops / 1e15:>12,.2f}",
            "",
            f"bank: {self.bank_bytes / 1e6:,.1f} MB an anchor and step, {self.whole_bank_bytes / GB:.2f} GB in all",
            "weights: " + ", ".join(f"{part} {size / GB:.2f} GB" for part, size in self.weight_bytes.items()),
            f"on the device while frames are denoised: {self.resident_bytes / GB:.2f} GB and the activations",
            "",
            f"{'at most, by published peaks':<34}{f'{FRAMES} frames, s':>16}{'frames/s':>12}",
        ]
        for peak in PEAKS:
            seconds = self.clip_flops / peak.flop_per_s[_HALF]
            lines.append(f"{peak.name:<34}{seconds:>16.2f}{FRAMES / seconds:>12.1f}")
        return "\n".join(lines)

    @property
    def resident_bytes(self) -> int:
        """Weights and bank, without the text encoder, which leaves the device when the text is done."""
        networks = (size for part, size in self.weight_bytes.items() if part != "text_encoder")
        return sum(networks) + self.whole_bank_bytes


def count_family(name: str) -> FamilyCounts:
    """Count a public model by its name. Raises InputError."""
    if name not in PUBLIC:
        raise InputError("is not known", name="model", value=name, remedy=f"choose one of {', '.join(PUBLIC)}")
    return count_model(name, PUBLIC[name](_META, _HALF))


def count_model(name: str, model: EditModel, size: tuple[int, int] = (HEIGHT, WIDTH)) -> FamilyCounts:
    """Count a model on the meta device, for pictures of that height and width."""
    graphs, layers = model.graphs(), model.graphs()["unet_anchor"].layers
    latent_size, source = (size[0] // model.vae_factor, size[1] // model.vae_factor), graphs.get("unet_source")
    costs = {
        "encode": count_graph(model, graphs["vae_encoder"], size, frames=1),
        **({"source": count_graph(model, source, size, frames=1)} if source else {}),
        "anchor step": count_graph(model, graphs["unet_anchor"], size, frames=ANCHORS),
        "frame step": count_graph(model, graphs["unet_frame"], size, frames=_BATCH),
        "decode": count_graph(model, graphs["vae_decoder"], size, frames=1),
    }
    bank = sum(2 * layer.tokens(latent_size) * layer.channels * _HALF.itemsize for layer in layers)
    networks = {part: model.network(part) for part in sorted({model.network_of(spec) for spec in graphs.values()})}
    networks["text_encoder"] = getattr(getattr(model, "text", None), "encoder", None) or model.network("text_encoder")
    weights = {
        part: sum(parameter.numel() for parameter in network.parameters()) * _HALF.itemsize
        for part, network in networks.items()
    }
    return FamilyCounts(name, costs, bank, weights, model.text_tokens)


def count_graph(model: EditModel, spec: GraphSpec, size: tuple[int, int], *, frames: int) -> Cost:
    """Operations of one picture in a call with so many."""
    height, width = size[0] // model.vae_factor, size[1] // model.vae_factor
    sizes = {"frames": frames, "groups": 1, "tokens": model.text_tokens, "height": height, "width": width}
    sizes |= {"image_height": size[0], "image_width": size[1], "source_tokens": height * width}
    sizes |= {f"context_{layer.level}": ANCHORS * layer.tokens((height, width)) for layer in spec.layers}
    inputs = [torch.empty(shape_of(t, sizes), dtype=dtype_of(t, _HALF), device=_META) for t in spec.inputs]
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.fairy.anchor_attention: _attention})
    module = model.build(spec)
    with torch.inference_mode(), counter:
        module(*inputs)
    found = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for op, flops in found.items() if any(word in op for word in _ATTENTION))
    return Cost(counter.get_total_flops() // frames, attention // frames)


def _attention(
    q: torch.Size, k: torch.Size | None, v: torch.Size | None, context_k: list[torch.Size], *_: object, **__: Tensor
) -> int:
    """Two products of every query with every key; the op's tensors are [groups, frames, tokens, channels]."""
    keys = sum(shape[2] for shape in ([] if k is None else [k]) + list(context_k))
    return 4 * math.prod(q) * keys


__all__ = ["Cost", "FamilyCounts", "count_family", "count_graph", "count_model"]
