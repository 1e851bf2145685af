"""Where and in which precision a stage runs."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Compute:
    """A device, and bfloat16 autocast or float32."""

    device: str = "cpu"
    bfloat16: bool = False

    @classmethod
    def best(cls) -> "Compute":
        """CUDA where there is one; bfloat16 only where the processor multiplies it natively (else it is slower)."""
        if torch.cuda.is_available():
            return cls("cuda", True)
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return cls("cpu", bool(native))

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which losses are computed."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)
