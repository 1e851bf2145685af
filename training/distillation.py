"""Fewer steps and one branch: ``python -m training.distillation --model FOLDER --out DIR`` distils a base stage.

First a student learns what its teacher predicts with guidance, told the scale (Meng et al., arXiv 2210.03142); then,
again and again, a student takes one DDIM step where its teacher takes two (Salimans & Ho, arXiv 2202.00512), 32 to 16,
8 and 4, each starting from the one before. ``--to FOLDER`` writes the generator with the distilled stage. Every part
goes on where it was stopped; checkpoints and ``record.json`` lie in DIR.
"""

import argparse
import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from fairy.export.bases.video_unet import VideoUNet
from training.checkpoint import Trainee, load_average, read_json, save_json
from training.compute import Compute
from training.generator import PLANS, TRAIN_STEPS, Batch, alphas_cumprod, build_tokenizer, draw_batch
from training.optimisers import adamw
from training.package import replaced
from training.text import token_ids

SCALES = (1.0, 6.0)  # of guidance that the student is taught
HALVINGS = (16, 8, 4)  # steps of the students, the first of a teacher with twice as many
MOST_WEIGHT = 5.0  # of an error at little noise, as in training.generator
Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy clips [B, ...] and times [B] to the clean ones that a network predicts."""


@dataclass(frozen=True, slots=True)
class Levels:
    """ᾱ of every trained time [1000], and 1 beyond the first of them."""

    alphas: Tensor

    def at(self, time_B: Tensor, like: Tensor) -> Tensor:
        """ᾱ at whole times, which may be negative: then all is signal; shaped to be multiplied with `like`."""
        found = torch.where(time_B < 0, torch.ones_like(self.alphas[time_B]), self.alphas[time_B.clamp(min=0)])
        return found.view(-1, *(1,) * (like.dim() - 1)).to(like)


def ddim(z: Tensor, x: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """From one level to another, given the clean clip: √ᾱ'·x + √(1 − ᾱ')·ε."""
    epsilon = (z - now.sqrt() * x) / (1 - now).sqrt()
    return then.sqrt() * x + (1 - then).sqrt() * epsilon


def two_step_target(teacher: Predict, levels: Levels, z: Tensor, time_B: Tensor, stride: int) -> Tensor:
    """The clean clip that takes one DDIM step of `stride` times to where the teacher's two halves of it lead.

    With σ' / σ the ratio of the noise that is left: x = (z'' − (σ''/σ)·z) / (α'' − (σ''/σ)·α). Where the second half
    ends without noise that is the teacher's own prediction there.
    """
    now = levels.at(time_B, z)
    middle, then = levels.at(time_B - stride // 2, z), levels.at(time_B - stride, z)
    half = ddim(z, teacher(z, time_B), now, middle)
    last = teacher(half, (time_B - stride // 2).clamp(min=0))
    end = ddim(half, last, middle, then)
    ratio = ((1 - then) / (1 - now)).sqrt()
    target: Tensor = (end - ratio * z) / (then.sqrt() - ratio * now.sqrt())
    return target


class Distilled(nn.Module):
    """A student; the text encoder is the teacher's and does not learn."""

    def __init__(self, unet: VideoUNet, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder.requires_grad_(False)


def student_of(unet: VideoUNet) -> VideoUNet:
    """The network with the same weights that is told the scale of guidance, which says nothing to it yet."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    made: VideoUNet = VideoUNet(**{**config, "guidance_embedding": True})
    missing, unexpected = made.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("guidance.") for name in missing)
    return made


def times_of(steps: int) -> Tensor:
    """The times of sampling in so many steps, as the schedule spaces them, [steps]."""
    return torch.tensor([round(TRAIN_STEPS * (i + 1) / steps) - 1 for i in range(steps)])


def guided(unet: VideoUNet, text: Tensor, none: Tensor, fps: Tensor, scale: Tensor) -> Predict:
    """What a network predicts with guidance: two calls, or one of a network that is told the scale."""
    told = bool(unet.config["guidance_embedding"])

    def predict(z: Tensor, time_B: Tensor) -> Tensor:
        if told:
            return torch.as_tensor(unet(z, time_B.float(), text, fps=fps, guidance=scale)).float()
        both = torch.cat([none, text])
        out = unet(torch.cat([z, z]), time_B.float().repeat(2), both, fps=fps.repeat(2)).float()
        without, with_text = out.chunk(2)
        return torch.as_tensor(without + scale.view(-1, 1, 1, 1, 1) * (with_text - without))

    return predict


@dataclass(frozen=True, slots=True)
class DistilPlan:
    """Steps of training of one part, clips a batch; `halving`: the student's sampling steps, None = of guidance."""

    steps: int
    clips: int = 2
    learning_rate: float = 2e-4
    halving: int | None = None
    save_every: int = 100


def loss_of(
    plan: DistilPlan, student: Distilled, teacher: VideoUNet, batch: Batch, empty_1L: Tensor, levels: Levels
) -> Tensor:
    """The squared error of the student's clean clips to the teacher's, weighed as in training.generator.

    `empty_1L`: the tokens of no caption.
    """
    generator = torch.Generator().manual_seed(int(batch.time.sum()) + 1000 * int(batch.tokens.sum()))
    scale = torch.empty(len(batch.clips)).uniform_(*SCALES, generator=generator).to(batch.clips.device)
    time_B = batch.time
    if plan.halving is not None:
        drawn = torch.randint(plan.halving, batch.time.shape, generator=generator)
        time_B = times_of(plan.halving)[drawn].to(batch.time.device)
    with torch.no_grad():
        text = student.text_encoder(batch.tokens).last_hidden_state
        none = student.text_encoder(empty_1L).last_hidden_state.expand_as(text)
        now = levels.at(time_B, batch.clips)
        z = now.sqrt() * batch.clips + (1 - now).sqrt() * batch.noise
        predict = guided(teacher, text, none, batch.fps, scale)
        if plan.halving is None:
            target = predict(z, time_B)
        else:
            target = two_step_target(predict, levels, z, time_B, TRAIN_STEPS // plan.halving)
    made = guided(student.unet, text, none, batch.fps, scale)(z, time_B)
    error = (made - target).square() * batch.weights / (1 - now).clamp(min=1 / MOST_WEIGHT)
    return error.sum() / batch.weights.expand_as(error).sum()


def distil(
    plan: DistilPlan,
    student: Distilled,
    teacher: VideoUNet,
    path: Path,
    compute: Compute,
    *,
    seed: int,
    deadline: float,
) -> Trainee:
    """Trains a student until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    tokenizer, levels = build_tokenizer(), Levels(alphas_cumprod().to(compute.device))
    student.to(compute.device).unet.to(memory_format=torch.channels_last)
    teacher.to(compute.device).eval().requires_grad_(False)
    empty = token_ids(tokenizer, [""]).to(compute.device)
    drawn = replace(PLANS["captioned"], clips=plan.clips, drop=0.0)

    def loss_at(step: int) -> Tensor:
        batch = draw_batch(drawn, tokenizer, seed, step).to(compute.device)
        with compute.autocast():
            return loss_of(plan, student, teacher, batch, empty, levels)

    trainee = Trainee.start(student, adamw(student, plan.learning_rate))
    return trainee.run(
        path,
        loss_at,
        steps=plan.steps,
        peak=plan.learning_rate,
        deadline=deadline,
        save_every=plan.save_every,
    )


def run(options: argparse.Namespace) -> VideoUNet:
    """All parts one after the other; the last student. Stops where the minutes are over."""
    encoder = CLIPTextModel.from_pretrained(options.model / "text_encoder", dtype=torch.float32)
    teacher = VideoUNet.from_pretrained(options.model / "base", torch_dtype=torch.float32)
    student = Distilled(student_of(teacher), encoder)
    deadline, record = time.monotonic() + 60 * options.minutes, options.out / "record.json"
    halvings = [steps for steps in HALVINGS if steps >= options.steps]
    for part in (None, *halvings):
        plan = DistilPlan(options.training_steps, halving=part)
        name = "guidance" if part is None else f"{part}_steps"
        path = options.out / f"{name}.safetensors"
        trainee = distil(plan, student, teacher, path, Compute.best(), seed=options.seed, deadline=deadline)
        told = read_json(record) if record.exists() else {}
        save_json(record, told | {name: {"steps": trainee.step, "loss_every_100_steps": trainee.losses}})
        if trainee.step < plan.steps:
            raise SystemExit(f"{name} has {trainee.step} of {plan.steps} steps; call again to go on")
        load_average(student, path)
        teacher = copy.deepcopy(student.unet)
    return student.unet


def write_distilled(model: Path, unet: VideoUNet, steps: int, to: Path) -> None:
    """The generator in ``model`` with a distilled base stage, in float16."""
    with replaced(to) as fresh:
        shutil.copytree(model, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns("base", "README.md"))
        unet.half().save_pretrained(fresh / "base", safe_serialization=True)
        cascade: dict[str, Any] = read_json(model / "cascade.json")
        cascade["stages"][0] |= {"num_inference_steps": steps}
        save_json(fresh / "cascade.json", cascade)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and distils."""
    parser = argparse.ArgumentParser(prog="python -m training.distillation", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the teacher: a generator's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and record")
    parser.add_argument("--to", type=Path, help="write the generator with the distilled base stage there")
    parser.add_argument("--steps", type=int, choices=HALVINGS, default=HALVINGS[-1], help="that sampling then takes")
    parser.add_argument("--training-steps", type=int, default=600, help="of every part")
    parser.add_argument("--minutes", type=float, default=600.0, help="at most, for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    unet = run(options)
    if options.to:
        write_distilled(options.model, unet, options.steps, options.to)


if __name__ == "__main__":
    main()
