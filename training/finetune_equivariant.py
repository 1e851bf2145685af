"""Equivariant finetuning of any InstructPix2Pix checkpoint.

``python -m training.finetune_equivariant MODEL PAIRS --out DIR``

MODEL is a directory in diffusers' format. PAIRS is a folder with ``pairs.jsonl``, one object a line:
``{"source": "a.png", "target": "b.png", "instruction": "make it snow"}``, files relative to the folder.
One random affine map moves source and target alike (arXiv 2312.13834, section 5.2); only the UNet learns.
Runs on one or many devices (``accelerate launch -m training.finetune_equivariant …``) and continues with ``--resume``.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import set_seed  # type: ignore[import-untyped]
from diffusers import DDPMScheduler, StableDiffusionInstructPix2PixPipeline
from skimage import transform
from skimage.io import imread
from torch.utils.data import DataLoader, Dataset, Subset

from training.checkpoint import read_json, save_json
from training.equivariant import apply_affine, random_affine
from training.latents import to_tensor
from training.textures import Array

Item = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """``size`` in pixels; ``batch`` a device and step; ``drop`` of the text, of the image, and of both."""

    steps: int = 50_000
    batch: int = 16
    size: int = 256
    learning_rate: float = 1e-5
    drop: float = 0.05
    seed: int = 0


class EquivariantPairs(Dataset[Item]):
    """Item ``i`` is a function of (seed, i): a random pair under a random affine map, and its words."""

    def __init__(self, folder: Path, tokenizer: Any, plan: FinetunePlan, length: int) -> None:
        lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        self.pairs = [json.loads(line) for line in lines if line.strip()]
        self.folder, self.tokenizer, self.plan, self.length = folder, tokenizer, plan, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        """``source`` and ``target`` [3, size, size] in [-1, 1], ``tokens`` [L], ``keep_image`` 0 or 1."""
        rng = np.random.default_rng((self.plan.seed, index))
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        pictures = [read_square(self.folder / pair[name], self.plan.size) for name in ("source", "target")]
        moved = apply_affine(torch.cat([to_tensor(p) for p in pictures]), random_affine(rng))
        luck = rng.random()
        text = "" if luck < 2 * self.plan.drop else pair["instruction"]
        keep = 0.0 if self.plan.drop <= luck < 3 * self.plan.drop else 1.0
        return {
            "source": moved[0],
            "target": moved[1],
            "tokens": self._tokens(text),
            "keep_image": torch.tensor(keep),
        }

    def _tokens(self, text: str) -> torch.Tensor:
        length = self.tokenizer.model_max_length
        batch = self.tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return torch.as_tensor(batch.input_ids[0])


def read_square(path: Path, size: int) -> Array:
    """The middle square of a picture, [size, size, 3] in [0, 1]."""
    picture = imread(path)[..., :3]
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    return np.asarray(transform.resize(square, (size, size), anti_aliasing=side > size), np.float32)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What does not learn."""

    vae: Any
    text_encoder: Any
    schedule: DDPMScheduler


