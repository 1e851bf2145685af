"""How `training.small_controls` fits a few weights to the embedded model: its pictures, its noise, its steps.

The embedded model edits in two steps, at the last and the first of its times, and only these are learned.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fairy.export.checkpoint import Checkpoint
from training.distil_editor import encode, trained_alphas
from training.distillation import Levels
from training.named_scenes import named_scene
from training.pictures import Bytes, to_bytes
from training.scenes import render

SIDE = 96  # of the pictures to learn from: quarters of scenes
SCENES = 40
BATCH = 4


def quarters() -> Bytes:
    """Parts of procedural scenes, uint8 [4 * SCENES, SIDE, SIDE, 3]."""
    scenes = np.stack([to_bytes(render(named_scene(seed, 2 * SIDE)).image) for seed in range(SCENES)])
    rows = scenes.reshape(SCENES, 2, SIDE, 2, SIDE, 3).swapaxes(2, 3)
    return np.ascontiguousarray(rows.reshape(-1, SIDE, SIDE, 3))


class Pairs:
    """Latents of sources and of what becomes of them, in batches."""

    def __init__(self, checkpoint: Checkpoint, sources: Bytes, targets: Bytes) -> None:
        """Encode pictures uint8 [N, SIDE, SIDE, 3]."""
        scale = checkpoint.vae.config.scaling_factor
        self.image = torch.cat([encode(checkpoint, picture[None]) for picture in sources])
        self.clean = torch.cat([encode(checkpoint, picture[None]) for picture in targets]) * scale

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of pairs [BATCH], and their image and edited latents; a function of the step."""
        chosen = torch.randint(len(self.image), (BATCH,), generator=torch.Generator().manual_seed(step))
        return chosen, self.image[chosen], self.clean[chosen]


def noisy(levels: Levels, clean: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their times, and the v that a network should say of them; every fourth step at the first time."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(-1 - step))
    time_B = torch.full((len(clean),), 0 if step % 4 == 3 else len(levels.alphas) - 1)
    alpha = levels.at(time_B, clean)
    z = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return z, time_B, alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def fit(parameters: list[nn.Parameter], loss_at: Callable[[int], Tensor], steps: int, rate: float) -> None:
    """So many steps of AdamW with a learning rate that goes down to nothing."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    recent: list[float] = []
    for step in range(steps):
        loss = loss_at(step)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {np.mean(recent[-50:]):.4f}", flush=True)


def levels_of(checkpoint: Checkpoint) -> Levels:
    """How noisy the model's times are; its own weights stay as they are."""
    checkpoint.unet.requires_grad_(False)
    return Levels(trained_alphas(dict(checkpoint.scheduler_config)))
