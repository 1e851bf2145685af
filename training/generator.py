"""The embedded generator's first stage, text to 16 frames: ``python -m training.generator --out DIR``.

Stages, in the order of Make-A-Video: ``text`` (the text encoder learns what captions speak of), ``pictures`` (text
to single frames), ``unlabelled`` (the layers over time learn from clips without a word of text), ``captioned`` (all
layers, from clips whose captions say how things move). Each stops at its planned steps or after ``--minutes`` and goes
on when it is called again; checkpoints and ``record.json`` lie in DIR.
``python -m training.generator --tokenizer FOLDER`` makes the tokenizer anew.
"""

import argparse
import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from fairy.export.bases.video_unet import VideoUNet
from training.captioned_clips import (
    DIRECTIONS,
    FRAMES,
    GROUND_WORDS,
    GROUNDS,
    PLACES,
    RATES,
    Clip,
    captions,
    random_clip,
    render_clip,
)
from training.checkpoint import Trainee, load_average, read_json, save_json
from training.compute import Compute
from training.optimisers import adamw
from training.shapes import SHAPES
from training.text import LENGTH, WIDTH, build_text_encoder, token_ids, train_tokenizer
from training.textures import NAMED_COLOURS

STREAM = 62  # of random numbers
TRAIN_STEPS = 1000  # of the diffusion
LATE = 0.4  # power of the times drawn from 0 to 1: what is where is decided where there is most noise
MOST_WEIGHT = 5.0  # of an error at little noise, beside 1 where all is noise
STAGES = ("text", "pictures", "unlabelled", "captioned")
EARLIER = {"pictures": "text", "unlabelled": "pictures", "captioned": "unlabelled"}
TOLD = (tuple(NAMED_COLOURS), SHAPES, tuple(GROUNDS), tuple(DIRECTIONS), tuple(PLACES))  # what captions speak of
NOTHING = -100  # what a caption does not speak of (PyTorch's value)
READING_WEIGHT = 0.1
TOKENIZER = Path(__file__).parent / "tokenizer_generator"
VOCABULARY = 700


@dataclass(frozen=True, slots=True)
class GeneratorPlan:
    """What a stage does.

    Attributes:
        drop: share of the captions that are left out, so that guidance has something to compare with.
        thing_weight: of the error where the thing is, beside 1 elsewhere.
        temporal_only: only the layers over time learn.
    """

    steps: int
    clips: int
    frames: int
    learning_rate: float
    text: bool = True
    drop: float = 0.1
    thing_weight: float = 4.0
    temporal_only: bool = False
    save_every: int = 100


