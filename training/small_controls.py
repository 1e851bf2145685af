"""Small weights for the pictures of docs/controls.md, fitted to the embedded model in minutes on a CPU.

    python -m training.small_controls --out DIR [--only lora …] [--steps 400]

    lora.safetensors    a look that the model does not know: a mosaic of tiles
    controlnet/         draws the lines that it sees, as white light
    ip_adapter/         gives a picture the dark and the light colour of another

They show what a control does, no more: each learns one thing, on procedural scenes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fairy.export.checkpoint import load_checkpoint
from fairy.runtime.models import embedded_model
from training.distil_editor import encode_text
from training.looks import apply_look
from training.pictures import Bytes, to_bytes
from training.small_fits import BATCH, Pairs, fit, levels_of, noisy, quarters
from training.small_ip_adapter import make_ip_adapter

RANK = 8
TILE = 8  # pixels; what one latent stands for
MOSAIC, DRAW = "make it a mosaic", "make it night"


def main() -> None:
    """Read the options and make the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=tuple(MAKERS), default=tuple(MAKERS))
    parser.add_argument("--steps", type=int, help="of training; each control has its own number")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        started = time.monotonic()
        torch.manual_seed(0)
        make, steps = MAKERS[name]
        make(options.out, options.steps or steps)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


class LowRank(nn.Module):
    """A weight plus up @ down, which is nothing at first."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, *weight.shape[1:]) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), RANK, *[1] * (weight.dim() - 2)))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with."""
        return weight + (self.up.flatten(1) @ self.down.flatten(1)).view_as(weight)


def make_lora(out: Path, steps: int) -> None:
    """A LoRA of all the UNet's layers, by the names that diffusers and PEFT write."""
    checkpoint = load_checkpoint(embedded_model())
    levels, sources = levels_of(checkpoint), quarters()
    pairs = Pairs(checkpoint, sources, np.stack([mosaic(picture) for picture in sources]))
    text = encode_text(checkpoint, MOSAIC).expand(BATCH, -1, -1)
    changed = {n: m for n, m in checkpoint.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    added = {name: LowRank(module.weight) for name, module in changed.items()}
    for name, module in changed.items():
        parametrize.register_parametrization(module, "weight", added[name])

    def loss_at(step: int) -> Tensor:
        _, image, clean = pairs.batch(step)
        z, time_B, v = noisy(levels, clean, step)
        return F.mse_loss(checkpoint.unet(torch.cat([z, image], 1), time_B, text).sample, v)

    fit([p for module in added.values() for p in module.parameters()], loss_at, steps, 2e-3)
    tensors = {f"unet.{name}.lora_A.weight": module.down.detach() for name, module in added.items()}
    tensors |= {f"unet.{name}.lora_B.weight": module.up.detach() for name, module in added.items()}
    save_file({key: t.half().contiguous() for key, t in tensors.items()}, out / "lora.safetensors")


def mosaic(picture: Bytes) -> Bytes:
    """Tiles of one colour each, with dark joints between them, uint8 [H, W, 3]; sides are multiples of a tile."""
    height, width = picture.shape[:2]
    tiles = picture.reshape(height // TILE, TILE, width // TILE, TILE, 3).mean(axis=(1, 3))
    laid = tiles.repeat(TILE, 0).repeat(TILE, 1)
    joint = (np.arange(height)[:, None] % TILE == 0) | (np.arange(width)[None] % TILE == 0)
    return np.where(joint[..., None], 0.35 * laid, laid).round().astype(np.uint8)


def make_controlnet(out: Path, steps: int) -> None:
    """A ControlNet of the embedded UNet's own weights, that draws the lines it sees."""
    from diffusers import ControlNetModel

    checkpoint = load_checkpoint(embedded_model())
    levels, sources = levels_of(checkpoint), quarters()
    lines = np.stack([outlines(sources[(7 * i) % len(sources)]) for i in range(len(sources))])  # of another picture
    pairs = Pairs(checkpoint, sources, np.stack([drawn(*each) for each in zip(sources, lines, strict=True)]))
    seen = torch.from_numpy(lines).float().div(255)[:, None].expand(-1, 3, -1, -1)
    text = encode_text(checkpoint, DRAW).expand(BATCH, -1, -1)
    network: Any = ControlNetModel.from_unet(checkpoint.unet, conditioning_embedding_out_channels=(16, 24, 32, 48))
    network.train().requires_grad_(True)

    def loss_at(step: int) -> Tensor:
        chosen, image, clean = pairs.batch(step)
        z, time_B, v = noisy(levels, clean, step)
        sample = torch.cat([z, image], 1)
        down, mid = network(sample, time_B, text, controlnet_cond=seen[chosen], return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return F.mse_loss(checkpoint.unet(sample, time_B, text, **added).sample, v)

    fit(list(network.parameters()), loss_at, steps, 1e-3)
    network.half().save_pretrained(out / "controlnet")


def outlines(picture: Bytes) -> Bytes:
    """Canny's edges with the runtime's own thresholds, uint8 [H, W]."""
    from fairy.runtime.inputs.conditions import edges

    levels = torch.from_numpy(picture).permute(2, 0, 1).float()[None]
    return np.asarray(edges(levels)[0, 0].numpy().astype(np.uint8))


def drawn(picture: Bytes, lines: Bytes) -> Bytes:
    """A picture at night with lines of light, uint8 [H, W, 3]."""
    night = apply_look("night", (picture / 255).astype(np.float32))
    light = F.max_pool2d(torch.from_numpy(lines).float()[None, None] / 255, 3, stride=1, padding=1)[0, 0].numpy()
    return to_bytes(np.maximum(night, light[..., None]))


MAKERS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "lora": (make_lora, 300),
    "controlnet": (make_controlnet, 500),
    "ip_adapter": (make_ip_adapter, 400),
}

if __name__ == "__main__":
    main()
