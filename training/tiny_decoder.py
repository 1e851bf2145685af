"""A last stage: a decoder several times as fast as the autoencoder's, of diffusers' class ``AutoencoderTiny``.

It is distilled: it learns to draw the pictures that the trained decoder draws, from the same latents. The class and its
layers are TAESD's (https://github.com/madebyollin/taesd): residual blocks of plain convolutions, no normalisation.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file
from torch import nn

from training.autoencoder import DecoderPlan, build_autoencoder, fit_decoder, noisy_latents, restoration_loss
from training.checkpoint import Trainee, load_average, read_json, save_json
from training.compute import Compute
from training.optimisers import muon_and_adamw

CHANNELS = 32
BLOCKS = (3, 3, 1, 0)  # at 1/8, 1/4, 1/2 and all of the resolution: most of the work is where pixels are few


def build_tiny_decoder(latent_channels: int = 4) -> AutoencoderTiny:
    """0.2 million parameters in the decoder, fresh weights; the encoder, which the class demands, is empty: all zeros.

    It takes latents as a UNet makes them, scaled to unit variance.
    """
    levels = len(BLOCKS)
    model = AutoencoderTiny(
        encoder_block_out_channels=(1,) * levels,
        num_encoder_blocks=(0,) * levels,
        decoder_block_out_channels=(CHANNELS,) * levels,
        num_decoder_blocks=BLOCKS,
        latent_channels=latent_channels,
    )
    initialise(model)
    return model


@torch.no_grad()
def initialise(model: AutoencoderTiny) -> None:
    """First weights under which signals keep their size: residual branches start at zero, the picture at grey."""
    for parameter in model.encoder.parameters():
        parameter.zero_()
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(0.0 if name.endswith("conv.4") else 3**0.5)
            if module.bias is not None:
                module.bias.zero_()
    model.decoder.layers[-1].bias.fill_(0.5)  # of 0...1, which the class turns into -1...1


def train_tiny_decoder(
    plan: DecoderPlan,
    out: Path,
    compute: Compute,
    *,
    autoencoder: Path | AutoencoderKL,
    scaling_factor: float,
    seed: int,
    deadline: float,
    model: AutoencoderTiny | None = None,
) -> Trainee:
    """Learns to decode as ``autoencoder`` (a network, or a checkpoint of the one with 4 channels) does; resumable.

    Args:
        scaling_factor: what an editor's latents are the autoencoder's times.
        model: with other first weights, or of another layout.
    """
    torch.manual_seed(seed)
    if isinstance(autoencoder, AutoencoderKL):
        teacher = autoencoder
    else:
        teacher = build_autoencoder()
        load_average(teacher, autoencoder)
    teacher = teacher.to(compute.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    model = (model or build_tiny_decoder()).to(compute.device, memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)
    trainee = Trainee.start(model, muon_and_adamw(model, plan.learning_rate))

    def loss(x_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return distillation_loss(model, teacher, scaling_factor, x_BCHW, plan.noise, generator)

    return fit_decoder(trainee, plan, loss, out / "tiny_decoder.safetensors", compute, seed=seed, deadline=deadline)


def distillation_loss(
    model: AutoencoderTiny,
    teacher: AutoencoderKL,
    scaling_factor: float,
    x_BCHW: torch.Tensor,
    noise: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """How far the pictures of both decoders are apart, from the latents of pictures [B, 3, H, W] in [-1, 1]."""
    z_BCHW = noisy_latents(teacher, x_BCHW, noise, generator)
    with torch.no_grad():
        wanted_BCHW = teacher.decode(z_BCHW).sample.float().clamp(-1, 1)
    return restoration_loss(model.decode(z_BCHW * scaling_factor).sample.float() - wanted_BCHW)


def write_tiny_decoder(folder: Path, checkpoint: Path) -> None:
    """Writes the averaged weights in float16 as a folder that diffusers' ``AutoencoderTiny`` loads."""
    tensors = load_file(checkpoint)
    (first,) = (tensors[name] for name in tensors if name.endswith("decoder.layers.0.weight") and "average" in name)
    model = build_tiny_decoder(first.shape[1])
    load_average(model, checkpoint)
    model.half().save_pretrained(folder, safe_serialization=True)
    config = read_json(folder / "config.json")
    del config["block_out_channels"]  # diffusers writes it, and warns of it when it reads it
    save_json(folder / "config.json", config)
