"""The one network that a graph needs, in another precision; the checkpoint itself is never changed."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec


def network_of(checkpoint: Checkpoint, spec: GraphSpec) -> str:
    """The component of a checkpoint that computes a graph: "unet", "text_encoder", "vae" or "tiny_decoder"."""
    if spec.layers:
        return "unet"
    if spec.name == "vae_decoder" and checkpoint.tiny_decoder is not None:
        return "tiny_decoder"
    return "vae" if spec.name.startswith("vae_") else spec.name


def with_network_in(checkpoint: Checkpoint, spec: GraphSpec, *dtypes: torch.dtype) -> Checkpoint:
    """The checkpoint with the graph's network on the CPU, cast to each of `dtypes` in turn.

    The network is copied only where it differs; the other components are shared.
    """
    part = network_of(checkpoint, spec)
    network = getattr(checkpoint, part)
    if all(p.device.type == "cpu" and {p.dtype} == set(dtypes) for p in network.parameters()):
        return checkpoint
    cast: Any = copy.deepcopy(network)
    for dtype in dtypes:
        cast = nn.Module.to(cast, device="cpu", dtype=dtype)
    changes: dict[str, Any] = {part: cast}
    return replace(checkpoint, **changes)
