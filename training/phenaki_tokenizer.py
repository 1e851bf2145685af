"""The video tokenizer of the embedded Phenaki: ``python -m training.phenaki_tokenizer --out DIR``.

It learns to bring clips of stories (training.story_clips) back from their codes; the loss is the squared error of the
pixels, which counts more where something stands out from the background: without that, outlines stay soft. Stops at its
planned steps or after ``--minutes`` and goes on when it is called again; DIR gets tokenizer.safetensors.
``--evaluate`` measures it on held-out stories instead: dB, and how many codes are used.
``--per-frame`` does the same with what it is compared with: a tokenizer of single frames with as many codes a second.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fairy.export.bases.causal_tokenizer import CausalVideoTokenizer
from training.checkpoint import Trainee, load_average, save_json
from training.compute import Compute
from training.optimisers import muon_and_adamw
from training.story_clips import random_story, render_story
from training.textures import Array

STREAM = 72  # of random numbers
HELD_OUT = 9_000_000_000_000  # seeds of stories from here on are not trained on
SCENES = (9, 8, 8)  # frames of a story's scenes
STANDS_OUT = 0.2  # from the background, in the largest channel, of values in -1 to 1
FILE, PER_FRAME = "tokenizer.safetensors", "tokenizer_per_frame.safetensors"


@dataclass(frozen=True, slots=True)
class TokenizerPlan:
    """What the training does; `frames`: of a clip, 1 + 2·m, at any time of its story; `per_frame`: each by itself."""

    steps: int = 6000
    clips: int = 4
    frames: int = 13
    learning_rate: float = 1e-3
    thing_weight: float = 4.0
    per_frame: bool = False
    save_every: int = 100


def build_tokenizer(*, per_frame: bool = False) -> CausalVideoTokenizer:
    """64x64 pixels, one of 1000 codes for 8x8 of them in two frames, or for 8x16 in one; fresh weights."""
    return CausalVideoTokenizer(patch_size=(8, 16), temporal_window=1) if per_frame else CausalVideoTokenizer()


def as_pictures(video: torch.Tensor) -> torch.Tensor:
    """Videos [B, 3, F, H, W] as B·F videos of one frame."""
    return video.transpose(1, 2).flatten(0, 1)[:, :, None]


def draw_clips(plan: TokenizerPlan, seed: int, step: int) -> torch.Tensor:
    """The clips of one step, float32 [clips, 3, frames, side, side] in -1 to 1; a function of (seed, step)."""
    rng = np.random.default_rng((STREAM, seed, step))
    clips = []
    for _ in range(plan.clips):
        frames = render_story(random_story(int(rng.integers(1 << 40)), SCENES))
        first = int(rng.integers(len(frames) - plan.frames + 1))
        clips.append(frames[first : first + plan.frames])
    return to_video(clips)


def to_video(clips: list[Array]) -> torch.Tensor:
    """Clips [F, H, W, 3] in 0 to 1 as one tensor [B, 3, F, H, W] in -1 to 1."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1


def loss_of(made: torch.Tensor, video: torch.Tensor, thing_weight: float) -> torch.Tensor:
    """Mean squared error of videos [B, 3, F, H, W], weighted where they differ from what their rows mostly show."""
    ground = video.median(dim=4, keepdim=True).values
    weight = 1 + (thing_weight - 1) * ((video - ground).abs().amax(dim=1, keepdim=True) > STANDS_OUT)
    return (weight * (made - video).square()).mean() / weight.mean()


def train(plan: TokenizerPlan, path: Path, compute: Compute, *, seed: int, deadline: float) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    torch.manual_seed(seed)
    model = build_tokenizer(per_frame=plan.per_frame).to(compute.device)

    def loss_at(step: int) -> torch.Tensor:
        video = draw_clips(plan, seed, step).to(compute.device)
        video = as_pictures(video) if plan.per_frame else video
        with compute.autocast():
            made, _ = model(video)
            return loss_of(made.float(), video, plan.thing_weight)

    trainee = Trainee.start(model, muon_and_adamw(model, plan.learning_rate))
    return trainee.run(
        path,
        loss_at,
        steps=plan.steps,
        peak=plan.learning_rate,
        deadline=deadline,
        save_every=plan.save_every,
        decay=0.998,
    )


@torch.inference_mode()
def evaluate(model: CausalVideoTokenizer, stories: int, frames: int, *, per_frame: bool = False) -> dict[str, float]:
    """Of held-out stories: dB of all pixels (by the mean error, and the mean of every clip's), and the codes' use."""
    errors, used = [], torch.zeros(model.num_codes)
    for i in range(stories):
        video = to_video([render_story(random_story(HELD_OUT + i, SCENES, unseen=i % 2 == 1))[:frames]])
        video = as_pictures(video) if per_frame else video
        made, codes = model(video)
        levels = 127.5 * (made.clamp(-1, 1) - video)
        errors.append(float(levels.square().mean()))
        used += torch.bincount(codes.flatten(), minlength=len(used))
    share = used / used.sum()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    return {
        "dB": decibels(float(np.mean(errors))),
        "dB, mean of clips": float(np.mean([decibels(error) for error in errors])),
        "codes used": int((used > 0).sum()),
        "codes": len(used),
        "perplexity": float(entropy.exp()),
    }


def decibels(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error in levels of 255."""
    return float(10 * np.log10(255**2 / error))


def load_tokenizer(path: Path, *, per_frame: bool = False) -> CausalVideoTokenizer:
    """The averaged weights of a checkpoint, ready to be used."""
    model = build_tokenizer(per_frame=per_frame)
    load_average(model, path)
    return model.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains, or measures."""
    parser = argparse.ArgumentParser(prog="python -m training.phenaki_tokenizer", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=600.0, help="at most")
    parser.add_argument("--steps", type=int, default=TokenizerPlan().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", type=int, metavar="STORIES", help="measure on so many held-out stories and stop")
    parser.add_argument("--per-frame", action="store_true", help="the tokenizer of single frames")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    path = options.out / (PER_FRAME if options.per_frame else FILE)
    if options.evaluate:
        model = load_tokenizer(path, per_frame=options.per_frame)
        figures = evaluate(model, options.evaluate, sum(SCENES), per_frame=options.per_frame)
        save_json(path.with_suffix(".json"), figures)
        print(figures)
        return
    plan = replace(TokenizerPlan(), steps=options.steps, per_frame=options.per_frame)
    train(plan, path, Compute.best(), seed=options.seed, deadline=time.monotonic() + 60 * options.minutes)


if __name__ == "__main__":
    main()