PLANS = {
    "text": GeneratorPlan(steps=800, clips=128, frames=0, learning_rate=1e-3, drop=0.0),
    "pictures": GeneratorPlan(steps=4000, clips=32, frames=1, learning_rate=1e-3),
    "unlabelled": GeneratorPlan(steps=600, clips=2, frames=FRAMES, learning_rate=1e-3, text=False, temporal_only=True),
    "captioned": GeneratorPlan(steps=3000, clips=2, frames=FRAMES, learning_rate=5e-4),
}


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer in training/tokenizer_generator."""
    files = (str(TOKENIZER / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=LENGTH)


def build_base() -> VideoUNet:
    """64x64 pixels in squares of 4, 12 million parameters, fresh weights."""
    return VideoUNet(
        patch_size=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        attention=(False, True, True),
        cross_attention_dim=WIDTH,
    )


class TextToVideo(nn.Module):
    """The two networks that are trained together, and what only helps them to learn: a reader of the text's features.

    It names colour, shape, ground, motion and place from their mean. Without it the features of most words stay alike
    for very long, for the pictures alone hardly tell them apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(self.tokenizer)
        self.unet = build_base()
        self.reader = nn.Linear(WIDTH, sum(map(len, TOLD)))

    def forward(
        self, noisy_BCFHW: torch.Tensor, time_B: torch.Tensor, tokens_BL: torch.Tensor, fps_B: torch.Tensor
    ) -> torch.Tensor:
        """The predicted clips, [B, 3, F, H, W]."""
        text_BLC = self.text_encoder(tokens_BL).last_hidden_state
        return torch.as_tensor(self.unet(noisy_BCFHW, time_B, text_BLC, fps=fps_B))

    def reading_loss(self, tokens_BL: torch.Tensor, told_BK: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of what captions tell, numbers in the lists of ``TOLD`` or -100 where they do not."""
        logits = self.reader(self.text_encoder(tokens_BL).last_hidden_state.mean(dim=1)).float()
        parts = zip(logits.split([len(names) for names in TOLD], dim=1), told_BK.T, strict=True)
        losses = [F.cross_entropy(part, told, reduction="sum") for part, told in parts]
        return torch.stack(losses).sum() / (told_BK != NOTHING).sum().clamp(min=1)


def alphas_cumprod() -> torch.Tensor:
    """The cosine schedule (Nichol & Dhariwal 2021), as diffusers' squaredcos_cap_v2, [1000]."""
    t = torch.arange(TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
    bars = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - bars[1:] / bars[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0).float()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: clips [B, 3, F, H, W] in -1 to 1, weights of errors, tokens, rates, noise, times, labels."""

    clips: torch.Tensor
    weights: torch.Tensor
    tokens: torch.Tensor
    fps: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor
    told: torch.Tensor

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        return Batch(*(getattr(self, name).to(device) for name in Batch.__slots__))


def draw_batch(plan: GeneratorPlan, tokenizer: CLIPTokenizer, seed: int, step: int) -> Batch:
    """The batch of one step, a function of (seed, step)."""
    rng = np.random.default_rng((STREAM, seed, step))
    clips, weights, texts, rates, told = [], [], [], [], []
    for _ in range(plan.clips):
        fps, is_picture = float(rng.choice(RATES)), plan.frames == 1
        clip = random_clip(int(rng.integers(1 << 40)), fps=fps, motion=not is_picture)
        texts.append(clip.caption if plan.text and rng.random() >= plan.drop else "")
        told.append(labels(clip, texts[-1], motion=not is_picture))
        rates.append(0.0 if is_picture else fps)
        if plan.frames == 0:
            continue
        first = float(rng.integers(FRAMES)) / fps if is_picture else 0.0
        frames = render_clip(clip, fps=fps, frames=plan.frames, first=first)
        thing = np.abs(frames - np.median(frames, axis=2, keepdims=True)).max(axis=3) > 0.1
        clips.append(frames)
        weights.append(1 + (plan.thing_weight - 1) * thing[..., None])
    stacked = np.stack(clips) if clips else np.zeros((plan.clips, 0, 0, 0, 3), np.float32)
    kept = np.stack(weights) if weights else np.zeros((plan.clips, 0, 0, 0, 1))
    clips_BCFHW = torch.from_numpy(stacked).permute(0, 4, 1, 2, 3) * 2 - 1
    return Batch(
        clips=clips_BCFHW,
        weights=torch.from_numpy(kept.astype(np.float32)).permute(0, 4, 1, 2, 3),
        tokens=token_ids(tokenizer, texts),
        fps=torch.tensor(rates),
        noise=torch.from_numpy(rng.standard_normal(clips_BCFHW.shape, dtype=np.float32)),
        time=torch.from_numpy((TRAIN_STEPS * rng.random(plan.clips) ** LATE).astype(np.int64)),
        told=torch.tensor(told),
    )


def labels(clip: Clip, caption: str, *, motion: bool) -> list[int]:
    """What a caption speaks of, as numbers in the lists of ``TOLD``; -100 where it does not."""
    ground = next((name for name, words in GROUND_WORDS.items() if any(word in caption for word in words)), None)
    names = (clip.colour, clip.shape, ground, clip.direction if motion else None, clip.place)
    known = zip(TOLD, names, strict=True)
    return [values.index(name) if caption and name is not None else NOTHING for values, name in known]


def loss_of(model: TextToVideo, batch: Batch, alphas: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of the predicted clips, as that of v would weigh it (Salimans & Ho 2022), up to a limit.

    The network predicts clips, not noise: clips lie in few of the directions that squares of pixels have, noise in all.
    """
    reading = model.reading_loss(batch.tokens, batch.told)
    if batch.clips.shape[2] == 0:
        return reading
    alpha = alphas[batch.time, None, None, None, None]
    noisy = alpha.sqrt() * batch.clips + (1 - alpha).sqrt() * batch.noise
    error = (model(noisy, batch.time, batch.tokens, batch.fps).float() - batch.clips).square()
    weights = batch.weights / (1 - alpha).clamp(min=1 / MOST_WEIGHT)
    return (weights * error).sum() / batch.weights.expand_as(error).sum() + READING_WEIGHT * reading


def train(
    plan: GeneratorPlan, path: Path, compute: Compute, *, seed: int, deadline: float, start: Path | None
) -> Trainee:
    """Trains until the plan's steps are done or ``deadline`` (time.monotonic) has passed; resumable."""
    torch.manual_seed(seed)
    model = TextToVideo().to(compute.device)
    model.unet.to(memory_format=torch.channels_last)
    if start is not None and not path.exists():
        load_first(model, start)
    if plan.temporal_only:
        model.requires_grad_(False)
        for name, parameter in model.unet.named_parameters():
            parameter.requires_grad_(is_temporal(name))
    alphas = alphas_cumprod().to(compute.device)

    def loss_at(step: int) -> torch.Tensor:
        batch = draw_batch(plan, model.tokenizer, seed, step).to(compute.device)
        with compute.autocast():
            return loss_of(model, batch, alphas)

    trainee = Trainee.start(model, adamw(model, plan.learning_rate))
    return trainee.run(
        path,
        loss_at,
        steps=plan.steps,
        peak=plan.learning_rate,
        deadline=deadline,
        save_every=plan.save_every,
    )


def load_first(model: TextToVideo, start: Path) -> None:
    """The averaged weights of a checkpoint, or those of a generator's folder, which holds no reader of the text."""
    if start.is_file():
        load_average(model, start)
        return
    unet = VideoUNet.from_pretrained(start / "base", torch_dtype=torch.float32)
    encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
    model.unet.load_state_dict(unet.state_dict())
    model.text_encoder.load_state_dict(encoder.state_dict())


def is_temporal(name: str) -> bool:
    """Whether a parameter of that name is of a layer over time, or of the rate that they need to know."""
    return ".temporal." in name or name.startswith("fps.")


def checkpoint(out: Path, stage: str) -> Path:
    """Where a stage keeps its weights."""
    return out / f"{stage}.safetensors"


def _record(options: argparse.Namespace, stage: str, plan: GeneratorPlan, trainee: Trainee, seconds: float) -> None:
    path = options.out / "record.json"
    record = read_json(path) if path.exists() else {"runs": []}
    packages = ("torch", "diffusers", "transformers", "numpy")
    record["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    run = {"stage": stage, "plan": asdict(plan), "seed": options.seed, "threads": options.threads}
    told = {"steps_done": trainee.step, "seconds": round(seconds), "loss_every_100_steps": trainee.losses}
    record["runs"].append(run | told)
    save_json(path, record)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the stages it asks for."""
    parser = argparse.ArgumentParser(prog="python -m training.generator", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for checkpoints and record")
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    parser.add_argument("--minutes", type=float, default=600.0, help="at most, for each stage")
    parser.add_argument("--steps", type=int, help="of the stage, instead of the plan's")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="first weights instead of the stage before's: a checkpoint, or a generator's folder",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="write the tokenizer there and stop")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.tokenizer:
        train_tokenizer(options.tokenizer, VOCABULARY, captions())
        return
    if options.out is None:
        parser.error("--out is needed")
    for stage in (options.stage,) if options.stage else STAGES:
        plan = replace(PLANS[stage], steps=options.steps or PLANS[stage].steps)
        start = options.start_from or (checkpoint(options.out, EARLIER[stage]) if stage in EARLIER else None)
        if start is not None and not start.exists():
            raise SystemExit(f"there is no checkpoint {start}: run the stage before first, or name another")
        begun, deadline = time.monotonic(), time.monotonic() + 60 * options.minutes
        trainee = train(
            plan, checkpoint(options.out, stage), Compute.best(), seed=options.seed, deadline=deadline, start=start
        )
        _record(options, stage, plan, trainee, time.monotonic() - begun)


if __name__ == "__main__":
    main()
