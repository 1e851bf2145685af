"""The masked-token transformer of the embedded Phenaki: ``python -m training.phenaki --out DIR``.

It learns to fill in codes of a stretch of a story (training.story_clips) that were masked at random, from those left,
the codes before it, and the caption of its scene; the tokenizer (training.phenaki_tokenizer) lies in DIR and is frozen.
The text encoder begins as the embedded generator's and learns along. Stops at its planned steps or after ``--minutes``
and goes on when it is called again; DIR gets transformer.safetensors.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from fairy.export.bases.causal_tokenizer import BLOCK, CausalVideoTokenizer
from fairy.export.bases.masked_transformer import MaskedVideoTransformer
from fairy.runtime.models import embedded_generator
from training import phenaki_tokenizer
from training.checkpoint import Trainee
from training.compute import Compute
from training.generator import READING_WEIGHT, build_tokenizer
from training.optimisers import adamw
from training.phenaki_tokenizer import load_tokenizer, to_video
from training.story_clips import NOTHING, TOLD, labels, random_story, render_story
from training.text import WIDTH, token_ids

STREAM = 73  # of random numbers
FILE = "transformer.safetensors"
STARTS, START_SHARES = tuple(range(10)), (0.2, 0.15, 0.05, *[0.6 / 7] * 7)  # token frames before the new stretch
LENGTHS, LENGTH_SHARES = (4, 3, 2, 1), (0.7, 0.1, 0.1, 0.1)  # of the new stretch
IN_OPENING = 0.35  # share of the stretches that lie in the opening scene, where there is something before them
AT_CHANGE = 0.6  # share of the others that begin with their scene
LATE = 29  # blocks of frames that are left out, at most, so that long scenes are known, too …
LATE_FROM = 5  # … where so many token frames lie before the stretch


@dataclass(frozen=True, slots=True)
class PhenakiPlan:
    """What the training does; `drop`: share of the captions that are left out, for guidance to compare with."""

    steps: int = 20_000
    clips: int = 8
    learning_rate: float = 1e-3
    drop: float = 0.1
    save_every: int = 100


class TextToCodes(nn.Module):
    """The networks that are trained together, and a reader of the text's features that only helps them to learn.

    It names what a caption tells (see `training.generator`, where this was found to be needed).
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: CLIPTokenizer = build_tokenizer()
        where = embedded_generator() / "text_encoder"
        self.text_encoder = CLIPTextModel.from_pretrained(where, dtype=torch.float32).train()
        self.transformer = MaskedVideoTransformer(cross_attention_dim=WIDTH)
        self.reader = nn.Linear(WIDTH, sum(map(len, TOLD)))

    def forward(self, batch: "Batch") -> torch.Tensor:
        """Mean cross-entropy of the masked codes, and of what captions tell."""
        text_BLC = self.text_encoder(batch.tokens).last_hidden_state
        count = min(batch.start, int(self.transformer.config["max_frames_before"]))
        before, new = batch.codes[:, batch.start - count : batch.start], batch.codes[:, batch.start :]
        remembered = None
        if count:
            remembered = self.transformer.remember(before, text_BLC, is_start=count == batch.start)
        masked = torch.where(batch.is_masked, self.transformer.mask, new)
        logits = self.transformer(masked, text_BLC, remembered)
        loss = F.cross_entropy(logits[batch.is_masked].float(), new[batch.is_masked])
        return loss + READING_WEIGHT * self._reading_loss(text_BLC, batch.told)

    def _reading_loss(self, text_BLC: torch.Tensor, told_BK: torch.Tensor) -> torch.Tensor:
        logits = self.reader(text_BLC.mean(dim=1)).float().split([len(names) for names in TOLD], dim=1)
        parts = zip(logits, told_BK.T, strict=True)
        losses = [F.cross_entropy(part, told, reduction="sum") for part, told in parts]
        return torch.stack(losses).sum() / (told_BK != NOTHING).sum().clamp(min=1)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input.

    Attributes:
        codes: int64 [B, start + M, h, w]; the last M token frames are to be filled in, all of one scene.
        is_masked: bool [B, M, h, w]; tokens: of the scenes' captions [B, L]; told: what those tell [B, len(TOLD)].
    """

    codes: torch.Tensor
    start: int
    is_masked: torch.Tensor
    tokens: torch.Tensor
    told: torch.Tensor


def draw_batch(
    plan: PhenakiPlan, tokenizer: CausalVideoTokenizer, words: CLIPTokenizer, compute: Compute, seed: int, step: int
) -> Batch:
    """The batch of one step, a function of (seed, step) and the tokenizer."""
    rng = np.random.default_rng((STREAM, seed, step))
    start, length = int(rng.choice(STARTS, p=START_SHARES)), int(rng.choice(LENGTHS, p=LENGTH_SHARES))
    frames = 1 + BLOCK * (start + length - 1)
    clips, texts, told = [], [], []
    for _ in range(plan.clips):
        change = _change(rng, start)
        counts = [frames] if change is None else [1 + BLOCK * (change - 1), frames - 1 - BLOCK * (change - 1)]
        late = BLOCK * int(rng.integers(LATE + 1)) if start >= LATE_FROM else 0
        story = random_story(int(rng.integers(1 << 40)), [counts[0] + late, *counts[1:]])
        clips.append(render_story(story)[late:])
        is_told = rng.random() >= plan.drop
        texts.append(story.scenes[-1].caption if is_told else "")
        told.append(labels(story.scenes[-1]) if is_told else [NOTHING] * len(TOLD))
    with torch.inference_mode(), compute.autocast():
        codes, _ = tokenizer.encode(to_video(clips).to(compute.device))
    is_masked = _masks(rng, (plan.clips, length, *tokenizer.grid))
    return Batch(
        codes.clone(), start, is_masked.to(codes.device), token_ids(words, texts).to(codes.device),
        torch.tensor(told, device=codes.device),
    )  # fmt: skip


def _change(rng: np.random.Generator, start: int) -> int | None:
    """With which token frame the scene of a stretch begins; None: it is the opening scene."""
    if start == 0 or rng.random() < IN_OPENING:
        return None
    return start if rng.random() < AT_CHANGE else int(rng.integers(1, start + 1))


def _masks(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Which codes are masked: of every clip a share cos(π/2·r), r uniform in 0 to 1, one at least (MaskGIT)."""
    count = int(np.prod(shape[1:]))
    masked = np.maximum(1, np.floor(np.cos(np.pi / 2 * rng.random(shape[0])) * count))
    ranks = rng.random((shape[0], count)).argsort(axis=1).argsort(axis=1)
    return torch.from_numpy((ranks < masked[:, None]).reshape(shape))


def train(
    plan: PhenakiPlan, tokenizer: CausalVideoTokenizer, path: Path, compute: Compute, *, seed: int, deadline: float
) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    torch.manual_seed(seed)
    model, tokenizer = TextToCodes().to(compute.device), tokenizer.to(compute.device)

    def loss_at(step: int) -> torch.Tensor:
        batch = draw_batch(plan, tokenizer, model.tokenizer, compute, seed, step)
        with compute.autocast():
            return torch.as_tensor(model(batch))

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
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m training.phenaki", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the tokenizer's checkpoint and of this one's"
    )
    parser.add_argument("--minutes", type=float, default=1000.0, help="at most")
    parser.add_argument("--steps", type=int, default=PhenakiPlan().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = options.out / phenaki_tokenizer.FILE
    if not checkpoint.is_file():
        raise SystemExit(f"there is no checkpoint {checkpoint}: run training.phenaki_tokenizer first")
    deadline = time.monotonic() + 60 * options.minutes
    plan = replace(PhenakiPlan(), steps=options.steps)
    train(plan, load_tokenizer(checkpoint), options.out / FILE, Compute.best(), seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    main()
