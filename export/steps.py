"""What makes the compiled path fast: one flat list, each step with its reason, and whether it is exact.

Exact means the same real arithmetic: results differ from eager's only in rounding. Every step can be left out by name
(`Editor.from_pretrained(without=…)`, `fairy edit --without`, `fairy bench ladder --without`), and the ladder adds them
in this order. A step that is not exact is off unless it is asked for (`linears="float8"`, `--linears float8`), and the
report names it. The gains are computed or read, not measured here; where they come from is said in `docs/speed.md`.

This file names steps; `fast_unet.py` and `fast_vae.py` carry out those that change a network, the engines those
that say how it is run, the runtime those that belong to a job.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fairy.kernels.errors import InputError

Steps = frozenset[str]
"""Names of the steps that are on."""

FP8_LINEARS = "fp8-linears"


@dataclass(frozen=True, slots=True)
class Step:
    """One optimisation.

    Attributes:
        name: what options and reports call it.
        exact: whether it changes nothing beyond rounding.
        why: what it saves, in a sentence.
        gain: how much for Stable Diffusion 1.5 at 512×384 with three branches and three anchors, as computed.
        devices: where it can run.
    """

    name: str
    exact: bool
    why: str
    gain: str
    devices: tuple[str, ...] = ("cpu", "cuda")


STEPS = (
    # Frames × branches: large batches keep the matrix units busy and read the weights once. Everything builds on it.
    Step(
        "one-batch",
        True,
        "all frames and guidance branches of a micro-batch go through the network together",
        "from 17-39 % of the peak to maybe 55-65 %",
    ),
    # Convolutions on tensor cores want channels last; attention wants tokens × channels, which is the same memory. So
    # no layout is ever copied, and 1×1 convolutions are plain matrix products.
    Step(
        "channels-last",
        True,
        "one memory layout for convolutions and attention, in UNet and VAE",
        "28 % (SD 1.5 on an A100, read)",
    ),
    # Anchors are read by reference. Without it keys are expanded over the frames, joined, and given to SDPA.
    Step(
        "anchor-attention",
        True,
        "own and anchor keys through separate pointers: nothing is joined, head dimension 40 is not padded to 64",
        "0.16 GB and 0.4-0.5 ms a sample-forward",
    ),
    # Both Triton kernels are bound by memory: each saves a read and a write of large activations.
    Step(
        "group-norm-silu",
        True,
        "GroupNorm and SiLU in one kernel that keeps channels last",
        "part of 1.11 GB of avoidable traffic a sample-forward, 10-12 % together",
        ("cuda",),
    ),
    Step("geglu", True, "the feed-forward's gate in one pass", "part of the same 1.11 GB", ("cuda",)),
    # One matrix product of three times the width fills the GPU better at the small levels.
    Step("fused-qkv", True, "queries, keys and values by one matrix product", "about 1 % (SDXL, read)"),
    # The text does not change during a job, and the time embedding not within a step: both are computed ahead and are
    # arguments of the network from then on. The time's shift is added to the convolution's bias, which costs nothing.
    Step("text-kv", True, "keys and values of the text once a job", "2.95 of 787 GFLOP and 32 small matrix products"),
    Step("time-embeddings", True, "time embeddings once a step, as biases", "0.06 GFLOP and 44 kernels"),
    # Branches 1 and 2 see the same picture; only the text tells them apart, and text enters at the first cross-
    # attention. Everything before that is computed once for both.
    Step("shared-first-block", True, "branches 1 and 2 are one until text is first read", "2.7 % of the operations"),
    # Branch 3 sees no picture. While the latents are still the noise that all frames share, its frames are all alike,
    # and so are the anchors it reads: attending to copies of oneself is attending to oneself.
    Step(
        "shared-first-step",
        True,
        "branch 3 of the first step once a job, where all frames start from the same noise",
        "3.3 % of the operations at 10 steps, 8.3 % at 4",
    ),
    # An upsampled picture repeats every pixel four times, so nine taps read only four different ones.
    Step(
        "folded-upsampling",
        True,
        "nearest upsampling and its 3×3 convolution as four 2×2 convolutions",
        "3.6 % of the UNet, 15.4 % of the VAE's decoder",
    ),
    # The decoder divides whole pictures by 1, the encoder computes variances that nobody asks for.
    Step("lean-vae", True, "no divisions by one, no variances, no layout copies in the VAE", "0.95 GB a frame"),
    # The latents' part of the input is the only one that changes: the rest is written once a batch.
    Step("static-input", True, "the input is one buffer of which a step rewrites the latents", "two copies a step"),
    Step("guidance-step", True, "guidance and the sampler's update in one pass", "some ten kernels a step"),
    # The compiler fuses what is left between matrix products and convolutions.
    Step("inductor", True, "torch.compile fuses what lies between matrix products", "18 % (SD 1.5 on an A100, read)"),
    # Python launches some 600 kernels a call, 18 ms of host time: at small batches (anchors, streams) that is longer
    # than the GPU needs. At large ones graphs gain nothing, so they are recorded for small ones only.
    Step(
        "cuda-graphs",
        True,
        "small batches are recorded once and replayed",
        "1.3-2 times at 1-4 samples, nothing at 360 (read)",
        ("cuda",),
    ),
    # Two thirds of these operations are the feed-forward's. Left as they are: the ways in and out of a transformer, a
    # tenth of its linear layers' operations, through which everything passes; the text's keys and values and the time
    # embeddings, which are computed once; and the autoencoder, whose errors are seen as they are.
    Step(
        FP8_LINEARS,
        False,
        "feed-forward and attention projections of the UNet in 8 bit: e4m3, a scale for every token and every output",
        "22 % of the operations at twice the rate",
    ),
)  # fmt: skip
ALL_STEPS: Steps = frozenset(step.name for step in STEPS)
EXACT_STEPS: Steps = frozenset(step.name for step in STEPS if step.exact)
NO_STEPS: Steps = frozenset()


def choose_steps(without: Iterable[str] = (), device: str = "cuda", also: Iterable[str] = ()) -> Steps:
    """The steps that run on a kind of device: all exact ones that can, but those named, and others that are asked for.

    Args:
        without: names of steps to leave out; one that cannot run here anyway may be named too.
        device: "cpu" or "cuda".
        also: names of steps that are not exact, which run here only if they are named.

    Raises:
        InputError: there is no step of a name.
    """
    left_out, asked = check_steps(without), EXACT_STEPS | frozenset(check_steps(also))
    return frozenset(s.name for s in STEPS if s.name in asked and device in s.devices and s.name not in left_out)


def check_steps(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in the list's order. Raises InputError where there is no such step."""
    asked = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in asked if name not in ALL_STEPS]
    if unknown:
        known = ", ".join(step.name for step in STEPS)
        raise InputError("is no step", name="without", value=unknown[0], remedy=f"choose from {known}")
    return in_order(asked)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of steps as the list has them."""
    chosen = frozenset(names)
    return tuple(step.name for step in STEPS if step.name in chosen)


__all__ = [
    "ALL_STEPS",
    "EXACT_STEPS",
    "FP8_LINEARS",
    "NO_STEPS",
    "STEPS",
    "Step",
    "Steps",
    "check_steps",
    "choose_steps",
    "in_order",
]
