"""An autoencoder with 16 latent channels, 8x down, that keeps texture: ``python -m training.autoencoder16 --out DIR``.

Stages: ``autoencoder``, then ``decoder``, which leaves the encoder, and with it every latent, as it is. Each goes on
from its checkpoint in DIR, on any machine; ``--start-from`` takes first weights from elsewhere.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from training.autoencoder import FACTOR, AutoencoderPlan, coarse_error, crops, initialise
from training.checkpoint import Tensors, Trainee, learning_rate, load_average, save_tensors
from training.compute import Compute
from training.detailed_pictures import detailed_pool
from training.optimisers import muon_and_adamw

CHANNELS = 16
WIDTHS = (16, 24, 64, 112)  # wide where pixels are few: the decoder does fewer operations than the one with 4 channels
STAGES = ("autoencoder", "decoder")
SAVE_EVERY = 100  # steps
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RED_CYAN, BLUE_YELLOW = (0.5, -0.419, -0.081), (-0.169, -0.331, 0.5)  # its two axes of colour
WINDOW = 7  # pixels, of structural similarity
SIMILARITY_CONSTANTS = (0.01**2, 0.03**2)  # Wang et al. 2004, for a range of 1
Loss = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage does; ``crops``: (side in pixels, batch) taken in turn; ``pictures`` of 256x256 in the pool.

    For ``guided_steps`` a fading loss asks the latents for the 16 numbers that say most of a linear code.
    """

    steps: int = 12_000
    crops: tuple[tuple[int, int], ...] = ((64, 6), (64, 6), (64, 6), (128, 2))
    pictures: int = 1500
    learning_rate: float = 1e-2
    average: float = 0.998  # decay of the moving average of the weights
    kl_weight: float = 1e-4
    guided_steps: int = 200


PLANS = {"autoencoder": Plan(), "decoder": Plan(steps=3_000, learning_rate=2e-3, guided_steps=0)}


def build_autoencoder16(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """2.1 million parameters, no attention, fresh weights."""
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=256,
        mid_block_add_attention=False,
    )
    initialise(model)
    return model


@lru_cache(maxsize=1)
def linear_code() -> torch.Tensor:
    """Filters [16, 3, 8, 8]: of brightness the ten slowest cosines, of both colour axes the three slowest.

    Scaled so that photographs give each about unit variance.
    """
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0)]
    planes = [(LUMA, 2.0, 8.0, order), (RED_CYAN, 8.0, 24.0, order[:3]), (BLUE_YELLOW, 8.0, 24.0, order[:3])]
    filters = []
    for colour, mean_scale, wave_scale, pairs in planes:
        for down, across in pairs:
            wave = torch.outer(_cosine(down), _cosine(across)) / FACTOR**2
            scale = mean_scale if (down, across) == (0, 0) else wave_scale
            filters.append(scale * torch.tensor(colour)[:, None, None] * wave)
    return torch.stack(filters)


def _cosine(frequency: int) -> torch.Tensor:
    """A row of the 8-point DCT-II with root mean square 1."""
    wave = torch.cos(math.pi / FACTOR * (torch.arange(FACTOR) + 0.5) * frequency)
    return wave / wave.square().mean().sqrt()


