"""Stage 1: a small KL autoencoder, 8x down to 4 channels, narrow at full resolution."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from training.checkpoint import Trainee, learning_rate, load_average
from training.compute import Compute
from training.optimisers import muon_and_adamw
from training.pictures import Bytes, picture_pool

FACTOR = 8
COLOUR_SCALE = 4.0  # of the latents while they are guided
STREAM = 21  # of random numbers
Loss = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True, slots=True)
class AutoencoderPlan:
    """What the stage does; ``crops``: (side in pixels, batch) taken in turn; ``pictures`` of 256x256 in the pool.

    For ``guided_steps`` a fading loss asks the first three latent channels for the average colour.
    """

    steps: int = 8_000
    crops: tuple[tuple[int, int], ...] = ((64, 6),)
    pictures: int = 1600
    learning_rate: float = 1e-2
    kl_weight: float = 1e-4
    guided_steps: int = 300


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """The stage after: ``noise`` is the standard deviation of what is added to the latents, in units of theirs."""

    steps: int = 2_200
    crops: tuple[tuple[int, int], ...] = ((64, 4),)
    pictures: int = 1600
    learning_rate: float = 3e-3
    noise: float = 0.25


def build_autoencoder() -> AutoencoderKL:
    """1.6 million parameters, no attention, fresh weights."""
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=256,
        mid_block_add_attention=False,
    )
    initialise(model)
    return model


@torch.no_grad()
def initialise(model: AutoencoderKL) -> None:
    """First weights under which signals keep their size; learns several times faster than PyTorch's own.

    Residual branches start at zero. Alternating biases keep the groups' statistics, and with them the picture's
    absolute colours, from being normalised away. The posterior starts narrow.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.endswith("conv2"):
            module.weight.zero_()
        else:
            module.weight.mul_(3**0.5)
        if module.bias is not None:
            module.bias.zero_()
            if module.out_channels >= 16 and not name.endswith("conv2"):
                module.bias[0::2], module.bias[1::2] = 0.25, -0.25
    bias = model.quant_conv.bias
    bias[bias.shape[0] // 2 :] = -5.0


def train_autoencoder(plan: AutoencoderPlan, out: Path, compute: Compute, *, seed: int, deadline: float) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    torch.manual_seed(seed)
    model = build_autoencoder().to(compute.device, memory_format=torch.channels_last)
    trainee = Trainee.start(model, muon_and_adamw(model, plan.learning_rate))
    path = out / "autoencoder.safetensors"
    trainee.resume(path)
    pool = picture_pool(out / "pictures.npy", plan.pictures, seed)
    while trainee.step < plan.steps and time.monotonic() < deadline:
        x_BCHW = crops(pool, plan, seed, trainee.step).to(compute.device)
        generator = torch.Generator(compute.device).manual_seed(seed * 1_000_003 + trainee.step)
        with compute.autocast():
            guide = max(0.0, 1 - trainee.step / plan.guided_steps)
            loss = autoencoder_loss(model, x_BCHW, plan.kl_weight, generator, guide)
        trainee.update(loss, learning_rate(plan.learning_rate, trainee.step, plan.steps))
        trainee.log(float(loss.detach()), path)
    trainee.save(path)
    return trainee


def train_decoder(plan: DecoderPlan, out: Path, compute: Compute, *, seed: int, deadline: float) -> Trainee:
    """Goes on with the decoder alone, so that latents, and with them a trained editor, keep their meaning; resumable.

    It learns to decode what an editor makes: latents that are not quite those of a picture.
    """
    model = build_autoencoder().to(compute.device, memory_format=torch.channels_last)
    load_average(model, out / "autoencoder.safetensors")
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    trainee = Trainee.start(model, muon_and_adamw(model, plan.learning_rate))

    def loss(x_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return decoder_loss(model, x_BCHW, plan.noise, generator)

    return fit_decoder(trainee, plan, loss, out / "decoder.safetensors", compute, seed=seed, deadline=deadline)


def fit_decoder(
    trainee: Trainee, plan: DecoderPlan, loss: Loss, path: Path, compute: Compute, *, seed: int, deadline: float
) -> Trainee:
    """Lowers a loss on random crops until the plan's steps are done or ``deadline`` has passed; goes on from ``path``.

    ``loss`` takes pictures [B, 3, side, side] in [-1, 1] and the random numbers of the step.
    """
    trainee.resume(path)
    pool = picture_pool(path.with_name("pictures.npy"), plan.pictures, seed)
    while trainee.step < plan.steps and time.monotonic() < deadline:
        x_BCHW = crops(pool, plan, seed + 1, trainee.step).to(compute.device)
        generator = torch.Generator(compute.device).manual_seed(seed * 1_000_003 + trainee.step)
        with compute.autocast():
            value = loss(x_BCHW, generator)
        trainee.update(value, learning_rate(plan.learning_rate, trainee.step, plan.steps))
        trainee.log(float(value.detach()), path)
    trainee.save(path)
    return trainee


def decoder_loss(model: AutoencoderKL, x_BCHW: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Of what is restored from noisy latents, half of the batch from clean ones."""
    z_BCHW = noisy_latents(model, x_BCHW, noise, generator)
    return restoration_loss(model.decode(z_BCHW).sample.float() - x_BCHW)


@torch.no_grad()
def noisy_latents(model: AutoencoderKL, x_BCHW: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Latents [B, 4, h, w], not scaled, every other one as an editor makes them: not quite those of a picture."""
    z_BCHW = model.encode(x_BCHW).latent_dist.mode()
    spread = torch.randn(z_BCHW.shape, generator=generator, device=z_BCHW.device) * noise * z_BCHW.float().std()
    spread[::2] = 0
    return torch.as_tensor(z_BCHW + spread)


def restoration_loss(error_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared error, some absolute error, and the error of the coarse colours."""
    fine = error_BCHW.square().mean() + 0.1 * error_BCHW.abs().mean()
    return torch.as_tensor(fine + 0.2 * coarse_error(error_BCHW))


def autoencoder_loss(
    model: AutoencoderKL, x_BCHW: torch.Tensor, kl_weight: float, generator: torch.Generator, guide: float = 0.0
) -> torch.Tensor:
    """Squared error, some absolute error, the error of the coarse colours, and the latents' divergence.

    ``guide`` weighs how far the first latent channels are from the average colours of their 8x8 pixels: without that
    at the start one axis of colour (green against magenta, or red against blue) collapses for thousands of steps.
    """
    posterior = model.encode(x_BCHW).latent_dist
    restored_BCHW = model.decode(posterior.sample(generator)).sample
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    colours_BCHW = COLOUR_SCALE * F.avg_pool2d(x_BCHW, FACTOR)
    astray = (posterior.mean[:, :3] - colours_BCHW).square().mean()
    restored = restoration_loss(restored_BCHW.float() - x_BCHW)
    return torch.as_tensor(restored + kl_weight * divergence + guide * astray)


def coarse_error(error_BCHW: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of the 8x8 means, and once more along green against magenta.

    Photographs hardly vary along that axis; without a push the four channels all go to brightness and texture, and
    it stays lost for thousands of steps.
    """
    coarse_BCHW = F.avg_pool2d(error_BCHW, FACTOR)
    red, green, blue = coarse_BCHW.unbind(dim=1)
    return 10 * coarse_BCHW.square().mean() + 3 * (green - (red + blue) / 2).square().mean()


def crops(pool: Bytes, plan: AutoencoderPlan | DecoderPlan, seed: int, step: int) -> torch.Tensor:
    """The batch of one step, a function of (seed, step): [B, 3, side, side] in [-1, 1]."""
    rng = np.random.default_rng((STREAM, seed, step))
    side, batch = plan.crops[step % len(plan.crops)]
    parts = [_crop(pool[rng.integers(len(pool))], side, rng) for _ in range(batch)]
    x_BCHW = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def _crop(picture: Bytes, size: int, rng: np.random.Generator) -> Bytes:
    """A random part, mirrored and turned at random."""
    top, left = (int(rng.integers(n - size + 1)) for n in picture.shape[:2])
    part = picture[top : top + size, left : left + size]
    part = np.rot90(part, int(rng.integers(4)))
    return part[:, ::-1] if rng.random() < 0.5 else part
