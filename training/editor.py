"""Stages 2 and 3: the UNet and the text encoder learn to edit, first plainly, then equivariantly."""

import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from training.checkpoint import Trainee, learning_rate, load_average
from training.compute import Compute
from training.latents import Pairs, PairsPlan
from training.optimisers import adamw
from training.shapes import SHAPES
from training.text import build_text_encoder, build_tokenizer, token_ids
from training.unet import build_unet

STREAM = 22  # of random numbers
TRAIN_STEPS = 1000  # of the diffusion
NOTHING = -100  # where shapes are not asked for (PyTorch's value)
CHANGED = 0.2  # a latent (of unit variance) further than this from the source's counts as changed by the edit


@dataclass(frozen=True, slots=True)
class EditorPlan:
    """What the stage does; ``crops``: latent sides taken in turn, as (side, batch)."""

    steps: int = 6_000
    crops: tuple[tuple[int, int], ...] = ((32, 8),)
    learning_rate: float = 1e-3
    blind: float = 0.25  # share of samples at the last time, which start from noise alone as sampling does
    early: float = 0.25  # share of samples in the noisiest quarter of the times
    drop: float = 0.05  # of the text, of the image, and of both
    changed_weight: float = 10.0  # of the error where the edit changes the picture; elsewhere it is 1
    shapes_weight: float = 1.0  # of the loss that asks which kind of object is where
    save_every: int = 500  # steps
    pairs: PairsPlan = field(default_factory=PairsPlan)


class TextEditor(nn.Module):
    """The two networks that are trained together, and what only helps them to learn: a recogniser of shapes.

    It reads the UNet's features where they are coarsest. Without it the UNet takes very long to tell kinds of objects
    apart, for only a few sentences ask it to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder: CLIPTextModel = build_text_encoder(self.tokenizer)
        self.unet: UNet2DConditionModel = build_unet()
        self.recogniser = recogniser(self.unet, len(SHAPES))

    def forward(
        self, noisy_BCHW: torch.Tensor, image_BCHW: torch.Tensor, time_B: torch.Tensor, tokens_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction v [B, C, h, w], and logits [B, 1 + kinds, h/2, w/2] of what the image shows where."""
        text_BLC = self.text_encoder(tokens_BL).last_hidden_state
        sample = torch.cat([noisy_BCHW, image_BCHW], dim=1).contiguous(memory_format=torch.channels_last)
        features: list[torch.Tensor] = []
        hook = self.unet.up_blocks[0].register_forward_hook(lambda _block, _inputs, output: features.append(output))
        with hook:
            v_BCHW = self.unet(sample, time_B, text_BLC).sample
        return v_BCHW, self.recogniser(features[0])


def recogniser(unet: UNet2DConditionModel, kinds: int) -> nn.Conv2d:
    """Logits of so many kinds of shapes, and of none, from the UNet's coarsest features."""
    return nn.Conv2d(unet.config["block_out_channels"][-1], 1 + kinds, kernel_size=1)


def alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion's schedule ("scaled_linear"), [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input; target and image are latents [B, C, h, w], the target scaled to unit variance.

    shapes [B, h, w]: the kinds of objects in the image, and -100 where there is no image.
    """

    target: torch.Tensor
    image: torch.Tensor
    shapes: torch.Tensor
    tokens: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))

    def part(self, rank: int, processes: int) -> "Batch":
        """The samples of one of several processes."""
        return Batch(*(getattr(self, part.name)[rank::processes] for part in fields(self)))


def draw_batch(pairs: Pairs, plan: EditorPlan, empty_L: torch.Tensor, seed: int, step: int) -> Batch:
    """The batch of one step, a function of (seed, step)."""
    rng = np.random.default_rng((STREAM, seed, step))
    side, size = plan.crops[step % len(plan.crops)]
    turns = torch.arange(len(pairs.target)) if pairs.turns is None else pairs.turns
    if pairs.placed is not None and side < pairs.target.shape[2]:
        turns = turns[~pairs.placed[turns]]
    chosen = turns[torch.from_numpy(rng.integers(len(turns), size=size))]
    top, left = (int(rng.integers(n - side + 1)) for n in pairs.target.shape[2:])
    window = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
    origin = pairs.origin[chosen]
    image, target = pairs.source[origin][window], pairs.target[chosen][window]
    shapes = pairs.shapes[origin].long()[:, window[2], window[3]]
    luck = torch.from_numpy(rng.random(size))
    no_text, no_image = luck < 2 * plan.drop, (luck >= plan.drop) & (luck < 3 * plan.drop)
    noise = rng.standard_normal((size, *target.shape[1:]), dtype=np.float32)
    return Batch(
        target=target.float() * pairs.scaling_factor,
        image=image.float() * ~no_image[:, None, None, None],
        shapes=torch.where(no_image[:, None, None], NOTHING, shapes),
        tokens=torch.where(no_text[:, None], empty_L, pairs.tokens[chosen]),
        noise=torch.from_numpy(noise),
        time=torch.from_numpy(draw_times(plan, rng, size)),
    )


def draw_times(plan: EditorPlan, rng: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
    """Diffusion times [size]; most of them early in sampling.

    Which objects are meant must be known there. Later the noisy target itself shows them, so that times drawn evenly
    hardly teach it.
    """
    kind, last = rng.random(size), TRAIN_STEPS - 1
    anywhere, early = rng.integers(TRAIN_STEPS, size=size), rng.integers(TRAIN_STEPS * 3 // 4, TRAIN_STEPS, size=size)
    return np.where(kind < plan.blind, last, np.where(kind < plan.blind + plan.early, early, anywhere))


def change_weights(batch: Batch, scaling_factor: float, changed: float) -> torch.Tensor:
    """The weight of the error at each latent [B, 1, h, w], of mean 1 in each sample.

    An edit of one kind of object changes a small part of the picture, and would hardly be noticed in a plain mean.
    """
    distance = (batch.target - batch.image * scaling_factor).abs().mean(dim=1, keepdim=True)
    weights = torch.where(distance > CHANGED, changed, 1.0)
    return weights / weights.mean(dim=(2, 3), keepdim=True)


def editor_loss(
    model: nn.Module, batch: Batch, alphas: torch.Tensor, weights_B1HW: torch.Tensor, shapes_weight: float
) -> torch.Tensor:
    """Weighted squared error of the v prediction (Salimans & Ho 2022): v = sqrt(a) noise - sqrt(1 - a) target.

    At the last time the schedule would leave a trace of the target, which sampling does not have: there it is noise.
    To that comes the cross-entropy of the recognised shapes.
    """
    signal, spread = (w[batch.time, None, None, None] for w in (alphas.sqrt(), (1 - alphas).sqrt()))
    is_last = (batch.time == TRAIN_STEPS - 1)[:, None, None, None]
    noisy = torch.where(is_last, batch.noise, signal * batch.target + spread * batch.noise)
    wanted = signal * batch.noise - spread * batch.target
    predicted, logits = model(noisy, batch.image, batch.time, batch.tokens)
    error = (weights_B1HW * (predicted.float() - wanted).square()).mean()
    return torch.as_tensor(error + shapes_weight * shapes_loss(logits.float(), batch.shapes))


def shapes_loss(logits: torch.Tensor, shapes_BHW: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over all places with a known answer; 0 if there is none."""
    fine = F.interpolate(logits, shapes_BHW.shape[1:], mode="bilinear")
    total = F.cross_entropy(fine, shapes_BHW, ignore_index=NOTHING, reduction="sum")
    return total / (shapes_BHW != NOTHING).sum().clamp(min=1)


def train_editor(
    plan: EditorPlan,
    pairs: Pairs,
    path: Path,
    compute: Compute,
    *,
    seed: int,
    deadline: float,
    start: Path | None = None,
    model: TextEditor | None = None,
) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable.

    ``start`` is an earlier stage's checkpoint whose averaged weights are the first ones here, ``model`` networks of
    another layout or with other first weights. Several processes take equal parts of every batch; the logged loss is
    that of the first one's part.
    """
    if any(size % compute.processes for _, size in plan.crops):
        raise SystemExit(f"batches of {plan.crops} cannot be shared equally by {compute.processes} processes")
    torch.manual_seed(seed)
    model = (model or TextEditor()).to(compute.device)
    model.unet.to(memory_format=torch.channels_last)
    if start is not None and not path.exists():
        load_average(model, start)
    trainee = Trainee.start(model, adamw(model, plan.learning_rate), writes=compute.rank == 0)
    trainee.resume(path)
    compute.wait()
    network = compute.shared(model)
    empty_L, alphas = token_ids(model.tokenizer, [""])[0], alphas_cumprod().to(compute.device)
    while trainee.step < plan.steps and compute.everyone(time.monotonic() < deadline):
        batch = draw_batch(pairs, plan, empty_L, seed, trainee.step).part(compute.rank, compute.processes)
        batch = batch.to(compute.device)
        weights = change_weights(batch, pairs.scaling_factor, plan.changed_weight)
        with compute.autocast():
            loss = editor_loss(network, batch, alphas, weights, plan.shapes_weight)
        trainee.update(loss, learning_rate(plan.learning_rate, trainee.step, plan.steps))
        trainee.log(float(loss.detach()), path)
        if trainee.step % plan.save_every == 0:
            trainee.save(path)
    trainee.save(path)
    return trainee
