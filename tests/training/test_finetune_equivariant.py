"""The equivariant finetuning script, on a tiny pipeline and a folder of four pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.io import imsave

from training.autoencoder import build_autoencoder
from training.editor import TextEditor
from training.finetune_equivariant import EquivariantPairs, FinetunePlan, finetune, wanted
from training.instructions import make_edit
from training.package import load_pipeline, write_model
from training.pictures import to_bytes
from training.random_scenes import random_scene
from training.scenes import render

pytestmark = pytest.mark.slow


PLAN = FinetunePlan(steps=3, batch=1, size=64, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "model"
    torch.manual_seed(0)
    write_model(directory, build_autoencoder(), TextEditor(), 1.0)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pairs")
    lines = []
    for seed, name in enumerate(("sepia", "night", "recolour", "palette")):
        scene = random_scene(seed, 72, 96)
        edit = make_edit(name, scene, np.random.default_rng(seed))
        imsave(directory / f"{seed}.png", to_bytes(render(scene).image), check_contrast=False)
        imsave(directory / f"{seed}_edited.png", to_bytes(edit.target()), check_contrast=False)
        lines.append({"source": f"{seed}.png", "target": f"{seed}_edited.png", "instruction": edit.text})
    (directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


def unet_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_resumed_training_equals_an_uninterrupted_one(model: Path, folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetune(model, folder, whole, PLAN, resume=False, precision="no")
    first = FinetunePlan(steps=2, batch=1, size=64, learning_rate=1e-3)
    finetune(model, folder, broken, first, resume=False, precision="no")
    finetune(model, folder, broken, PLAN, resume=True, precision="no")
    a, b = unet_weights(whole), unet_weights(broken)
    for name, weights in a.items():
        torch.testing.assert_close(b[name], weights, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    before = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    assert any((a[name] - before[name].float()).abs().max() > 1e-4 for name in a)


def test_items_are_functions_of_their_number(model: Path, folder: Path) -> None:
    items = EquivariantPairs(folder, load_pipeline(model).tokenizer, PLAN, 100)
    first, again, other = items[7], items[7], items[8]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["source"], other["source"])
    assert first["source"].shape == (3, 64, 64)
    empty = [not bool((items[i]["tokens"][1:] != items.tokenizer.eos_token_id).any()) for i in range(60)]
    assert 0 < sum(empty) < 20


def test_what_is_predicted_follows_the_checkpoint(model: Path) -> None:
    from diffusers import DDPMScheduler

    target, noise, time = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2), torch.tensor([500])
    for kind in ("epsilon", "sample"):
        schedule = DDPMScheduler(prediction_type=kind)
        assert torch.equal(wanted(schedule, target, noise, time), noise if kind == "epsilon" else target)
    schedule = DDPMScheduler.from_config(load_pipeline(model).scheduler.config)
    signal = schedule.alphas_cumprod[500].sqrt()
    torch.testing.assert_close(wanted(schedule, target, noise, time), signal * noise)
