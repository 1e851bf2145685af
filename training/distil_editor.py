"""Fewer steps for a picture editor: ``python -m training.distil_editor --model M --pictures DIR --instructions FILE``.

The teacher is any InstructPix2Pix-type checkpoint; what comes of it needs no guidance (three branches become
one: the two scales are built in) and a few DDIM steps. The teacher edits the pictures as the instructions, one a line,
ask; a student learns what it predicts with guidance; then students of 16, 8 and 4 steps take one DDIM step where their
teacher takes two (`training.distillation`). Every part goes on where it was stopped. ``--to FOLDER`` writes the student
as a checkpoint whose fairy.json recommends its steps.
"""

import argparse
import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.export.loading import token_ids
from fairy.runtime import Editor, EditParams
from fairy.runtime.denoise.guidance import branch_image, branch_text, guide, make_guidance
from fairy.runtime.denoise.sampler import make_schedule
from training.checkpoint import Trainee, load_average, read_json, save_json, save_tensors
from training.compute import Compute
from training.distillation import HALVINGS, Levels, Predict, two_step_target
from training.optimisers import adamw
from training.package import replaced

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MOST_WEIGHT = 5.0  # of an error at little noise


@dataclass(frozen=True, slots=True)
class Teaching:
    """How the teacher edits, and how long a student learns.

    Attributes:
        teacher_steps, guidance_scale, image_guidance_scale, long_side: of the teacher's edits.
        training_steps, batch, learning_rate: of every part.
        minutes: for all parts, at most.
    """

    teacher_steps: int = 20
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    long_side: int = 512
    training_steps: int = 2000
    batch: int = 4
    learning_rate: float = 1e-5
    seed: int = 0
    minutes: float = 600.0


