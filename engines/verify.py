"""An engine beside the eager reference: the same random inputs, and how far the outputs are apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy.engines.eager import EagerBackend
from fairy.engines.engine import Engine, Shapes
from fairy.export.graphs import GraphSpec
from fairy.export.model import Model
from fairy.export.shapes import dtype_of, random_inputs

# Largest relative L2 error of an output, by the engine's precision. Rounding alone gives about 2e-6, 2e-3 and 1e-2 at
# the depth of Stable Diffusion 1.5's UNet; a wrong weight or a wrong key gives 1e-1 and more.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 8e-2}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output on one set of shapes: relative L2 and largest absolute error against float32 eager."""

    output: str
    shapes: str
    relative: float
    largest: float


def compare(
    engine: Engine, model: Model, shapes: Shapes | None, device: torch.device, seed: int = 0
) -> tuple[Comparison, ...]:
    """Run an engine and, in float32 with the same weights, the eager reference on random inputs.

    Args:
        shapes: what the engine serves; None = any shape.
        device: where the engine's tensors live. The reference runs where the model is.
    """
    graph, precision = engine.spec.graph, getattr(torch, engine.spec.precision)
    weights = next(model.network(model.network_of(graph)).parameters())
    backend = EagerBackend(model, weights.device, weights.dtype)
    reference = backend.engine(graph, torch.float32)
    found: list[Comparison] = []
    for i, point in enumerate(_points(model, graph, shapes)):
        inputs = random_inputs(graph, point.sizes(graph, model.vae_factor), torch.float32, seed + i)
        expected = reference({name: tensor.to(weights.device) for name, tensor in inputs.items()})
        cast = {spec.name: inputs[spec.name].to(device, dtype_of(spec, precision)) for spec in graph.inputs}
        found += _compare(engine(cast), expected, f"{point.width[1]}×{point.height[1]}, {point.frames[1]} frames")
    backend.close()
    return tuple(found)


def errors_by_output(comparisons: tuple[Comparison, ...]) -> dict[str, float]:
    """The largest relative L2 error of every output over all shapes; infinite where an output holds a NaN."""
    errors: dict[str, float] = {}
    for comparison in comparisons:
        error = math.inf if math.isnan(comparison.relative) else comparison.relative
        errors[comparison.output] = max(error, errors.get(comparison.output, 0.0))
    return errors


def _points(model: Model, graph: GraphSpec, shapes: Shapes | None) -> tuple[Shapes, ...]:
    """Single shapes to compare at, small ones: the errors do not grow with the picture, the time does."""
    if shapes is None:
        side, tokens = model.size_multiple, model.text_tokens
        return (
            _point(side, side, 1, anchors=1, groups=1, tokens=tokens),
            _point(side, 2 * side, 2, anchors=2, groups=3, tokens=tokens),
        )
    height, width, tokens = shapes.height[0], shapes.width[0], shapes.tokens
    most = {"anchors": shapes.anchors, "groups": shapes.groups, "tokens": tokens}
    return (
        _point(height, width, shapes.frames[0], anchors=1, groups=1, tokens=tokens),
        _point(height, width, shapes.frames[1], **most),
    )


def _point(height: int, width: int, frames: int, *, anchors: int, groups: int, tokens: int) -> Shapes:
    return Shapes((height,) * 3, (width,) * 3, (frames,) * 3, anchors, groups, tokens)


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], shapes: str) -> list[Comparison]:
    comparisons = []
    for name, exact in expected.items():
        exact = exact.double().cpu()
        difference = found[name].double().cpu() - exact
        relative = float(difference.norm() / exact.norm().clamp_min(1e-12))
        comparisons.append(Comparison(name, shapes, relative, float(difference.abs().max())))
    return comparisons
