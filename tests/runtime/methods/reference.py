"""Pix2Video written down frame after frame, as the paper tells it: what the runtime is compared with.

Nothing of the runtime is used. Features before W_K and W_V are kept for every step of the first and of the previous
frame, each guidance branch is a call of its own, and the guided update differentiates the loss.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn


class _Injection:
    """Attention by its definition; in the decoder's self-attention, keys and values come from `sources` where given."""

    def __init__(self, name: str, calls: "Calls") -> None:
        self.name, self.calls = name, calls

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is None and self.name.startswith("up_blocks."):
            self.calls.kept[self.name] = hidden_states
            if self.calls.sources:
                seen = torch.cat([source[self.name] for source in self.calls.sources], dim=1)
                if self.calls.own:
                    seen = torch.cat([hidden_states, seen], dim=1)
        q, k, v = attn.to_q(hidden_states), attn.to_k(seen), attn.to_v(seen)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


class Calls:
    """The UNet, called for one frame in one branch; `sources` are features by layer of the frames it reads."""

    def __init__(self, unet: nn.Module, own: bool) -> None:
        self.unet, self.own = unet, own
        self.kept: dict[str, Tensor] = {}
        self.sources: list[dict[str, Tensor]] = []
        names = [name.removesuffix(".processor") for name in unet.attn_processors]
        unet.set_attn_processor({f"{name}.processor": _Injection(name, self) for name in names})

    def __call__(self, x: Tensor, t: int, text: Tensor, sources: list[dict[str, Tensor]]) -> tuple[Tensor, dict]:
        self.kept, self.sources = {}, sources
        out = self.unet(x, torch.tensor([t]), encoder_hidden_states=text).sample
        return out, self.kept


def edit_frame_after_frame(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    rule: Callable[[int], tuple[int, ...]],
    *,
    own: bool,
    noise: Tensor,
    conditions: Tensor,
    texts: tuple[Tensor, Tensor],
    scale: float,
    delta: float,
    update_steps: int,
) -> Tensor:
    """Latents [N, c, h, w] of all frames.

    noise [N, c, h, w]; conditions [N, c', h, w]; texts: of the prompt and of the null prompt, [tokens, channels].
    """
    calls, steps = Calls(unet, own), [int(t) for t in scheduler.timesteps]
    features: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    originals: dict[tuple[int, int], Tensor] = {}
    done = []
    for i in range(len(noise)):
        x = noise[i : i + 1]
        for k, t in enumerate(steps):
            branches = []
            for b, text in enumerate(texts):
                read = [features[j, k, b] for j in rule(i)]
                out, features[i, k, b] = calls(torch.cat([x, conditions[i : i + 1]], 1), t, text[None], read)
                branches.append(out)
            epsilon = branches[1] + scale * (branches[0] - branches[1])
            x, originals[i, k] = _ddim(scheduler, steps, k, x, epsilon)
            if i and k < update_steps:
                x = x - _gradient(originals[i, k], originals[i - 1, k], delta)
        done.append(x)
    return torch.cat(done)


def _ddim(scheduler: DDIMScheduler, steps: list[int], k: int, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    alphas = scheduler.alphas_cumprod.double()
    following = steps[k] - 1000 // len(steps)
    a, b = alphas[steps[k]], alphas[following] if following >= 0 else scheduler.final_alpha_cumprod.double()
    original = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
    return b.sqrt() * original + (1 - b).sqrt() * epsilon, original


def _gradient(original: Tensor, previous: Tensor, delta: float) -> Tensor:
    """Of δ·mean((x0 − x0')²), x0 being a leaf."""
    with torch.enable_grad():
        leaf = original.detach().clone().requires_grad_()
        (delta * F.mse_loss(leaf, previous)).backward()
    return leaf.grad
