"""The one network that a graph needs, in another precision; the model itself is never changed."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from fairy.export.graphs import GraphSpec
from fairy.export.model import Model

SomeModel = TypeVar("SomeModel", bound=Model)


def with_network_in(model: SomeModel, spec: GraphSpec, *dtypes: torch.dtype) -> SomeModel:
    """The model with the graph's network on the CPU, cast to each of `dtypes` in turn.

    The network is copied only where it differs; the other parts are shared.
    """
    part = model.network_of(spec)
    network = model.network(part)
    if all(p.device.type == "cpu" and {p.dtype} == set(dtypes) for p in network.parameters()):
        return model
    cast: Any = copy.deepcopy(network)
    for dtype in dtypes:
        cast = nn.Module.to(cast, device="cpu", dtype=dtype)
    return model.with_network(part, cast)
