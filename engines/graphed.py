"""The default on a GPU: the network with our kernels as PyTorch runs it, small batches recorded as CUDA graphs.

Nothing is compiled by Inductor and nothing is built: the first batch of a shape runs plainly and is recorded, which
takes seconds. Kernels of ours that replace something torch has too are on where they were measured to be faster.
"""

from collections.abc import Iterable

import torch

from fairy.engines.compiled import CompiledBackend
from fairy.engines.cuda_graphs import Record
from fairy.engines.engine import Usage
from fairy.export.model import Model
from fairy.export.steps import Steps, choose_steps
from fairy.kernels.gains import OPS, faster_ops

NAME = "cuda-graphs"
STEP_OF_OP = {
    "group_norm_silu": "group-norm-silu",
    "geglu": "geglu",
    "guidance_step": "guidance-step",
    "upsample_conv": "folded-upsampling",
}
"""The step of the compiled path that an op of ours carries out."""


def left_out(capability: tuple[int, int]) -> Steps:
    """Steps that this backend leaves out on GPUs of a compute capability: those that did not show to be faster."""
    faster = faster_ops(capability)
    return frozenset({"inductor", *(STEP_OF_OP[op] for op in OPS if op not in faster)})


class GraphedBackend(CompiledBackend):
    """See this file's head."""

    name = NAME

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        *,
        without: Iterable[str] = (),
        also: Iterable[str] = (),
        fallbacks: tuple[str, ...] = (),
        record: Record | None = None,
    ) -> None:
        """
        Args:
            without: names of further steps to leave out.
            also: as for `CompiledBackend`.
            fallbacks: why this backend runs instead of a better one, in sentences for the report.
            record: see `GraphRunner`; it stands in for CUDA's, where there is none.

        Raises:
            InputError: there is no such step.
        """
        off = graphed_without(device, without)
        super().__init__(model, device, dtype, without=off, also=also, record=record)
        self._reasons = fallbacks

    def take_usage(self) -> Usage:
        """What ran: the steps, and what could not be recorded."""
        return Usage(fallbacks=self._reasons).joined(super().take_usage())


def graphed_without(device: torch.device, without: Iterable[str] = ()) -> Steps:
    """All steps that this backend leaves out on a device. Raises InputError for a step that does not exist."""
    if device.type != "cuda":
        return frozenset({"inductor", *without})
    return left_out(torch.cuda.get_device_capability(device)) | frozenset(without)


def graphed_steps(device: torch.device, without: Iterable[str] = (), also: Iterable[str] = ()) -> Steps:
    """The steps of this backend on a device."""
    return choose_steps(graphed_without(device, without), device.type, also)


__all__ = ["NAME", "GraphedBackend", "graphed_steps", "left_out"]
