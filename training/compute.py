"""Where and in which precision a stage runs, and which of several processes this one is."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

PATIENCE = timedelta(hours=3)  # with which processes wait for the first one to encode the pairs


@dataclass(frozen=True, slots=True)
class Compute:
    """A device, bfloat16 autocast or float32, and one of ``processes`` that share every batch (rank 0 writes files)."""

    device: str = "cpu"
    bfloat16: bool = False
    rank: int = 0
    processes: int = 1

    @classmethod
    def best(cls) -> "Compute":
        """CUDA where there is one; bfloat16 only where the processor multiplies it natively (else it is slower).

        Under torchrun the processes find each other here; on CUDA each takes the device of its number.
        """
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=PATIENCE)
        rank = distributed.get_rank() if processes > 1 else 0
        if torch.cuda.is_available():
            index = rank % torch.cuda.device_count()
            torch.cuda.set_device(index)
            return cls(f"cuda:{index}", True, rank, processes)
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return cls("cpu", bool(native), rank, processes)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which losses are computed."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bfloat16)

    def shared(self, module: nn.Module) -> nn.Module:
        """The module to compute losses with: its gradients become the mean over all processes."""
        return nn.parallel.DistributedDataParallel(module) if self.processes > 1 else module

    def everyone(self, agrees: bool) -> bool:
        """Whether all processes agree; every one of them has to ask."""
        if self.processes == 1:
            return agrees
        answer = torch.tensor(float(agrees))
        distributed.all_reduce(answer, distributed.ReduceOp.MIN)
        return bool(answer)

    def wait(self) -> None:
        """Until every process is here."""
        if self.processes > 1:
            distributed.barrier()
