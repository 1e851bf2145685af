"""Stages 2 and 3: the UNet and the text encoder learn to edit, first plainly, then equivariantly."""

import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from training.checkpoint import Trainee, learning_rate, load_average
from training.compute import Compute
from training.latents import Pairs, PairsPlan
from training.text import build_text_encoder, build_tokenizer, token_ids
from training.unet import build_unet

STREAM = 22  # of random numbers
TRAIN_STEPS = 1000  # of the diffusion
CHANGED = 0.2  # a latent (of unit variance) further than this from the source's counts as changed by the edit


@dataclass(frozen=True, slots=True)
class EditorPlan:
    """What the stage does; ``crops``: latent sides taken in turn, as (side, batch)."""

    steps: int = 26_000
    crops: tuple[tuple[int, int], ...] = ((16, 8), (16, 8), (32, 2))
    learning_rate: float = 1e-3
    drop: float = 0.05  # of the text, of the image, and of both
    changed_weight: float = 10.0  # of the error where the edit changes the picture; elsewhere it is 1
    pairs: PairsPlan = field(default_factory=PairsPlan)


class TextEditor(nn.Module):
    """The two networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder: CLIPTextModel = build_text_encoder(self.tokenizer)
        self.unet: UNet2DConditionModel = build_unet()

    def forward(
        self, noisy_BCHW: torch.Tensor, image_BCHW: torch.Tensor, time_B: torch.Tensor, tokens_BL: torch.Tensor
    ) -> torch.Tensor:
        """The prediction v [B, 4, h, w]."""
        text_BLC = self.text_encoder(tokens_BL).last_hidden_state
        sample = torch.cat([noisy_BCHW, image_BCHW], dim=1).contiguous(memory_format=torch.channels_last)
        return torch.as_tensor(self.unet(sample, time_B, text_BLC).sample)


def alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion's schedule ("scaled_linear"), [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input; target and image are latents [B, 4, h, w], the target scaled to unit variance."""

    target: torch.Tensor
    image: torch.Tensor
    tokens: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


def draw_batch(pairs: Pairs, plan: EditorPlan, empty_L: torch.Tensor, seed: int, step: int) -> Batch:
    """The batch of one step, a function of (seed, step)."""
    rng = np.random.default_rng((STREAM, seed, step))
    side, size = plan.crops[step % len(plan.crops)]
    chosen = torch.from_numpy(rng.integers(len(pairs.target), size=size))
    top, left = (int(rng.integers(n - side + 1)) for n in pairs.target.shape[2:])
    window = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
    image, target = pairs.source[pairs.origin[chosen]][window], pairs.target[chosen][window]
    luck = torch.from_numpy(rng.random(size))
    no_text, no_image = luck < 2 * plan.drop, (luck >= plan.drop) & (luck < 3 * plan.drop)
    noise = rng.standard_normal((size, *target.shape[1:]), dtype=np.float32)
    return Batch(
        target=target.float() * pairs.scaling_factor,
        image=image.float() * ~no_image[:, None, None, None],
        tokens=torch.where(no_text[:, None], empty_L, pairs.tokens[chosen]),
        noise=torch.from_numpy(noise),
        time=torch.from_numpy(rng.integers(TRAIN_STEPS, size=size)),
    )


def change_weights(batch: Batch, scaling_factor: float, changed: float) -> torch.Tensor:
    """The weight of the error at each latent [B, 1, h, w], of mean 1 in each sample.

    An edit of one kind of object changes a small part of the picture, and would hardly be noticed in a plain mean.
    """
    distance = (batch.target - batch.image * scaling_factor).abs().mean(dim=1, keepdim=True)
    weights = torch.where(distance > CHANGED, changed, 1.0)
    return weights / weights.mean(dim=(2, 3), keepdim=True)


def editor_loss(model: TextEditor, batch: Batch, alphas: torch.Tensor, weights_B1HW: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of the v prediction (Salimans & Ho 2022): v = sqrt(a) noise - sqrt(1 - a) target."""
    signal, spread = (w[batch.time, None, None, None] for w in (alphas.sqrt(), (1 - alphas).sqrt()))
    noisy = signal * batch.target + spread * batch.noise
    wanted = signal * batch.noise - spread * batch.target
    predicted = model(noisy, batch.image, batch.time, batch.tokens).float()
    return torch.as_tensor((weights_B1HW * (predicted - wanted).square()).mean())


def train_editor(
    plan: EditorPlan,
    pairs: Pairs,
    path: Path,
    compute: Compute,
    *,
    seed: int,
    deadline: float,
    start: Path | None = None,
) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable.

    ``start`` is an earlier stage's checkpoint whose averaged weights are the first ones here.
    """
    torch.manual_seed(seed)
    model = TextEditor().to(compute.device)
    model.unet.to(memory_format=torch.channels_last)
    if start is not None and not path.exists():
        load_average(model, start)
    trainee = Trainee.start(model, plan.learning_rate)
    trainee.resume(path)
    empty_L, alphas = token_ids(model.tokenizer, [""])[0], alphas_cumprod().to(compute.device)
    while trainee.step < plan.steps and time.monotonic() < deadline:
        batch = draw_batch(pairs, plan, empty_L, seed, trainee.step).to(compute.device)
        weights = change_weights(batch, pairs.scaling_factor, plan.changed_weight)
        with compute.autocast():
            loss = editor_loss(model, batch, alphas, weights)
        trainee.update(loss, learning_rate(plan.learning_rate, trainee.step, plan.steps))
        trainee.log(float(loss.detach()), path)
    trainee.save(path)
    return trainee