def finetune_loss(unet: Any, frozen: Frozen, batch: Item, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of what the checkpoint's scheduler says the UNet predicts."""
    with torch.no_grad():
        scale = frozen.vae.config.scaling_factor
        target = frozen.vae.encode(batch["target"]).latent_dist.mode() * scale
        image = frozen.vae.encode(batch["source"]).latent_dist.mode() * batch["keep_image"][:, None, None, None]
        text = frozen.text_encoder(batch["tokens"]).last_hidden_state
    noise = torch.randn(target.shape, generator=generator).to(target)
    steps = frozen.schedule.config.num_train_timesteps
    time = torch.randint(steps, (len(target),), generator=generator).to(target.device)
    noisy = frozen.schedule.add_noise(target, noise, time)
    predicted = unet(torch.cat([noisy, image], dim=1), time, text).sample
    error = predicted.float() - wanted(frozen.schedule, target, noise, time).float()
    return torch.as_tensor(error.square().mean())


def wanted(schedule: DDPMScheduler, target: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The noise, or v, or the target itself."""
    kind = schedule.config.prediction_type
    if kind == "v_prediction":
        return torch.as_tensor(schedule.get_velocity(target, noise, time))
    return {"epsilon": noise, "sample": target}[kind]


def finetune(model: Path, pairs: Path, out: Path, plan: FinetunePlan, *, resume: bool, precision: str) -> None:
    """Trains the UNet for ``plan.steps`` and writes the whole pipeline to ``out/model``."""
    set_seed(plan.seed)
    accelerator = Accelerator(mixed_precision=precision)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(model, dtype=torch.float32)
    frozen = _frozen(pipeline, accelerator)
    optimiser = torch.optim.AdamW(pipeline.unet.parameters(), plan.learning_rate)
    unet, optimiser = accelerator.prepare(pipeline.unet, optimiser)
    done = _resume(accelerator, out) if resume else 0
    for step, batch in enumerate(_batches(accelerator, pairs, pipeline.tokenizer, plan, done), start=done):
        generator = torch.Generator().manual_seed((plan.seed << 32) + step * 997 + accelerator.process_index)
        with accelerator.autocast():
            loss = finetune_loss(unet, frozen, batch, generator)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % 500 == 0 or step + 1 == plan.steps:
            _save(accelerator, out, step + 1)
            accelerator.print(f"step {step + 1} loss {float(loss.detach()):.5f}")
    if accelerator.is_main_process:
        pipeline.unet = accelerator.unwrap_model(unet)
        pipeline.save_pretrained(out / "model", safe_serialization=True)


def _frozen(pipeline: StableDiffusionInstructPix2PixPipeline, accelerator: Accelerator) -> Frozen:
    for module in (pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).to(accelerator.device)
    return Frozen(pipeline.vae, pipeline.text_encoder, DDPMScheduler.from_config(pipeline.scheduler.config))


def _batches(accelerator: Accelerator, folder: Path, tokenizer: Any, plan: FinetunePlan, done: int) -> DataLoader[Item]:
    """The batches from step ``done`` on; every process gets its own part of each."""
    total = plan.batch * accelerator.num_processes
    items = EquivariantPairs(folder, tokenizer, plan, plan.steps * total)
    rest = Subset(items, range(done * total, plan.steps * total))
    workers = 4 if accelerator.device.type == "cuda" else 0
    loader: DataLoader[Item] = DataLoader(rest, batch_size=plan.batch, num_workers=workers)
    prepared: DataLoader[Item] = accelerator.prepare_data_loader(loader)
    return prepared


def _save(accelerator: Accelerator, out: Path, step: int) -> None:
    """The state under its own name; ``state.json`` names the newest whole one."""
    accelerator.save_state(str(out / f"state_{step}"), safe_serialization=True)
    if accelerator.is_main_process:
        save_json(out / "state.json", {"step": step})


def _resume(accelerator: Accelerator, out: Path) -> int:
    """Loads the newest state; the number of steps already done."""
    if not (out / "state.json").exists():
        return 0
    step = int(read_json(out / "state.json")["step"])
    accelerator.load_state(str(out / f"state_{step}"))
    return step


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains."""
    default = FinetunePlan()
    parser = argparse.ArgumentParser(prog="python -m training.finetune_equivariant", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch", type=int, default=default.batch, help="for each device")
    parser.add_argument("--size", type=int, default=default.size, help="side of the training squares in pixels")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--resume", action="store_true", help="continue from the newest state in --out")
    options = parser.parse_args(arguments)
    plan = FinetunePlan(options.steps, options.batch, options.size, options.learning_rate, default.drop, options.seed)
    finetune(options.model, options.pairs, options.out, plan, resume=options.resume, precision=options.precision)


if __name__ == "__main__":
    main()
