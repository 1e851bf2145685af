"""The generator's stages between frames: ``python -m training.frame_stages --out DIR --stage super_resolution``.

``super_resolution`` learns to double the size of single pictures, then (``super_resolution_video``) its layers over
time learn from windows of clips, while all else stays: left out, they leave the picture model. ``interpolation`` learns
the frames between two others. They learn from moving scenes, textures and photographs, shown at any time exactly.
Each stage stops at its planned steps or after ``--minutes``, and goes on when it is called again.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fairy.export.bases.video_unet import VideoUNet
from training.checkpoint import Trainee, load_average
from training.compute import Compute
from training.generator import TRAIN_STEPS, alphas_cumprod, is_temporal
from training.optimisers import adamw
from training.pictures import Bytes, to_bytes
from training.random_scenes import random_scene
from training.scenes import render

STREAM = 63  # of random numbers
SEED = 30_000_000  # of the first scene
SIDE, CROP = 160, 128  # pixels of the clips that are kept, and of those that are learned from
LONGEST = 8  # frames of a kept clip
SPANS = (1.0, 9.0)  # of time between a clip's first and last frame, in frames of the scenes' own clock
SCALE = 2
BLIND = 0.8  # share of samples that start from noise alone, as sampling in one step does
STAGES = ("super_resolution", "super_resolution_video", "interpolation")


@dataclass(frozen=True, slots=True)
class FramePlan:
    """What a stage does; ``frames``: of a window at most."""

    steps: int
    clips: int
    frames: int
    learning_rate: float
    save_every: int = 200


PLANS = {
    "super_resolution": FramePlan(steps=3000, clips=8, frames=1, learning_rate=1e-3),
    "super_resolution_video": FramePlan(steps=800, clips=2, frames=4, learning_rate=1e-3),
    "interpolation": FramePlan(steps=4000, clips=4, frames=5, learning_rate=1e-3),
}


def build_super_resolution() -> VideoUNet:
    """Twice the size in one step from noise, every place normed by itself."""
    return VideoUNet(
        condition_channels=3,
        patch_size=2 * SCALE,
        block_out_channels=(48, 64),
        layers_per_block=1,
        attention=(False, False),
        norm_num_groups=0,
        adds_to_condition=True,
    )


def build_interpolation() -> VideoUNet:
    """The frames between two others, without noise, in one step; 2.6 million parameters."""
    return VideoUNet(
        in_channels=0,
        condition_channels=7,
        patch_size=4,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        attention=(False, False, False),
        norm_num_groups=0,
        warps=True,
    )


def clip_pool(cache: Path, count: int) -> Bytes:
    """So many clips uint8 [count, 8, 160, 160, 3] of scenes at equal times, kept in the file ``cache``."""
    if cache.exists() and len(pool := np.load(cache, mmap_mode="r")) == count:
        return np.asarray(pool)
    clips = np.empty((count, LONGEST, SIDE, SIDE, 3), np.uint8)
    for index in range(count):
        rng = np.random.default_rng((STREAM, index))
        scene = random_scene(SEED + index, SIDE, SIDE, photos=0.7)
        times = np.linspace(0, rng.uniform(*SPANS), LONGEST)
        clips[index] = [to_bytes(render(scene, t).image) for t in times]
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, clips)
    return clips


def cut(pool: Bytes, plan: FramePlan, rng: np.random.Generator) -> torch.Tensor:
    """Clips [B, 3, F, 128, 128] in -1 to 1: cut out, mirrored and turned at random, forwards or backwards."""
    frames = int(rng.integers(3, plan.frames + 1)) if plan.frames > 2 else plan.frames
    taken = []
    for _ in range(plan.clips):
        clip = pool[int(rng.integers(len(pool)))]
        first = int(rng.integers(LONGEST - frames + 1))
        top, left = rng.integers(SIDE - CROP + 1, size=2)
        part = clip[first : first + frames, top : top + CROP, left : left + CROP]
        part = np.rot90(part, int(rng.integers(4)), axes=(1, 2))[:, :, :: int(rng.choice((1, -1)))]
        taken.append(part[:: int(rng.choice((1, -1)))])
    return torch.from_numpy(np.stack(taken)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def enlarged(clips_BCFHW: torch.Tensor) -> torch.Tensor:
    """The clips halved and doubled again, bicubic: what super-resolution begins with."""
    flat = clips_BCFHW.transpose(1, 2).flatten(0, 1)
    small = F.interpolate(flat, scale_factor=1 / SCALE, mode="bicubic", antialias=True).clamp(-1, 1)
    small = ((small + 1) * 127.5).round() / 127.5 - 1
    large = F.interpolate(small, scale_factor=float(SCALE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return large.unflatten(0, (len(clips_BCFHW), -1)).transpose(1, 2)


def between(clips_BCFHW: torch.Tensor) -> torch.Tensor:
    """The condition of interpolation, [B, 7, F, H, W]: both outer frames beside every frame, and its place (0 to 1)."""
    b, _, frames, height, width = clips_BCFHW.shape
    ends = torch.cat([clips_BCFHW[:, :, :1], clips_BCFHW[:, :, -1:]], dim=1).expand(-1, -1, frames, -1, -1)
    places = torch.linspace(0, 1, frames)[None, None, :, None, None].expand(b, 1, -1, height, width)
    return torch.cat([ends, places], dim=1)


def loss_of(stage: str, model: nn.Module, clips_BCFHW: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mean absolute error, a little rounded at 0, of the predicted frames."""
    b = len(clips_BCFHW)
    if stage == "interpolation":
        made = model(None, torch.zeros(b), fps=torch.zeros(b), condition=between(clips_BCFHW))
        return _error(made[:, :, 1:-1].float(), clips_BCFHW[:, :, 1:-1])
    alphas = alphas_cumprod()
    times = np.where(rng.random(b) < BLIND, TRAIN_STEPS - 1, rng.integers(TRAIN_STEPS, size=b))
    shape = (b, clips_BCFHW.shape[1], 1, *clips_BCFHW.shape[3:])  # the same noise for all frames
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).expand_as(clips_BCFHW)
    alpha = alphas[torch.from_numpy(times)][:, None, None, None, None]
    noisy = alpha.sqrt() * clips_BCFHW + (1 - alpha).sqrt() * noise
    made = model(noisy, torch.from_numpy(times), fps=torch.zeros(b), condition=enlarged(clips_BCFHW))
    return _error(made.float(), clips_BCFHW)


