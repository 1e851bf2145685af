"""Where and in which precision a job runs on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fairy.kernels.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that "auto" stands for, or the one named, where this machine has it.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"Device {device!r} is not known; choose auto, cpu, cuda or cuda:N.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"Device {str(device)!r} is not served; choose auto, cpu, cuda or cuda:N.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"Device {str(device)!r} is not here: PyTorch finds no CUDA GPU; run `fairy doctor`, or use cpu."
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"Device {str(device)!r} is not here: this machine has {torch.cuda.device_count()} GPUs.")
    return chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The precision that "auto" stands for on a device, or the one named. Raises InputError for another name."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if str(dtype) not in DTYPES:
        raise InputError(f"dtype {str(dtype)!r} is not served; choose auto, {', '.join(DTYPES)}.")
    return DTYPES[str(dtype)]


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Compute with this many CPU threads inside the block, and leave the process as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
