"""An editor on the latents of the autoencoder with 16 channels: ``python -m training.editor16 --out DIR``.

Stages, each resumable and on any machine: ``pairs`` draws and encodes ``--shards`` of 100 scenes, ``editor`` trains on
all that are there (another process may go on making pairs meanwhile: they are taken in every few minutes),
``tiny_decoder`` makes the small decoder, ``package`` writes DIR/model as diffusers lays it out. Without ``--stage``
they run one after the other.
"""

import argparse
import hashlib
import platform
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel

from training.autoencoder import DecoderPlan
from training.autoencoder16 import CHANNELS, build_autoencoder16, load_weights
from training.carry import Sample, carry_details
from training.checkpoint import Trainee, load_average, read_json, read_notes, save_json, save_tensors
from training.compute import Compute
from training.detailed_pictures import detailed_pool
from training.editor import EditorPlan, TextEditor, recogniser, train_editor
from training.package import RECOMMENDED, write_model
from training.pairs16 import (
    ShardPlan,
    draw_scene,
    draw_shards,
    encode_pictures,
    encode_shards,
    latent_scale,
    load_shards,
    shard_path,
    thinned,
)
from training.shapes import ALL_SHAPES
from training.text import WIDTH, token_ids
from training.text16 import build_text_encoder16, build_tokenizer16
from training.tiny_decoder import build_tiny_decoder, train_tiny_decoder

EMBEDDED4 = Path(__file__).parent / "checkpoints/embedded4"  # the former embedded model, of 4 channels
AUTOENCODER = Path(__file__).parent / "checkpoints/autoencoder16/autoencoder.safetensors"
STAGES = ("pairs", "editor", "tiny_decoder", "package")
TINY_PLAN = DecoderPlan(steps=5_000, pictures=2_000, learning_rate=2e-3)
# Mostly at the last time: every target is exact, so that two steps (the last time and 0) are all that sampling needs.
PLAN = EditorPlan(steps=20_000, crops=((32, 8), (16, 16)), blind=0.85, early=0.1, drop=0.02, save_every=100)
RECOMMENDED16 = RECOMMENDED | {"num_inference_steps": 2, "guidance_scale": 1.0}
REFRESH_S = 300.0  # after which further shards are taken in
FIRST_SCENES = 24  # from which the translation of latents is fitted
RIDGE = 1e-2


def build_unet16() -> UNet2DConditionModel:
    """The former embedded model's layout with 16 latent channels: 32 in, 16 out, 5.4 million fresh parameters."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 3, 4),
        norm_num_groups=16,
    )


class TextEditor16(TextEditor):
    """The two networks of the new layout, and the recogniser of its shapes."""

    def __init__(self, text_encoder: CLIPTextModel | None = None) -> None:
        nn.Module.__init__(self)
        self.tokenizer = build_tokenizer16()
        self.text_encoder = build_text_encoder16(text_encoder)
        self.unet = build_unet16()
        self.recogniser = recogniser(self.unet, len(ALL_SHAPES))


@dataclass(frozen=True, slots=True)
class Translation:
    """Latents of unit variance of one autoencoder from another's, at each place: ``weight`` [out, in], ``bias``."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fit(cls, x_NI: torch.Tensor, y_NO: torch.Tensor) -> "Translation":
        """Least squares, held back a little."""
        x_mean, y_mean = x_NI.mean(0), y_NO.mean(0)
        x_NI, y_NO = x_NI - x_mean, y_NO - y_mean
        square = x_NI.T @ x_NI + RIDGE * len(x_NI) * torch.eye(x_NI.shape[1])
        weight = torch.linalg.solve(square, x_NI.T @ y_NO).T
        return cls(weight, y_mean - weight @ x_mean)


def first_weights(autoencoder: AutoencoderKL, factor: float, plan: ShardPlan) -> TextEditor16:
    """The former embedded editor; new first and last layers read and write the new latents as if they were its own.

    What the new latents hold beyond the old ones is carried past it. ``factor`` scales the new ones.
    """
    text_encoder = CLIPTextModel.from_pretrained(EMBEDDED4 / "text_encoder", torch_dtype=torch.float32)
    old = UNet2DConditionModel.from_pretrained(EMBEDDED4 / "unet", torch_dtype=torch.float32)
    old_autoencoder = AutoencoderKL.from_pretrained(EMBEDDED4 / "vae", torch_dtype=torch.float32).eval()
    old_factor = float(old_autoencoder.config["scaling_factor"])
    drawn = [draw_scene(plan, index) for index in range(FIRST_SCENES)]
    pictures = torch.cat([pictures for pictures, _, _ in drawn])
    new, older = (encode_pictures(model, pictures) for model in (autoencoder, old_autoencoder))
    new_NC, old_NC = (latents.movedim(1, -1).flatten(0, -2) for latents in (new, older))
    model = TextEditor16(text_encoder)
    weights = {k: v for k, v in old.state_dict().items() if not k.startswith(("conv_in", "conv_out"))}
    model.unet.load_state_dict(model.unet.state_dict() | weights)
    read_image = Translation.fit(new_NC, old_NC)
    read_noisy = Translation(read_image.weight * old_factor / factor, read_image.bias * old_factor)
    write = Translation.fit(old_NC * old_factor, new_NC * factor)
    _translate_in(model.unet.conv_in, old.conv_in, read_noisy, read_image)
    _translate_out(model.unet.conv_out, old.conv_out, write)
    by_scene = new.unflatten(0, (FIRST_SCENES, -1))
    tokens = token_ids(model.tokenizer, [edit.text for _, _, edits in drawn for edit in edits])
    sources = by_scene[:, :1].expand_as(by_scene[:, 1:]).flatten(0, 1)
    carry_details(model.eval(), Sample(by_scene[:, 1:].flatten(0, 1) * factor, sources, tokens))
    return model.train()


