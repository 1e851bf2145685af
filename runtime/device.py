"""Where and in which precision a job runs on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fairy.kernels.errors import InputError
from fairy.kernels.gains import best_micro_batch
from fairy.runtime.editor_setup import PRECISIONS

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}


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


def worker_devices(device: torch.device, gpus: int, workers: int) -> tuple[torch.device, ...]:
    """The device of every process that computes: GPUs 0 to `gpus` − 1, or `workers` times the CPU.

    Raises:
        InputError: a number is not possible, or does not suit the device.
    """
    if workers > 1 and device.type == "cuda":
        remedy = "choose the number of GPUs (gpus), or device cpu"
        raise InputError("is for the CPU", name="workers", value=workers, remedy=remedy)
    if gpus > 1 and device.type != "cuda":
        problem, remedy = f"is not possible on the device {device}", "choose workers, or a machine with GPUs"
        raise InputError(problem, name="gpus", value=gpus, remedy=remedy)
    if gpus > 1 and (device.index is not None or gpus > torch.cuda.device_count()):
        problem = f"is not possible on the device {device}: this machine has {torch.cuda.device_count()} GPUs"
        raise InputError(problem, name="gpus", value=gpus, remedy="choose at most that many, and the device cuda")
    if gpus > 1:
        return tuple(torch.device("cuda", i) for i in range(gpus))
    return (device,) * workers


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The precision that "auto" stands for on a device, or the one named. Raises InputError for another name."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if str(dtype) not in DTYPES:
        raise InputError(
            "is not known", name="dtype", value=str(dtype), remedy=f"choose one of auto, {', '.join(DTYPES)}"
        )
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


def measured_micro_batch(device: torch.device) -> int | None:
    """Frames denoised at once as measured for this kind of GPU; None where nobody measured."""
    return best_micro_batch(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None
