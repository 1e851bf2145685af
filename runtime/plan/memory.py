"""Whether a job can fit into memory, said before any of it runs."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fairy.export.graphs import GraphSpec
from fairy.export.model import EditModel
from fairy.kernels.errors import InputError
from fairy.runtime.bank.host import HOST_BANK_STEPS
from fairy.runtime.methods.fits import runs_in_parts
from fairy.runtime.plan.plan import Plan
from fairy.runtime.plan.stage_costs import StageCosts, check_fits, memory_per_worker
from fairy.runtime.plan.unit_memory import check_bank, most_units, unit_bytes

_LOG = logging.getLogger(__name__)


def check_memory(
    checkpoint: EditModel, plan: Plan, device: torch.device, *, bank_on_host: bool = False, workers: int = 1
) -> None:
    """Refuse a job whose weights and anchor bank alone are more than a worker on `device` can have.

    Both are known exactly; what the networks need besides is not, so that a job taken here may still be too large.
    Of several workers' GPUs all memory counts as theirs: what the last job left there looks taken from here. Of the
    machine's own memory every worker has an equal part.

    Raises:
        InputError: says what it needs, what there is, and which changes would make it fit.
    """
    eight_bit = plan.params.bank_dtype == "float8"
    if bank_on_host and eight_bit:
        problem = "keeps the anchors on the device, but bank = 'host' asks for the host"
        raise InputError(problem, name="bank_dtype", value="float8", remedy="choose one")
    there = _memory_of_a_worker(checkpoint, device, workers)
    if there is None:
        return
    if not runs_in_parts(plan.method):
        check_bank(plan.method, plan.order, *_units(plan), _pictures_bytes(plan), there - weights_bytes(checkpoint))
        return
    costs, steps = known_costs(checkpoint, plan), len(plan.schedule)
    if eight_bit:  # one step lies there in full precision besides
        there -= costs.bank_step_bytes
        costs = replace(costs, bank_step_bytes=costs.bank_step_bytes // plan.precision.itemsize)
    if device.type == "cpu":
        check_fits(costs, steps, there)
    elif bank_on_host:
        check_fits(costs, min(steps, HOST_BANK_STEPS), there)
        host = host_bytes()
        if host is not None:
            lost = pinned_bytes(steps * costs.bank_step_bytes) - steps * costs.bank_step_bytes
            check_fits(replace(costs, weights_bytes=0), steps, host // workers - lost)
    elif eight_bit or memory_per_worker(costs, HOST_BANK_STEPS).total > there:
        check_fits(costs, steps, there)
    else:
        check_fits(costs, steps, there, ('bank = "host"',))


def check_weights(device: torch.device, name: str, sizes: Mapping[str, int]) -> None:
    """Refuse networks that a device cannot hold, before any of them is read; else say what they take.

    The text encoder is there only while a text is encoded, but the others are there then too.

    Args:
        sizes: bytes of each network.

    Raises:
        InputError: what they need, and what there is.
    """
    there = None if device.type == "meta" else free_bytes(device)
    parts = ", ".join(f"{part} {size / 1e9:.2f} GB" for part, size in sizes.items())
    needed = sum(sizes.values())
    if there is not None and needed > there:
        raise InputError(
            f"{name} needs {needed / 1e9:.2f} GB for its networks alone ({parts}), but only {there / 1e9:.2f} GB are "
            f"there on {device}; choose dtype = bfloat16 where it is not chosen, or a device with more memory."
        )
    _LOG.info("%s takes %.2f GB for its networks (%s).", name, needed / 1e9, parts)


def _memory_of_a_worker(checkpoint: EditModel, device: torch.device, workers: int) -> int | None:
    """What weights and bank of a job may take; None where the system does not tell. One worker alone has loaded it."""
    if workers > 1 and device.type == "cuda":
        return total_bytes(device)
    free = free_bytes(device)
    if free is None:
        return None
    return free // workers if workers > 1 else free + weights_bytes(checkpoint)


def _units(plan: Plan) -> tuple[int, int]:
    """For a method that works unit by unit: how many units' keys and values are kept at most, and the bytes of one."""
    method, steps = plan.method, len(plan.schedule)
    most = max(most_units(method, plan.order, s.stop - s.start, steps, plan.micro_batch) for s in plan.segments)
    each = max(
        unit_bytes(
            graph,
            branches=plan.guidance.groups,
            latent_size=plan.latent_shape[1:],
            itemsize=plan.precision.itemsize,
        )
        for graph in plan.graphs.values()
    )
    return most, each


def _pictures_bytes(plan: Plan) -> int:
    """Source frames that wait in memory: all of a segment's where every frame is at work until the end."""
    if plan.order != "step-major":
        return 0
    height, width = plan.source.size
    return 3 * height * width * max(s.stop - s.start for s in plan.segments)


def known_costs(checkpoint: EditModel, plan: Plan) -> StageCosts:
    """The memory of a job as far as it is known without running it; no times, no working memory."""
    return StageCosts(
        name=checkpoint.name,
        measured=False,
        precision=str(plan.precision).removeprefix("torch."),
        long_side=max(plan.geometry.scaled),
        anchors=plan.most_anchors,
        micro_batch=plan.micro_batch,
        weights_bytes=weights_bytes(checkpoint),
        bank_step_bytes=bank_step_bytes(
            plan.graphs["unet_anchor"],
            branches=plan.guidance.groups,
            num_anchors=plan.most_anchors,
            latent_size=plan.latent_shape[1:],
            dtype=plan.precision,
        ),
        unet_frame_bytes=0,
        vae_bytes=0,
        **dict.fromkeys(("text_ms", "encode_ms", "decode_ms", "anchors_step_ms", "frames_step_ms", "handout_ms"), 0.0),
    )


def bank_step_bytes(
    graph: GraphSpec, *, branches: int, num_anchors: int, latent_size: tuple[int, int], dtype: torch.dtype
) -> int:
    """Bytes of the keys and values that phase A (`graph`) emits at one step, at latents of `latent_size` (h, w)."""
    values = sum(layer.tokens(latent_size) * layer.channels for layer in graph.layers if layer.emits)
    return 2 * branches * num_anchors * values * dtype.itemsize


def pinned_bytes(wanted: int) -> int:
    """What torch takes of the host for one pinned piece of so many bytes: the next power of two."""
    return 1 << max(wanted - 1, 0).bit_length()


def weights_bytes(checkpoint: EditModel) -> int:
    """Bytes of all parameters of a model's networks."""
    return sum(parameter.nbytes for parameter in checkpoint.parameters())


def total_bytes(device: torch.device) -> int:
    """The memory of a GPU."""
    return int(torch.cuda.mem_get_info(device)[1])


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process on `device` can still have; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_bytes()


def host_bytes() -> int | None:
    """Memory of the machine itself that can still be had; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
