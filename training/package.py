"""Writes a finished model as a directory that diffusers' InstructPix2Pix pipeline and fairy load."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
)

from training.checkpoint import load_average, save_json
from training.editor import TRAIN_STEPS, TextEditor
from training.float16 import fit_float16
from training.latents import to_tensor
from training.random_scenes import random_scene
from training.scenes import render
from training.tiny_decoder import write_tiny_decoder

SCENES_SEED = 5_000_000
RECOMMENDED: dict[str, object] = {
    "long_side": 256,
    "num_inference_steps": 10,
    "guidance_scale": 1.25,
    "image_guidance_scale": 1.0,
    "sampler": "euler_ancestral",
}


def build_scheduler() -> EulerAncestralDiscreteScheduler:
    """Stable Diffusion's noise schedule; the network predicts v."""
    return EulerAncestralDiscreteScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )


def build_pipeline(vae: AutoencoderKL, editor: TextEditor) -> StableDiffusionInstructPix2PixPipeline:
    """diffusers' own pipeline around the trained parts."""
    return StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=editor.text_encoder,
        tokenizer=editor.tokenizer,
        unet=editor.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_model(
    directory: Path,
    vae: AutoencoderKL,
    editor: TextEditor,
    scaling_factor: float,
    tiny_decoder: Path | None = None,
    *,
    recommended: Mapping[str, object] = RECOMMENDED,
) -> None:
    """Replaces ``directory`` by the model in float16; a model card that is there stays.

    ``tiny_decoder`` is the checkpoint of a small decoder, which goes beside the other parts if it exists.
    The new directory is complete before it takes the old one's name.
    """
    vae.register_to_config(scaling_factor=scaling_factor, force_upcast=False)
    fit_float16(vae.float(), _scenes())
    with replaced(directory) as fresh:
        build_pipeline(vae.half(), editor.half()).save_pretrained(fresh, safe_serialization=True)
        save_json(fresh / "fairy.json", recommended)
        if tiny_decoder is not None and tiny_decoder.exists():
            write_tiny_decoder(fresh / "tiny_decoder", tiny_decoder)
        load_as_float32(fresh / "text_encoder" / "config.json")


@contextmanager
def replaced(directory: Path) -> Iterator[Path]:
    """A new directory to fill, which takes the name of ``directory``, and its model card, when it is complete."""
    fresh, old = directory.with_name(directory.name + ".new"), directory.with_name(directory.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    yield fresh
    for file in fresh.rglob("*.*"):
        file.chmod(0o644)
    if (directory / "README.md").exists():
        shutil.copy2(directory / "README.md", fresh)
    if directory.exists():
        os.rename(directory, old)
    os.rename(fresh, directory)
    shutil.rmtree(old, ignore_errors=True)


def _scenes() -> torch.Tensor:
    """Pictures [16, 3, 128, 128] in [-1, 1] by which activations are measured."""
    return torch.cat([to_tensor(render(random_scene(SCENES_SEED + i, 128, 128)).image) for i in range(16)])


def load_as_float32(path: Path) -> None:
    """transformers loads in the precision that the config names; float16 is only how the file is stored."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    save_json(path, config)


def write_from_checkpoints(
    directory: Path, autoencoder: Path, editor: Path, scaling_factor: float, *, tiny_decoder: Path | None = None
) -> None:
    """Packages the averaged weights of two checkpoints, or three."""
    from training.autoencoder import build_autoencoder

    vae, text_editor = build_autoencoder(), TextEditor()
    load_average(vae, autoencoder)
    load_average(text_editor, editor)
    write_model(directory, vae, text_editor, scaling_factor, tiny_decoder)


def load_pipeline(directory: Path) -> StableDiffusionInstructPix2PixPipeline:
    """The packaged model in float32, without progress bar."""
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(directory, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
