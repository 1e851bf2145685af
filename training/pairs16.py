"""Source and target pictures for the editor with 16 channels, drawn and encoded shard by shard.

Drawing needs no autoencoder; what is drawn waits in ``DIR/pictures`` and goes when it is encoded to ``DIR/latents``. An
editor may train while further shards are made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from training.autoencoder import FACTOR
from training.checkpoint import Tensors, read_notes, save_tensors
from training.compute import Compute
from training.editor import CHANGED
from training.edits import NamedEdit, draw_edit
from training.latents import Pairs
from training.named_scenes import named_scene
from training.pictures import to_bytes
from training.scenes import Frame, Scene, render
from training.sentences import asks_for
from training.shapes import ALL_SHAPES

STREAM = 43  # of random numbers
SIDE = 256
WHOLE = 0.7  # share of the latents from which on an edit counts as one of the whole picture
FAVOURED = {"reshape": 2, "remove": 2, "add": 3}  # how many times as often they are drawn, for they are learned last
PART = 500  # pairs looked at at a time


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """How the pairs are drawn: ``edits`` of each of ``scenes`` in a shard, of that ``seed``; further photographs."""

    scenes: int = 100
    edits: int = 3
    seed: int = 0
    photographs: Path | None = None


def draw_scene(plan: ShardPlan, index: int) -> tuple[torch.Tensor, torch.Tensor, list[NamedEdit]]:
    """Pictures uint8 [1 + edits, 256, 256, 3], source first; kinds of shapes uint8 [32, 32]; the edits."""
    seed = plan.seed * 1_000_000 + index
    rng = np.random.default_rng((STREAM, seed))
    scene = named_scene(seed, SIDE, plan.photographs)
    frame = render(scene)
    edits = [draw_edit(scene, frame, rng) for _ in range(plan.edits)]
    pictures = np.stack([to_bytes(image) for image in (frame.image, *(edit.target() for edit in edits))])
    return torch.from_numpy(pictures), shown_shapes(scene, frame), edits


def shown_shapes(scene: Scene, frame: Frame) -> torch.Tensor:
    """Which kind of thing fills most of each latent, uint8 [h, w]: 0 none, k ``ALL_SHAPES[k - 1]``."""
    kinds = torch.tensor([0, *(1 + ALL_SHAPES.index(sprite.shape) for sprite in scene.sprites)])
    shown = F.one_hot(kinds[torch.from_numpy(frame.labels).long()], 1 + len(ALL_SHAPES))
    return F.avg_pool2d(shown.permute(2, 0, 1).float(), FACTOR).argmax(dim=0).to(torch.uint8)


def draw_shard(path: Path, plan: ShardPlan, shard: int) -> None:
    """Writes the pictures, shapes and words of one shard."""
    drawn = [draw_scene(plan, shard * plan.scenes + index) for index in range(plan.scenes)]
    edits = [edit for _, _, chosen in drawn for edit in chosen]
    tensors = {
        "pictures": torch.stack([pictures for pictures, _, _ in drawn]),
        "shapes": torch.stack([shapes for _, shapes, _ in drawn]),
        "placed": torch.tensor([edit.placed for edit in edits]),
    }
    save_tensors(path, tensors, {"texts": json.dumps([edit.text for edit in edits]), "plan": _identity(plan)})


def encode_shard(pictures: Path, latents: Path, model: AutoencoderKL, weights: str) -> None:
    """Encodes a drawn shard and removes its pictures; ``weights`` is a digest of the autoencoder."""
    tensors, notes = load_file(pictures), read_notes(pictures)
    scenes = tensors.pop("pictures")
    encoded = torch.stack([encode_pictures(model, pictures_BHWC).half() for pictures_BHWC in scenes])
    tensors |= {"source": encoded[:, 0].clone(), "target": encoded[:, 1:].flatten(0, 1).clone()}
    save_tensors(latents, tensors, notes | {"autoencoder": weights})
    pictures.unlink()


@torch.no_grad()
def encode_pictures(model: AutoencoderKL, pictures_BHWC: torch.Tensor) -> torch.Tensor:
    """Means of the latents [B, C, H/8, W/8], float32 on the CPU, of pictures uint8 [B, H, W, 3]."""
    x_BCHW = pictures_BHWC.permute(0, 3, 1, 2).to(model.device).float() / 127.5 - 1
    compute = Compute.best()
    with compute.autocast():
        latents = model.encode(x_BCHW.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return torch.as_tensor(latents.float().cpu())


def _identity(plan: ShardPlan) -> str:
    return f"scenes={plan.scenes} edits={plan.edits} seed={plan.seed} further={plan.photographs is not None}"


def shard_path(out: Path, part: str, shard: int) -> Path:
    """Where the ``part`` ("pictures" or "latents") of a shard lies."""
    return out / part / f"{shard:04d}.safetensors"


def draw_shards(out: Path, plan: ShardPlan, shards: range) -> None:
    """Draws those that are neither drawn nor encoded yet."""
    for shard in shards:
        if not any(shard_path(out, part, shard).exists() for part in ("pictures", "latents")):
            draw_shard(shard_path(out, "pictures", shard), plan, shard)
            print(f"drew shard {shard}", flush=True)


def encode_shards(out: Path, plan: ShardPlan, shards: range, model: AutoencoderKL, weights: str) -> None:
    """Encodes those that are not encoded yet, and draws them where need be."""
    for shard in shards:
        if not shard_path(out, "latents", shard).exists():
            draw_shards(out, plan, range(shard, shard + 1))
            encode_shard(shard_path(out, "pictures", shard), shard_path(out, "latents", shard), model, weights)
            print(f"encoded shard {shard}", flush=True)


def load_shards(out: Path, tokens_of: Callable[[list[str]], torch.Tensor], scaling_factor: float) -> Pairs:
    """All encoded shards as one set of pairs; ``tokens_of`` turns sentences into numbers [N, L]."""
    paths = sorted((out / "latents").glob("*.safetensors"))
    if not paths:
        raise SystemExit(f"{out / 'latents'} holds no pairs: run --stage pairs first")
    if len({read_notes(path)["autoencoder"] for path in paths}) > 1:
        raise SystemExit(f"{out / 'latents'} holds latents of several autoencoders: remove those of the older one")
    shards = [load_file(path) for path in paths]
    texts = [text for path in paths for text in json.loads(read_notes(path)["texts"])]
    source, target = (torch.cat([shard[name] for shard in shards]) for name in ("source", "target"))
    return Pairs(
        source=source,
        shapes=torch.cat([shard["shapes"] for shard in shards]),
        target=target,
        origin=torch.arange(len(source)).repeat_interleave(len(target) // len(source)),
        tokens=tokens_of(texts),
        scaling_factor=scaling_factor,
        placed=torch.cat([shard["placed"] for shard in shards]),
        turns=torch.tensor([i for i, text in enumerate(texts) for _ in range(FAVOURED.get(asks_for(text) or "", 1))]),
    )


def thinned(pairs: Pairs, keep: float) -> Pairs:
    """Of the pairs that change nearly the whole picture a share ``keep`` only, for looks are learned first."""
    parts = zip(pairs.target.split(PART), pairs.origin.split(PART), strict=True)
    changed_N = torch.cat(
        [
            ((target - pairs.source[origin]).float().abs().mean(dim=1) * pairs.scaling_factor > CHANGED)
            .float()
            .mean((1, 2))
            for target, origin in parts
        ]
    )
    lucky_N = torch.rand(len(changed_N), generator=torch.Generator().manual_seed(0)) < keep
    kept = (changed_N < WHOLE) | lucky_N
    tensors = {name: getattr(pairs, name)[kept] for name in ("target", "origin", "tokens")}
    if pairs.placed is not None:
        tensors["placed"] = pairs.placed[kept]
    if pairs.turns is not None:
        tensors["turns"] = (kept.cumsum(0) - 1)[pairs.turns[kept[pairs.turns]]]
    return replace(pairs, **tensors)


def latent_scale(path: Path) -> float:
    """What gives the target latents of one shard unit variance."""
    tensors: Tensors = load_file(path)
    return round(1 / float(tensors["target"].float().std()), 5)