def _error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return torch.sqrt((made - wanted).square() + 1e-5).mean()


def train(
    stage: str, plan: FramePlan, out: Path, pool: Bytes, compute: Compute, *, seed: int, deadline: float
) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    torch.manual_seed(seed)
    build: Callable[[], VideoUNet] = build_interpolation if stage == "interpolation" else build_super_resolution
    model, path = build().to(memory_format=torch.channels_last), out / f"{stage}.safetensors"
    if stage == "super_resolution_video":
        if not path.exists():
            load_average(model, out / "super_resolution.safetensors")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_temporal(name))

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((STREAM, seed, step))
        clips = cut(pool, plan, rng)
        with compute.autocast():
            return loss_of(stage, model, clips, rng)

    trainee = Trainee.start(model, adamw(model, plan.learning_rate))
    return trainee.run(
        path,
        loss_at,
        steps=plan.steps,
        peak=plan.learning_rate,
        deadline=deadline,
        save_every=plan.save_every,
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the stages it asks for."""
    parser = argparse.ArgumentParser(prog="python -m training.frame_stages", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for clips and checkpoints")
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    parser.add_argument("--minutes", type=float, default=600.0, help="at most, for each stage")
    parser.add_argument("--steps", type=int, help="of the stage, instead of the plan's")
    parser.add_argument("--clips", type=int, default=700, help="that are drawn to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pool = clip_pool(options.out / "clips.npy", options.clips)
    for stage in (options.stage,) if options.stage else STAGES:
        plan = replace(PLANS[stage], steps=options.steps or PLANS[stage].steps)
        deadline = time.monotonic() + 60 * options.minutes
        train(stage, plan, options.out, pool, Compute.best(), seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    main()