@torch.no_grad()
def _translate_in(new: nn.Conv2d, old: nn.Conv2d, noisy: Translation, image: Translation) -> None:
    """The old layer after the translation of noisy and image latents; at the border the constant is a little off."""
    assert old.bias is not None
    assert new.bias is not None
    half = old.in_channels // 2
    parts = zip((old.weight[:, :half], old.weight[:, half:]), (noisy, image), strict=True)
    bias, weights = old.bias.clone(), []
    for weight_OIkk, translation in parts:
        weights.append(torch.einsum("oikl,ij->ojkl", weight_OIkk, translation.weight))
        bias += torch.einsum("oikl,i->o", weight_OIkk, translation.bias)
    new.weight.copy_(torch.cat(weights, dim=1))
    new.bias.copy_(bias)


@torch.no_grad()
def _translate_out(new: nn.Conv2d, old: nn.Conv2d, write: Translation) -> None:
    """The old layer before the translation; v's mean is minus that of the target where all is noise."""
    assert old.bias is not None
    assert new.bias is not None
    new.weight.copy_(torch.einsum("po,oikl->pikl", write.weight, old.weight))
    new.bias.copy_(write.weight @ old.bias - write.bias)


def train(options: argparse.Namespace, autoencoder: AutoencoderKL, shards: ShardPlan) -> Trainee:
    """Trains until the steps are done or the minutes are over, and takes in what pairs appear meanwhile."""
    plan = replace(PLAN, steps=options.steps or PLAN.steps, learning_rate=options.learning_rate or PLAN.learning_rate)
    plan = replace(plan, changed_weight=options.changed_weight or plan.changed_weight)
    path, deadline = options.out / "editor.safetensors", time.monotonic() + 60 * options.minutes
    factor = scaling_factor(options.out)
    tokens_of = partial(token_ids, build_tokenizer16())
    while True:
        pairs = thinned(load_shards(options.out, tokens_of, factor), options.whole)
        print(f"{len(pairs.source)} scenes, {len(pairs.target)} pairs", flush=True)
        if path.exists():
            first = TextEditor16()
        else:
            first = (
                load_editor(options.start_from) if options.start_from else first_weights(autoencoder, factor, shards)
            )
        until = min(deadline, time.monotonic() + REFRESH_S)
        trainee = train_editor(plan, pairs, path, Compute.best(), seed=options.seed, deadline=until, model=first)
        if trainee.step >= plan.steps or time.monotonic() >= deadline:
            _record(options, asdict(plan), len(pairs.source), trainee)
            return trainee


def scaling_factor(out: Path) -> float:
    """What gives the first shard's target latents unit variance."""
    path = shard_path(out, "latents", 0)
    if not path.exists():
        raise SystemExit(f"{out / 'latents'} holds no shard 0: run --stage pairs first")
    return latent_scale(path)


