"""Sizes of a graph's tensors: from the tensors of one call to its symbolic dimensions and back.

`sizes` is a mapping from the names of symbolic dimensions (see `graphs.py`) to numbers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fairy.export.graphs import GraphSpec, TensorSpec
from fairy.kernels.errors import InputError

ENCODERS = ("vae_encoder", "condition_", "adapter_")
"""How the names of graphs begin that make something at the size of latents of one picture at a time."""
_IDS = 64  # token ids of random inputs are below this: every vocabulary has so many


def sizes_of(spec: GraphSpec, inputs: Mapping[str, Tensor], vae_factor: int) -> dict[str, int]:
    """The symbolic dimensions of one call, those of the outputs included.

    Args:
        spec: the graph.
        inputs: its inputs by name.
        vae_factor: pixels a latent stands for, along one side.

    Raises:
        InputError: an input is missing or unknown, or its shape does not fit the others.
    """
    names = {tensor.name for tensor in spec.inputs}
    if names != set(inputs):
        odd = sorted(names ^ set(inputs))[0]
        raise InputError(
            f"{spec.name} takes the inputs {', '.join(sorted(names)[-3:])}, …; {odd} is missing or unknown."
        )
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        shape = tuple(inputs[tensor.name].shape)
        agreed = len(shape) == len(tensor.dims) and all(
            size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
            for dim, size in zip(tensor.dims, shape, strict=True)
        )
        if not agreed:
            wanted = ", ".join(str(sizes.get(dim, dim) if isinstance(dim, str) else dim) for dim in tensor.dims)
            raise InputError(f"{tensor.name} of {spec.name} must be [{wanted}], but is {list(shape)}.")
    return {**sizes, **_derived(spec, sizes, vae_factor)}


def shape_of(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of one tensor."""
    return tuple(dim if isinstance(dim, int) else _size(dim, sizes) for dim in tensor.dims)


def side_of(dim: str) -> tuple[str, int]:
    """The side of latents that a dimension is, and at which level: height_2 is the height, halved twice."""
    side, _, level = dim.rpartition("_")
    return (side, int(level)) if side in ("height", "width") else (dim, 0)


def dtype_of(tensor: TensorSpec, precision: torch.dtype) -> torch.dtype:
    """The type of one tensor in a graph of this precision."""
    kinds: dict[str, torch.dtype] = {"float": precision, "float32": torch.float32, "int64": torch.int64}
    return kinds[tensor.dtype]


def random_inputs(spec: GraphSpec, sizes: Mapping[str, int], precision: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Inputs of unit variance, time steps in 0…1000 and token ids, drawn on the CPU from `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: TensorSpec) -> Tensor:
        shape = shape_of(tensor, sizes)
        if tensor.dtype == "int64":
            return torch.randint(_IDS, shape, generator=generator)
        if tensor.name == "timestep":
            return torch.rand(shape, generator=generator) * 1000
        return torch.randn(shape, generator=generator).to(dtype_of(tensor, precision))

    return {tensor.name: draw(tensor) for tensor in spec.inputs}


def _size(dim: str, sizes: Mapping[str, int]) -> int:
    side, level = side_of(dim)
    return sizes[dim] if dim in sizes else sizes[side] >> level


def _derived(spec: GraphSpec, sizes: Mapping[str, int], vae_factor: int) -> dict[str, int]:
    """Dimensions of outputs that follow from those of the inputs."""
    if spec.name.startswith(ENCODERS):
        return {side: sizes[f"image_{side}"] // vae_factor for side in ("height", "width")}
    if spec.name == "unet_source":
        return {"source_tokens": sizes["height"] * sizes["width"]}
    if spec.name == "vae_decoder":
        return {f"image_{side}": sizes[side] * vae_factor for side in ("height", "width")}
    return {f"own_{layer.level}": layer.tokens((sizes["height"], sizes["width"])) for layer in spec.layers}
