"""`torchrun --nproc-per-node N -m fairy.runtime.cli.main edit …`: as many workers as torchrun started processes.

Its rank 0 becomes the controller and starts workers of its own, which is what lets a job survive the loss of one; the
other ranks have nothing to do and end at once.
"""

import os
from collections.abc import Mapping

from fairy.kernels.errors import InputError


def torchrun_world(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, number of processes) where torchrun started this process, else None.

    Raises:
        InputError: it started processes on several machines.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size != local:
        raise InputError(
            f"torchrun started {size} processes, {local} of them on this machine; one job is computed on one machine, "
            "so run it with --nnodes 1."
        )
    return rank, size


def processes_asked_for(device: str, gpus: int, workers: int) -> tuple[int, int] | None:
    """How many GPUs and CPU workers shall compute, torchrun's number where it is to say; None: nothing is to be done.

    Raises:
        InputError: torchrun and an option say different things.
    """
    world = torchrun_world()
    if world is None:
        return gpus, workers
    rank, size = world
    if (gpus, workers) != (1, 1):
        raise InputError(f"torchrun started {size} processes; leave gpus = {gpus} and workers = {workers} out.")
    if rank != 0:
        return None
    from fairy.runtime.device import resolve_device

    return (size, 1) if resolve_device(device).type == "cuda" else (1, size)
