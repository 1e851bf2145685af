"""Pix2Video (Ceylan et al., arXiv 2303.12688): every frame reads the first frame and the one before, not itself.

In the decoder's self-attention layers K and V come from frames 0 and i − 1 at the same step; frame 0 attends to itself.
After a step the latents are pulled towards the previous frame's prediction of x0, a gradient step on δ·mean((x0_i −
x0_{i−1})²) with x0 taken as a constant of the network, which needs no differentiation:

    x ← x − (2·δ/numel) · (x0_i − x0_{i−1})

`numel` is that of one latent at 512×512, 4·64·64, at every size, so that δ means the same pull everywhere.
"""

from typing import TYPE_CHECKING

from fairy.runtime.methods.method import Method, Stepped, Update

if TYPE_CHECKING:
    from torch import Tensor

DELTA = 100.0
REFERENCE_NUMEL = 4 * 64 * 64


def first_and_previous(frame: int, anchors: tuple[int, ...]) -> tuple[int, ...]:
    """S(i) = {0, i − 1}; frame 1 reads frame 0 twice, which is reading it once."""
    return (0, frame - 1) if frame else ()


def update_weight(delta: float, numel: int | None = None) -> float:
    """2·δ/numel; numel = that of one latent as the paper has it, None for 4·64·64 at every size."""
    return 2.0 * delta / (numel or REFERENCE_NUMEL)


def pull_to_previous(stepped: Stepped, update: Update) -> "Tensor":
    """The guided update: latents [c, h, w] moved towards the previous frame's prediction, in the first steps."""
    previous = stepped.originals.get(stepped.unit.frame - 1)
    if previous is None or stepped.unit.step >= update.steps:
        return stepped.latents
    return stepped.latents - update.weight * stepped.scale * (stepped.original - previous)


PIX2VIDEO = Method(
    "pix2video",
    first_and_previous,
    own=False,
    layers="decoder",
    anchors="first",
    orders=("wavefront", "step-major"),
    after_step=pull_to_previous,
)
