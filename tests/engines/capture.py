"""The rules of recording a CUDA graph, looked at without a GPU: a call on tensors of the device "meta" in its place.

Every operator that the call runs is seen. What a recording cannot hold, or would replay wrongly, breaks a rule:
    reading a value back to the host (`item`, sizes that depend on values), which waits for the device;
    tensors made on the host, or copied from or to it, whose values would be frozen.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class Rules(TorchDispatchMode):
    """Collects what breaks a rule, by the operator's name."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        name = func.overloadpacket.__name__
        if name in _READS:
            self.broken.append(f"{name}: the host waits for a value")
        results = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.device.type == "cpu" for t in tree_leaves((args, kwargs, results))):
            self.broken.append(f"{name}: a tensor on the host")
        return results


def broken_rules(call: Callable[[], object]) -> list[str]:
    """What a call does that cannot be recorded."""
    with Rules() as rules, torch.inference_mode():
        try:
            call()
        except (NotImplementedError, RuntimeError) as error:  # there is no value that could be read
            rules.broken.append(str(error).partition("\n")[0])
    assert rules.operators, "nothing was run"
    return rules.broken


def away(module: nn.Module) -> nn.Module:
    """A copy of a module on the device that stands for the GPU."""
    return copy.deepcopy(module).to("meta")