@dataclass(frozen=True, slots=True)
class Network:
    """An editor's UNet and what it is trained for: the clean latents that its output says."""

    unet: nn.Module
    levels: Levels
    prediction_type: str

    def clean(self, z: Tensor, time_B: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """[B, c, h, w] of noisy latents and times, image latents and text [B, L, C] to the clean ones."""
        out = self.unet(torch.cat([z.to(image.dtype), image], dim=1), time_B, text, return_dict=False)[0].float()
        alpha = self.levels.at(time_B, z)
        if self.prediction_type == "epsilon":
            return (z - (1 - alpha).sqrt() * out) / alpha.sqrt()
        return alpha.sqrt() * z - (1 - alpha).sqrt() * out if self.prediction_type == "v_prediction" else out


def make_edits(teacher: str | Path, pictures: Path, instructions: list[str], out: Path, teaching: Teaching) -> None:
    """Writes image latents, edited latents and text features of every picture and instruction."""
    files = sorted(p for p in pictures.iterdir() if p.suffix.lower() in ENDINGS)
    if not files or not instructions:
        raise SystemExit(f"{pictures} must hold pictures ({', '.join(ENDINGS)}), and the file instructions, one a line")
    checkpoint = load_checkpoint(teacher)
    with Editor.from_pretrained(teacher) as editor:
        for number, (file, text) in enumerate(product(files, instructions)):
            path = out / "edits" / f"{number:06d}.safetensors"
            if path.exists():
                continue
            frame = np.asarray(Image.open(file).convert("RGB"))[None]
            params = EditParams(
                text,
                anchors=0,
                seed=teaching.seed + number,
                num_inference_steps=teaching.teacher_steps,
                guidance_scale=teaching.guidance_scale,
                image_guidance_scale=teaching.image_guidance_scale,
                long_side=teaching.long_side,
            )
            edited = editor.edit(frame, params).frames
            height, width = edited.shape[1:3]
            source = np.asarray(Image.fromarray(frame[0]).resize((width, height), Image.Resampling.BICUBIC))[None]
            image, clean = (encode(checkpoint, pixels) for pixels in (source, edited))
            features = encode_text(checkpoint, text)
            tensors = {"image": image, "clean": clean * checkpoint.vae.config.scaling_factor, "text": features}
            save_tensors(path, tensors, {"instruction": text, "picture": file.name})


@torch.inference_mode()
def encode(checkpoint: Checkpoint, frames_BHWC: Any) -> Tensor:
    """The mode of the autoencoder, not scaled, of pictures cut to sides that the UNet can halve."""
    unit = checkpoint.size_multiple
    height, width = (side - side % unit for side in frames_BHWC.shape[1:3])
    if not height or not width:
        raise SystemExit(f"pictures must have sides of at least {unit} pixels after scaling")
    pixels = torch.from_numpy(np.ascontiguousarray(frames_BHWC[:, :height, :width])).permute(0, 3, 1, 2).float()
    latents: Tensor = checkpoint.vae.encode(pixels / 127.5 - 1).latent_dist.mode()
    return latents


@torch.inference_mode()
def encode_text(checkpoint: Checkpoint, text: str) -> Tensor:
    """Features of an instruction, [1, tokens, channels]."""
    features: Tensor = checkpoint.text_encoder(token_ids(checkpoint.tokenizer, [text]))[0]
    return features


def guided(network: Network, image: Tensor, text: Tensor, none: Tensor, teaching: Teaching) -> Predict:
    """What the teacher predicts with its two scales, branch by branch as the runtime guides."""
    guidance = make_guidance(teaching.guidance_scale, teaching.image_guidance_scale)

    def predict(z: Tensor, time_B: Tensor) -> Tensor:
        pictures = branch_image(guidance, image)
        texts = [branch_text(guidance, each, none[0]) for each in text]
        outputs = []
        for branch in range(guidance.groups):
            features = torch.stack([per_sample[branch] for per_sample in texts])
            outputs.append(network.clean(z, time_B, pictures[branch], features))
        return guide(guidance, torch.stack(outputs))

    return predict


def batches(out: Path, teaching: Teaching, step: int) -> dict[str, Tensor]:
    """The batch of one step, a function of (seed, step) and the edits that are there; sizes do not mix."""
    files = sorted((out / "edits").glob("*.safetensors"))
    rng = np.random.default_rng((teaching.seed, step))
    chosen = [load_file(files[int(i)]) for i in rng.integers(len(files), size=teaching.batch)]
    alike = [edit for edit in chosen if edit["clean"].shape == chosen[0]["clean"].shape]
    made = {name: torch.cat([edit[name] for edit in alike]).float() for name in ("image", "clean", "text")}
    made["noise"] = torch.from_numpy(rng.standard_normal(made["clean"].shape, dtype=np.float32))
    made["share"] = torch.from_numpy(rng.random(len(alike)))
    return made


def loss_of(student: Network, predict: Predict, batch: dict[str, Tensor], sampling: int | None) -> Tensor:
    """The student's squared error to the guided teacher, or to its two steps; `sampling`: the student's steps."""
    levels = student.levels
    count = len(levels.alphas)
    if sampling is None:
        time_B = (batch["share"] * count).long()
    else:
        config = {"_class_name": "DDIMScheduler", "num_train_timesteps": count, "timestep_spacing": "trailing"}
        times = torch.tensor(make_schedule("ddim", config, sampling).timesteps, dtype=torch.long)
        time_B = times[(batch["share"] * sampling).long()].to(batch["clean"].device)
    now = levels.at(time_B, batch["clean"])
    z = now.sqrt() * batch["clean"] + (1 - now).sqrt() * batch["noise"]
    with torch.no_grad():
        target = (
            predict(z, time_B) if sampling is None else two_step_target(predict, levels, z, time_B, count // sampling)
        )
    error = (student.clean(z, time_B, batch["image"], batch["text"]) - target).square()
    weight = 1 / (1 - now).clamp(min=1 / MOST_WEIGHT)  # as an error of v weighs it, up to a limit
    if student.prediction_type == "epsilon":  # and takes back the division by α where all is noise
        weight = now * weight
    return (weight * error).mean()


def train(
    sampling: int | None, student: Network, predictor: Callable[[dict[str, Tensor]], Predict], out: Path,
    teaching: Teaching, deadline: float,
) -> Trainee:  # fmt: skip
    """One part, until its steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    compute = Compute.best()
    name = "guidance" if sampling is None else f"{sampling}_steps"
    path = out / f"{name}.safetensors"

    def loss_at(step: int) -> Tensor:
        batch = {key: value.to(compute.device) for key, value in batches(out, teaching, step).items()}
        with compute.autocast():
            return loss_of(student, predictor(batch), batch, sampling)

    trainee = Trainee.start(student.unet, adamw(student.unet, teaching.learning_rate))
    trainee.run(path, loss_at, steps=teaching.training_steps, peak=teaching.learning_rate, deadline=deadline)
    record = out / "record.json"
    told = read_json(record) if record.exists() else {}
    save_json(record, told | {name: {"steps": trainee.step, "loss_every_100_steps": trainee.losses}})
    if trainee.step < teaching.training_steps:
        raise SystemExit(f"{name} has {trainee.step} of {teaching.training_steps} steps; call again to go on")
    load_average(student.unet, path)
    return trainee


def distil(teacher: str | Path, out: Path, teaching: Teaching, steps: int) -> nn.Module:
    """All parts one after the other; the last student's UNet."""
    checkpoint, device = load_checkpoint(teacher), Compute.best().device
    config = checkpoint.scheduler_config
    levels = Levels(trained_alphas(config).to(device))
    kind = str(config.get("prediction_type", "epsilon"))
    none = encode_text(checkpoint, "").to(device)
    unet = checkpoint.unet.to(device)
    student = Network(copy.deepcopy(unet).requires_grad_(True), levels, kind)
    first = Network(unet, levels, kind)

    def with_guidance(batch: dict[str, Tensor]) -> Predict:
        return guided(first, batch["image"], batch["text"], none, teaching)

    deadline = time.monotonic() + 60 * teaching.minutes
    train(None, student, with_guidance, out, teaching, deadline)
    for sampling in (number for number in HALVINGS if number >= steps):
        before = Network(copy.deepcopy(student.unet).requires_grad_(False), levels, kind)

        def of_student(batch: dict[str, Tensor], network: Network = before) -> Predict:
            return lambda z, time_B: network.clean(z, time_B, batch["image"], batch["text"])

        train(sampling, student, of_student, out, teaching, deadline)
    return student.unet


def trained_alphas(config: dict[str, Any]) -> Tensor:
    """ᾱ of every time that a checkpoint was trained at, by its own scheduler's configuration."""
    from diffusers import DDPMScheduler

    alphas: Tensor = DDPMScheduler.from_config(config).alphas_cumprod
    return alphas


def write_student(teacher: Path, unet: nn.Module, steps: int, to: Path) -> None:
    """The teacher's folder with the student's UNet in float16, and a fairy.json that recommends how it samples."""
    with replaced(to) as fresh:
        shutil.copytree(teacher, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns("unet", "README.md"))
        unet.half().save_pretrained(fresh / "unet", safe_serialization=True)
        path = teacher / "fairy.json"
        told: dict[str, Any] = read_json(path) if path.exists() else {}
        few = {"num_inference_steps": steps, "guidance_scale": 1.0, "image_guidance_scale": 1.0, "sampler": "ddim"}
        save_json(fresh / "fairy.json", told | few)
        scheduler = read_json(fresh / "scheduler" / "scheduler_config.json")
        save_json(fresh / "scheduler" / "scheduler_config.json", scheduler | {"timestep_spacing": "trailing"})


def instructions_of(file: Path) -> list[str]:
    """The lines of a file that are not empty."""
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and distils."""
    parser = argparse.ArgumentParser(prog="python -m training.distil_editor", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the teacher's folder, in diffusers' format")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures to edit")
    parser.add_argument("--instructions", type=Path, required=True, help="text file with an instruction a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for edits, checkpoints and record")
    parser.add_argument("--to", type=Path, help="write the student as a checkpoint there")
    parser.add_argument("--steps", type=int, choices=HALVINGS, default=HALVINGS[-1], help="that sampling then takes")
    for each in fields(Teaching):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default)
    options = parser.parse_args(arguments)
    teaching = Teaching(**{each.name: getattr(options, each.name) for each in fields(Teaching)})
    make_edits(options.model, options.pictures, instructions_of(options.instructions), options.out, teaching)
    unet = distil(options.model, options.out, teaching, options.steps)
    if options.to:
        write_student(options.model, unet, options.steps, options.to)


if __name__ == "__main__":
    main()