def restoration_loss(restored_BCHW: torch.Tensor, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error, edges at three scales, structural similarity, and the coarse colours."""
    error_BCHW = restored_BCHW - x_BCHW
    edges = sum(edge_error(F.avg_pool2d(error_BCHW, scale)) for scale in (1, 2, 4))
    unlike = 1 - similarity(restored_BCHW / 2 + 0.5, x_BCHW / 2 + 0.5)
    fine = error_BCHW.square().mean() + 0.2 * error_BCHW.abs().mean() + 0.1 * edges + 0.05 * unlike
    return torch.as_tensor(fine + 0.1 * coarse_error(error_BCHW))


def edge_error(error_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbours in the error: 0 where all edges are there, whatever the colours."""
    down, across = error_BCHW.diff(dim=2), error_BCHW.diff(dim=3)
    return down.abs().mean() + across.abs().mean()


def similarity(first_BCHW: torch.Tensor, second_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity (Wang et al. 2004) of pictures in [0, 1] over square windows of 7 pixels."""
    count = WINDOW**2

    def local(x_BCHW: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x_BCHW, WINDOW, stride=1)

    a, b = local(first_BCHW), local(second_BCHW)
    unbiased = count / (count - 1)
    var_a = unbiased * (local(first_BCHW**2) - a * a)
    var_b = unbiased * (local(second_BCHW**2) - b * b)
    cov = unbiased * (local(first_BCHW * second_BCHW) - a * b)
    c1, c2 = SIMILARITY_CONSTANTS
    ratio = (2 * a * b + c1) * (2 * cov + c2) / ((a * a + b * b + c1) * (var_a + var_b + c2))
    return torch.as_tensor(ratio.mean())


def autoencoder_loss(
    model: AutoencoderKL, x_BCHW: torch.Tensor, kl_weight: float, generator: torch.Generator, guide: float
) -> torch.Tensor:
    """How far pictures [B, 3, H, W] in [-1, 1] are from what sampled latents give, and the latents' divergence."""
    posterior = model.encode(x_BCHW).latent_dist
    restored_BCHW = model.decode(posterior.sample(generator)).sample.float()
    loss = restoration_loss(restored_BCHW, x_BCHW)
    loss = loss + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
    if guide > 0:
        code_BCHW = F.conv2d(x_BCHW, linear_code().to(x_BCHW), stride=FACTOR)
        loss = loss + guide * (posterior.mean.float() - code_BCHW).square().mean()
    return torch.as_tensor(loss)


def decoder_loss(model: AutoencoderKL, x_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same of the latents' means; every other picture's are moved a little, as an editor's are."""
    with torch.no_grad():
        z_BCHW = model.encode(x_BCHW).latent_dist.mode().float()
        noise_BCHW = 0.1 * z_BCHW.std() * torch.randn(z_BCHW.shape, generator=generator)
        noise_BCHW[::2] = 0
    return restoration_loss(model.decode(z_BCHW + noise_BCHW.to(z_BCHW)).sample.float(), x_BCHW)


def train(
    stage: str,
    plan: Plan,
    out: Path,
    compute: Compute,
    *,
    seed: int,
    deadline: float,
    start: Path | None = None,
    photographs: Path | None = None,
) -> Trainee:
    """Trains until the steps are done or ``deadline`` (time.monotonic) has passed; goes on from the checkpoint in DIR.

    Args:
        start: first weights, where there is no checkpoint yet; the decoder's stage takes the autoencoder's by itself.
        photographs: a folder with further ones, besides those inside packages.
    """
    torch.manual_seed(seed)
    model = build_autoencoder16().to(compute.device, memory_format=torch.channels_last)
    path = out / f"{stage}.safetensors"
    if stage == "decoder":
        start = out / "autoencoder.safetensors"
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    if start is not None and not path.exists():
        load_weights(model, start)
    trainee = Trainee.start(model, muon_and_adamw(model, plan.learning_rate))
    trainee.resume(path)
    pool = detailed_pool(out / "detailed_pictures.npy", plan.pictures, seed, photographs)
    drawn = AutoencoderPlan(crops=plan.crops)
    while trainee.step < plan.steps and time.monotonic() < deadline:
        x_BCHW = crops(pool, drawn, seed + STAGES.index(stage), trainee.step).to(compute.device)
        generator = torch.Generator(compute.device).manual_seed(seed * 1_000_003 + trainee.step)
        with compute.autocast():
            loss = _loss(stage, plan, model, x_BCHW, generator, trainee.step)
        trainee.update(loss, learning_rate(plan.learning_rate, trainee.step, plan.steps), plan.average)
        trainee.log(float(loss.detach()), path)
        if trainee.step % SAVE_EVERY == 0:
            trainee.save(path)
    trainee.save(path)
    return trainee


def _loss(
    stage: str, plan: Plan, model: AutoencoderKL, x_BCHW: torch.Tensor, generator: torch.Generator, step: int
) -> torch.Tensor:
    if stage == "decoder":
        return decoder_loss(model, x_BCHW, generator)
    guide = max(0.0, 1 - step / plan.guided_steps) if plan.guided_steps else 0.0
    return autoencoder_loss(model, x_BCHW, plan.kl_weight, generator, guide)


def load_weights(model: AutoencoderKL, path: Path) -> None:
    """The averaged weights of a checkpoint, or the weights of an exported file."""
    tensors = load_file(path)
    if any(name.startswith("average/") for name in tensors):
        load_average(model, path)
    else:
        model.load_state_dict({name: value.float() for name, value in tensors.items()})


def export_weights(checkpoint: Path, path: Path) -> None:
    """The averaged weights alone, in float16 whose range the activations fit, under diffusers' names."""
    from training.float16 import fit_float16

    model = build_autoencoder16()
    load_weights(model, checkpoint)
    fit_float16(model.eval(), calibration_pictures())
    tensors: Tensors = {name: value.half() for name, value in model.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise ValueError(f"{checkpoint} has weights beyond float16's range")
    save_tensors(path, tensors)


def calibration_pictures() -> torch.Tensor:
    """Pictures [16, 3, 128, 128] in [-1, 1] by which activations are measured."""
    from training.detailed_pictures import detailed_picture

    pictures = np.stack([detailed_picture(5_000_000 + index)[64:192, 64:192] for index in range(16)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs one stage, or exports."""
    parser = argparse.ArgumentParser(prog="python -m training.autoencoder16", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the pool of pictures")
    parser.add_argument("--stage", choices=STAGES, default="autoencoder")
    parser.add_argument("--minutes", type=float, default=60.0, help="at most")
    parser.add_argument("--steps", type=int, help="instead of the plan's")
    parser.add_argument("--learning-rate", type=float, help="instead of the plan's")
    parser.add_argument("--start-from", type=Path, help="first weights, instead of fresh ones")
    parser.add_argument(
        "--export", type=Path, help="write the stage's averaged weights in float16 there, train nothing"
    )
    parser.add_argument("--photographs", type=Path, help="folder with further photographs (*.jpg)")
    parser.add_argument("--pictures", type=int, help="in the pool, instead of the plan's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.export:
        export_weights(options.out / f"{options.stage}.safetensors", options.export)
        return
    if options.start_from and not options.start_from.is_file():
        raise SystemExit(f"there is no file {options.start_from}: name a checkpoint or exported weights")
    if options.stage == "decoder" and not (options.out / "autoencoder.safetensors").exists():
        raise SystemExit(f"{options.out} holds no autoencoder: run --stage autoencoder first")
    plan = PLANS[options.stage]
    plan = replace(plan, steps=options.steps or plan.steps, learning_rate=options.learning_rate or plan.learning_rate)
    plan = replace(plan, pictures=options.pictures or plan.pictures)
    if options.start_from:
        plan = replace(plan, guided_steps=0)
    deadline = time.monotonic() + 60 * options.minutes
    train(
        options.stage,
        plan,
        options.out,
        Compute.best(),
        seed=options.seed,
        deadline=deadline,
        start=options.start_from,
        photographs=options.photographs,
    )


if __name__ == "__main__":
    main()
