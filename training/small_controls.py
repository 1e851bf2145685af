"""Small weights for the pictures of docs/controls.md, fitted to the embedded model in minutes on a CPU.

    python -m training.small_controls --out DIR [--only lora …] [--steps 400]

    lora.safetensors    a look that the model does not know: a mosaic of tiles
    controlnet/         draws the lines that it sees, as white light
    clipseg/            finds things by the names of their colours

They show what a control does, no more: each learns one thing, on procedural scenes. The embedded model edits in two
steps, at the first and the last of its times, and only these are learned.
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

from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.runtime.models import embedded_model
from training.distil_editor import encode, encode_text, trained_alphas
from training.distillation import Levels
from training.looks import apply_look
from training.named_scenes import COLOURS, named_scene, named_texture
from training.pictures import Bytes, to_bytes
from training.scenes import Motion, Scene, Sprite, render
from training.shapes import ALL_SHAPES
from training.surroundings import random_surface
from training.textures import Array

SIDE = 96  # of the pictures to learn from: quarters of scenes, with things of the usual size
SCENES = 40
BATCH = 4
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
    """Noisy latents, their times, and the v that a network should say of them; every fourth step at the last time."""
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


def editor_of(checkpoint: Checkpoint) -> Levels:
    """How noisy the model's times are; its own weights stay as they are."""
    checkpoint.unet.requires_grad_(False)
    return Levels(trained_alphas(dict(checkpoint.scheduler_config)))


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
    levels, sources = editor_of(checkpoint), quarters()
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
    levels, sources = editor_of(checkpoint), quarters()
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


def make_clipseg(out: Path, steps: int) -> None:
    """A CLIPSeg that finds "the red thing", of its own small networks and the embedded model's tokenizer."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    checkpoint = load_checkpoint(embedded_model())
    tokenizer, side = checkpoint.tokenizer, 64
    like = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length, **ends}
    config = CLIPSegConfig(
        text_config={**like, **words},
        vision_config={**like, "image_size": side, "patch_size": 4},
        projection_dim=64,
        extract_layers=[0, 1, 2],
        reduce_dim=32,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        conditional_layer=0,
    )
    network: Any = CLIPSegForImageSegmentation(config).train()
    process = ViTImageProcessorPil(size={"height": side, "width": side})
    shown = [coloured_things(seed) for seed in range(6 * SCENES)]
    pixels = process(images=[picture for picture, _ in shown], return_tensors="pt").pixel_values
    names = tuple(COLOURS)
    ids = tokenizer([f"the {name} thing" for name in names], padding=True, return_tensors="pt").input_ids

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(step)
        chosen = rng.integers(len(shown), size=4 * BATCH)
        asked = [int(rng.choice([*there, rng.integers(len(names))])) for there in (list(shown[i][1]) for i in chosen)]
        found = [
            shown[i][1].get(name, np.zeros((SIDE, SIDE), np.float32)) for i, name in zip(chosen, asked, strict=True)
        ]
        target = F.interpolate(torch.from_numpy(np.stack(found))[:, None], (side, side), mode="area")[:, 0]
        logits = network(input_ids=ids[asked], pixel_values=pixels[chosen]).logits
        return F.binary_cross_entropy_with_logits(logits, target)

    fit(list(network.parameters()), loss_at, steps, 1e-3)
    network.eval().save_pretrained(out / "clipseg")
    tokenizer.save_pretrained(out / "clipseg")
    process.save_pretrained(out / "clipseg")


def coloured_things(seed: int) -> tuple[Bytes, dict[int, Array]]:
    """A picture uint8 [SIDE, SIDE, 3] of unlike things and, by the number of a colour, where it is."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(len(COLOURS))[: rng.integers(1, 5)]
    things: list[Sprite] = []
    for number in names:
        texture, shape = named_texture(rng, tuple(COLOURS)[number]), str(rng.choice(ALL_SHAPES))
        x, y, radius = (SIDE * float(share) for share in rng.uniform((0, 0, 0.08), (1, 1, 0.25)))
        things.append(Sprite(shape, texture, (x, y), radius, 0.0, Motion()))
    frame = render(Scene(SIDE, SIDE, random_surface(rng, SIDE, None), tuple(things)))
    where = {int(number): np.asarray(frame.labels == k + 1, np.float32) for k, number in enumerate(names)}
    return to_bytes(frame.image), where


MAKERS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "lora": (make_lora, 300),
    "controlnet": (make_controlnet, 500),
    "clipseg": (make_clipseg, 800),
}

if __name__ == "__main__":
    main()
