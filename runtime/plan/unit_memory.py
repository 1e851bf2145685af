"""What a method that works unit by unit keeps in memory, known before any of it runs."""

from fairy.export.graphs import GraphSpec
from fairy.kernels.errors import InputError
from fairy.runtime.methods.method import Method
from fairy.runtime.plan.order import Order, most_kept


def unit_bytes(graph: GraphSpec, *, branches: int, latent_size: tuple[int, int], itemsize: int) -> int:
    """Bytes of the keys and values of one unit, at latents of `latent_size` (h, w)."""
    values = sum(layer.tokens(latent_size) * layer.channels for layer in graph.layers if layer.emits)
    return 2 * branches * values * itemsize


def most_units(method: Method, order: Order, num_frames: int, num_inference_steps: int, at_once: int) -> int:
    """The largest number of units kept at once, for a video of any length.

    At most a wave's worth of frames is at work, so that a longer video repeats what a few times as many frames show.
    """
    shown = min(num_frames, 3 * num_inference_steps + 8)
    return most_kept(order, method.all_sources(shown, (0,)), num_inference_steps, at_once)


def check_bank(method: Method, order: Order, units: int, each_bytes: int, other_bytes: int, free_bytes: int) -> None:
    """Refuse a job whose keys and values, with `other_bytes` besides, do not fit into `free_bytes`.

    Raises:
        InputError: says what it needs, what there is, and what to change.
    """
    need = units * each_bytes + other_bytes
    if need <= free_bytes:
        return
    frugal = "" if order == "step-major" or "step-major" not in method.orders else 'order="step-major" or '
    raise InputError(
        f"The method {method} would keep keys and values of {units} frames at once, {units * each_bytes / 1e9:.1f} GB, "
        f"and needs {need / 1e9:.1f} GB in all, but only {free_bytes / 1e9:.1f} GB are free; "
        f"choose {frugal}a smaller long side."
    )
