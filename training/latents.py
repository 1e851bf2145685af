"""Source and target pictures of many edits, encoded once by the finished autoencoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from training.autoencoder import FACTOR
from training.checkpoint import read_notes, save_tensors
from training.equivariant import apply_affine, random_affine
from training.instructions import INSTRUCTIONS, make_edit
from training.random_scenes import random_scene
from training.scenes import Frame, Scene, render
from training.shapes import SHAPES
from training.text import build_tokenizer, token_ids
from training.textures import Array

STREAM = 13  # of random numbers


@dataclass(frozen=True, slots=True)
class PairsPlan:
    """Which pairs: ``scenes`` of 256x256, ``edits`` of each, out of ``names`` (all when empty).

    Many scenes with few edits each: with 900 scenes the kinds of objects are learned by heart
    (76 % of their latents are named right there, 55 % in other scenes).
    """

    scenes: int = 6_000
    edits: int = 2
    names: tuple[str, ...] = ()
    affine: bool = False


@dataclass(frozen=True, slots=True)
class Pairs:
    """Latents (means, not scaled) source [S, 4, h, w], target [N, 4, h, w]; origin [N] names each target's source.

    shapes uint8 [S, h, w] says which kind of object fills most of each latent: 0 none, k SHAPES[k - 1].
    ``scaling_factor`` gives the target latents unit variance. placed [N], where known: only the whole picture shows
    what is asked for, no part of it does.
    """

    source: torch.Tensor
    shapes: torch.Tensor
    target: torch.Tensor
    origin: torch.Tensor
    tokens: torch.Tensor
    scaling_factor: float
    placed: torch.Tensor | None = None
    turns: torch.Tensor | None = None


def to_tensor(image: Array) -> torch.Tensor:
    """[H, W, 3] in [0, 1] to [1, 3, H, W] in [-1, 1]."""
    return (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] * 2 - 1).float()


def load_pairs(
    cache: Path, plan: PairsPlan, model: AutoencoderKL, seed: int, weights: str, *, scaled_like: Path | None = None
) -> Pairs:
    """The pairs of ``plan``; kept in ``cache`` together with what they were made from (``weights``: a digest).

    ``scaled_like`` is an earlier stage's cache whose scaling factor its editor was trained with.
    """
    identity = f"{plan} seed={seed} autoencoder={weights}"
    if not cache.exists() or read_notes(cache).get("identity") != identity:
        tensors = _encode_all(plan, model, seed)
        factor = f"{1 / float(tensors['target'].float().std()):.5f}"
        save_tensors(cache, tensors, {"identity": identity, "scaling_factor": factor})
    return Pairs(**load_file(cache), scaling_factor=float(read_notes(scaled_like or cache)["scaling_factor"]))


def _encode_all(plan: PairsPlan, model: AutoencoderKL, seed: int) -> dict[str, torch.Tensor]:
    sources, shapes, targets, origins, texts = [], [], [], [], []
    for index in range(plan.scenes):
        pictures, shape_map, words = scene_pairs(plan, seed * 1_000_000 + index)
        shapes.append(shape_map)
        latents = encode(model, pictures).half()
        sources.append(latents[:1])
        targets.append(latents[1:])
        origins += [index] * len(words)
        texts += words
        if index % 100 == 99:
            print(f"encoded {index + 1} of {plan.scenes} scenes", flush=True)
    tokens = token_ids(build_tokenizer(), texts)
    return {
        "source": torch.cat(sources),
        "shapes": torch.stack(shapes),
        "target": torch.cat(targets),
        "origin": torch.tensor(origins),
        "tokens": tokens,
    }


def scene_pairs(plan: PairsPlan, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """The source and its targets [1 + edits, 3, 256, 256] in [-1, 1], the source's shapes, and the edits' words."""
    rng = np.random.default_rng((STREAM, seed))
    scene = random_scene(seed)
    names = list(plan.names or INSTRUCTIONS)
    if not scene.sprites:
        names = [name for name in names if INSTRUCTIONS[name].kind == "global"]
    chosen = rng.choice(names, size=plan.edits, p=_shares(names))
    edits = [make_edit(str(name), scene, rng) for name in chosen]
    frame = render(scene)
    pictures = torch.cat([to_tensor(frame.image), *(to_tensor(edit.target()) for edit in edits)])
    shown = one_hot(scene, frame)
    if plan.affine:
        affine = random_affine(rng)
        pictures, shown = apply_affine(pictures, affine), apply_affine(shown, affine)
    return pictures, F.avg_pool2d(shown, FACTOR)[0].argmax(dim=0).to(torch.uint8), [e.text for e in edits]


def one_hot(scene: Scene, frame: Frame) -> torch.Tensor:
    """Which kind of object each pixel shows: [1, 1 + len(SHAPES), H, W], the first plane where there is none."""
    kinds = torch.tensor([0, *(1 + SHAPES.index(sprite.shape) for sprite in scene.sprites)])
    shown = F.one_hot(kinds[torch.from_numpy(frame.labels).long()], 1 + len(SHAPES))
    return shown.permute(2, 0, 1)[None].float()


def _shares(names: list[str]) -> np.ndarray:
    """How often each of these instructions is drawn."""
    weights = np.array([INSTRUCTIONS[name].share for name in names])
    return np.asarray(weights / weights.sum())


@torch.no_grad()
def encode(model: AutoencoderKL, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Means of the latents [B, 4, H/8, W/8], on the CPU."""
    return torch.as_tensor(model.encode(x_BCHW.to(model.device)).latent_dist.mode().cpu())