def _record(options: argparse.Namespace, plan: dict[str, object], scenes: int, trainee: Trainee) -> None:
    """Adds what was done to DIR/record.json."""
    path = options.out / "record.json"
    record = read_json(path) if path.exists() else {"runs": []}
    packages = ("torch", "diffusers", "transformers", "numpy", "scikit-image")
    record["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    run = {"plan": plan, "seed": options.seed, "threads": options.threads, "scenes": scenes}
    record["runs"].append(run | {"steps_done": trainee.step, "loss_every_100_steps": trainee.losses})
    save_json(path, record)


def train_tiny(options: argparse.Namespace, autoencoder: AutoencoderKL) -> None:
    """A small decoder for the new latents, whose first weights read them as the former model's small decoder did."""
    plan, seed = replace(TINY_PLAN, steps=options.steps or TINY_PLAN.steps), options.seed
    factor, deadline = scaling_factor(options.out), time.monotonic() + 60 * options.minutes
    pool = detailed_pool(options.out / "pictures.npy", plan.pictures, seed, options.photographs)
    model = first_tiny_decoder(autoencoder, factor, torch.from_numpy(pool[: 4 * FIRST_SCENES]))
    how = {"autoencoder": autoencoder, "scaling_factor": factor, "seed": seed, "deadline": deadline, "model": model}
    train_tiny_decoder(plan, options.out, Compute.best(), **how)


@torch.no_grad()
def first_tiny_decoder(autoencoder: AutoencoderKL, factor: float, pictures_BHWC: torch.Tensor) -> AutoencoderTiny:
    """The former model's small decoder with a new first layer."""
    model = build_tiny_decoder(CHANNELS)
    old = AutoencoderTiny.from_pretrained(EMBEDDED4 / "tiny_decoder", torch_dtype=torch.float32)
    old_autoencoder = AutoencoderKL.from_pretrained(EMBEDDED4 / "vae", torch_dtype=torch.float32).eval()
    scale = torch.tensor((factor, float(old_autoencoder.config["scaling_factor"])))
    encoded = [
        encode_pictures(m, pictures_BHWC) * s for m, s in zip((autoencoder, old_autoencoder), scale, strict=True)
    ]
    translation = Translation.fit(*(latents.movedim(1, -1).flatten(0, -2) for latents in encoded))
    first, old_first = model.decoder.layers[0], old.decoder.layers[0]
    weights = {k: v for k, v in old.decoder.state_dict().items() if not k.startswith("layers.0.")}
    model.decoder.load_state_dict(model.decoder.state_dict() | weights)
    first.weight.copy_(torch.einsum("oikl,ij->ojkl", old_first.weight, translation.weight))
    first.bias.copy_(old_first.bias + torch.einsum("oikl,i->o", old_first.weight, translation.bias))
    return model


def package(options: argparse.Namespace, autoencoder: AutoencoderKL) -> None:
    """DIR/model from the averaged weights, in float16; of exported ones where DIR holds no checkpoint."""
    path = options.out / "editor.safetensors"
    if path.exists():
        editor, factor = load_editor(path), scaling_factor(options.out)
    elif options.start_from:
        editor, factor = load_editor(options.start_from), float(read_notes(options.start_from)["scaling_factor"])
    else:
        raise SystemExit(f"{options.out} holds no editor: run --stage editor first, or name weights with --start-from")
    tiny_decoder = options.out / "tiny_decoder.safetensors"
    write_model(options.out / "model", autoencoder, editor, factor, tiny_decoder, recommended=RECOMMENDED16)


def load_editor(path: Path) -> TextEditor16:
    """The averaged weights of a checkpoint, or the weights of an exported file."""
    editor, tensors = TextEditor16(), load_file(path)
    if any(name.startswith("average/") for name in tensors):
        load_average(editor, path)
    else:
        editor.load_state_dict({name: value.float() for name, value in tensors.items()})
    return editor


def export_weights(out: Path, path: Path) -> None:
    """The averaged weights alone in float16, the recogniser's too, with the latents' scaling factor in the notes."""
    editor = load_editor(out / "editor.safetensors")
    tensors = {name: value.half() for name, value in editor.state_dict().items()}
    save_tensors(path, tensors, {"scaling_factor": str(scaling_factor(out))})


def load_autoencoder(path: Path) -> AutoencoderKL:
    """The finished autoencoder, exported or a checkpoint's averaged weights."""
    model = build_autoencoder16().eval().to(memory_format=torch.channels_last)
    load_weights(model, path)
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.editor16", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for pairs, checkpoints and model")
    parser.add_argument("--stage", choices=(*STAGES, "draw"), help="only this one; draw: pairs without encoding")
    parser.add_argument("--autoencoder", type=Path, default=AUTOENCODER, help="its weights; they must not change")
    parser.add_argument("--start-from", type=Path, help="the editor's first weights: a checkpoint, or exported ones")
    parser.add_argument("--export", type=Path, help="write the averaged weights in float16 there, train nothing")
    parser.add_argument("--photographs", type=Path, help="folder with further photographs (*.jpg)")
    parser.add_argument("--shards", type=int, nargs=2, default=(0, 60), metavar=("FIRST", "END"))
    parser.add_argument("--minutes", type=float, default=600.0, help="of training, at most")
    parser.add_argument("--steps", type=int, help="of training, instead of the plan's")
    parser.add_argument("--whole", type=float, default=1.0, help="share of the edits of whole pictures to train on")
    parser.add_argument("--learning-rate", type=float, help="instead of the plan's")
    parser.add_argument("--changed-weight", type=float, help="of the error where the edit changes the picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the stages it asks for."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.autoencoder.is_file():
        raise SystemExit(f"there is no file {options.autoencoder}: name the autoencoder's weights")
    if options.start_from and not options.start_from.is_file():
        raise SystemExit(f"there is no file {options.start_from}: name a checkpoint or exported weights")
    if options.export:
        export_weights(options.out, options.export)
        return
    autoencoder = load_autoencoder(options.autoencoder)
    plan, shards = ShardPlan(seed=options.seed, photographs=options.photographs), range(*options.shards)
    stages = (options.stage,) if options.stage else STAGES
    if "draw" in stages:
        draw_shards(options.out, plan, shards)
    if "pairs" in stages:
        digest = hashlib.sha256(options.autoencoder.read_bytes()).hexdigest()
        encode_shards(options.out, plan, shards, autoencoder.to(Compute.best().device), digest)
    if "editor" in stages:
        train(options, autoencoder.cpu(), plan)
    if "tiny_decoder" in stages:
        train_tiny(options, autoencoder.cpu())
    if "package" in stages:
        package(options, autoencoder.cpu())


if __name__ == "__main__":
    main()
