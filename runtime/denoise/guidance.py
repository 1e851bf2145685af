"""Three-branch guidance of InstructPix2Pix (Brooks et al., arXiv 2211.09800, equation 3).

Branches, in this order: (prompt, image), (negative prompt, image), (negative prompt, no image), and

    eps = e3 + image_scale · (e2 − e3) + text_scale · (e1 − e2)

A branch is left out only where the scales make it vanish from that sum. With *oscillating guidance* (Ho et al., Imagen
Video, arXiv 2210.02303) the text pulls fully in the first steps, and from then on at every second one.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Guidance:
    """The branches that are computed, and what each weighs.

    Attributes:
        branches: of 0 (prompt, image), 1 (negative prompt, image), 2 (negative prompt, no image), in order.
        guidance_scale, image_guidance_scale: the text's and the image's.
        low, high_steps: of oscillating guidance, see `scale_at`; None = the text's stays what it is.
    """

    branches: tuple[int, ...]
    guidance_scale: float
    image_guidance_scale: float
    low: float | None = None
    high_steps: int = 0

    @property
    def groups(self) -> int:
        return len(self.branches)

    def at(self, step: int) -> "Guidance":
        """The guidance of one step, of the same branches."""
        if self.low is None:
            return self
        scale = scale_at(step, self.guidance_scale, self.low, self.high_steps)
        return replace(self, guidance_scale=scale, low=None)


def scale_at(step: int, guidance_scale: float, low: float | None, high_steps: int) -> float:
    """The text's scale at a step: the full one `high_steps` times, then `low` and the full one in turn."""
    late = step - high_steps
    return guidance_scale if low is None or late < 0 or late % 2 else low


def make_guidance(
    guidance_scale: float, image_guidance_scale: float, low: float | None = None, high_steps: int = 0
) -> Guidance:
    """The guidance of a job; branches whose weight is zero at every step are not computed."""
    texts = (guidance_scale,) if low is None else (guidance_scale, low)
    weights = [(text, image_guidance_scale - text, 1.0 - image_guidance_scale) for text in texts]
    branches = tuple(b for b, each in enumerate(zip(*weights, strict=True)) if any(each))
    return Guidance(branches, guidance_scale, image_guidance_scale, low, high_steps)


def unguided(guidance: Guidance) -> Guidance:
    """The same without pull: only the branch that sees instruction and picture, which must be the first computed."""
    assert guidance.branches[0] == 0
    return make_guidance(1.0, 1.0)


def guide(guidance: Guidance, outputs: Tensor) -> Tensor:
    """One prediction from those of the branches: [branches, frames, c, h, w] to [frames, c, h, w], in float32.

    Only float64 stays what it is.
    """
    text, image = guidance.guidance_scale, guidance.image_guidance_scale
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if guidance.branches == (0, 1, 2):
        e1, e2, e3 = outputs
        guided: Tensor = e3 + image * (e2 - e3) + text * (e1 - e2)
        return guided
    weights = (text, image - text, 1.0 - image)
    weighted = [weights[b] * output for b, output in zip(guidance.branches, outputs, strict=True)]
    return torch.stack(weighted).sum(0)


def branch_text(guidance: Guidance, prompt: Tensor, negative: Tensor) -> Tensor:
    """Text features of every branch: two times [tokens, channels] to [branches, tokens, channels]."""
    return torch.stack([prompt if b == 0 else negative for b in guidance.branches])


def branch_image(guidance: Guidance, image_latents: Tensor) -> Tensor:
    """Image latents of every branch: [frames, c, h, w] to [branches, frames, c, h, w], zeros without image."""
    return torch.stack([torch.zeros_like(image_latents) if b == 2 else image_latents for b in guidance.branches])
