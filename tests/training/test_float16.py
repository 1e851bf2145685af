"""The autoencoder's activations fit into float16, and its pictures stay the same."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from fairy.runtime import embedded_model
from training.autoencoder import build_autoencoder
from training.float16 import LARGEST, fit_float16
from training.latents import to_tensor
from training.package import load_pipeline
from training.random_scenes import random_scene
from training.scenes import render


def pictures(seed: int, count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.cat([to_tensor(render(random_scene(seed + i, side, side)).image) for i in range(count)])


@torch.no_grad()
def outputs(vae: AutoencoderKL, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Latents decoded again, and the largest value that each layer gave."""
    largest: dict[str, float] = {}

    def hook(name: str):
        return lambda _module, _inputs, out: largest.__setitem__(name, float(out.abs().max()))

    layers = [(n, m) for n, m in vae.named_modules() if isinstance(m, nn.Conv2d | nn.GroupNorm)]
    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    made = vae.decode(vae.encode(x_BCHW).latent_dist.mode()).sample
    for each in hooks:
        each.remove()
    return made, largest


@pytest.fixture
def loud() -> AutoencoderKL:
    """Trained weights have channels that are a million times larger than others; these are made so."""
    torch.manual_seed(0)
    vae = build_autoencoder().eval()
    with torch.no_grad():
        for part in (vae.encoder, vae.decoder):
            part.conv_in.weight[:5] *= 1e5
            blocks = part.down_blocks if part is vae.encoder else part.up_blocks
            for block in blocks:
                for resnet in block.resnets:
                    resnet.conv2.weight.normal_(0, 0.1)
                    resnet.conv1.weight[3:7] *= 3e4
                    if resnet.conv_shortcut is not None:
                        resnet.conv_shortcut.weight[2:9] *= 50
    return vae


def test_pictures_stay_the_same_and_nothing_is_too_large(loud: AutoencoderKL) -> None:
    fitted = copy.deepcopy(loud)
    fit_float16(fitted, pictures(100))
    before, large = outputs(loud, pictures(200))
    after, small = outputs(fitted, pictures(200))
    assert max(large.values()) > 1e8
    assert max(small.values()) < 4 * LARGEST
    torch.testing.assert_close(after, before, rtol=0, atol=2e-4 * float(before.abs().max()))


def test_what_is_small_enough_is_left_alone() -> None:
    vae = build_autoencoder()
    kept = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    fit_float16(vae, pictures(300, side=32))
    assert all(tensor.equal(kept[name]) for name, tensor in vae.state_dict().items())


def test_the_embedded_model_runs_in_float16() -> None:
    pipeline = load_pipeline(embedded_model())
    whole, largest = outputs(pipeline.vae, pictures(910_000_000, side=128))
    assert max(largest.values()) < 8 * LARGEST, max(largest, key=lambda name: largest[name])
    half, _ = outputs(copy.deepcopy(pipeline.vae).half(), pictures(910_000_000, side=128).half())
    assert half.isfinite().all()
    assert float((half.float() - whole).square().mean()) < 1e-5, "in [-1, 1]"
