"""The one network that a graph needs, in another precision; the checkpoint itself is never changed."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec


def network_of(spec: GraphSpec) -> str:
    """The component of a checkpoint that computes a graph: "unet", "text_encoder" or "vae"."""
    return "unet" if spec.layers else "text_encoder" if spec.name == "text_encoder" else "vae"


def with_network_in(checkpoint: Checkpoint, spec: GraphSpec, *dtypes: torch.dtype) -> Checkpoint:
    """The checkpoint with the graph's network on the CPU, cast to each of `dtypes` in turn.

    The network is copied only where it differs; the other components are shared.
    """
    part = network_of(spec)
    network = getattr(checkpoint, part)
    if all(p.device.type == "cpu" and {p.dtype} == set(dtypes) for p in network.parameters()):
        return checkpoint
    cast: Any = copy.deepcopy(network)
    for dtype in dtypes:
        cast = nn.Module.to(cast, device="cpu", dtype=dtype)
    changes: dict[str, Any] = {part: cast}
    return replace(checkpoint, **changes)
