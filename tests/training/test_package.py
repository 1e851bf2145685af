"""A packaged model, and the one that ships, load in diffusers' own pipeline and edit a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.autoencoder import build_autoencoder
from training.editor import TextEditor, alphas_cumprod
from training.evaluate import as_markdown, bicubic, psnr, run_edits, sampler_settings
from training.package import RECOMMENDED, build_scheduler, load_pipeline, write_model
from training.random_scenes import random_scene
from training.scenes import render

pytestmark = pytest.mark.slow


EMBEDDED = Path(__file__).parents[2] / "runtime" / "models" / "embedded"


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("package") / "model"
    directory.mkdir()
    (directory / "README.md").write_text("card")
    torch.manual_seed(0)
    write_model(directory, build_autoencoder(), TextEditor(), 1.25)
    return directory


def test_the_directory_is_whole_small_and_keeps_its_card(packaged: Path) -> None:
    assert json.loads((packaged / "fairy.json").read_text()) == RECOMMENDED
    assert (packaged / "README.md").read_text() == "card"
    assert sum(file.stat().st_size for file in packaged.rglob("*") if file.is_file()) < 16_000_000
    assert sorted(path.name for path in packaged.parent.iterdir()) == ["model"]


def test_it_loads_in_float32_and_edits(packaged: Path) -> None:
    pipeline = load_pipeline(packaged)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    assert pipeline.vae.config.scaling_factor == 1.25
    settings = sampler_settings(packaged) | {"num_inference_steps": 2}
    image = render(random_scene(0, 64, 96)).image
    first = run_edits(pipeline, ["make it night"], [image], **settings)[0]
    second = run_edits(pipeline, ["make it snow"], [image], **settings)[0]
    assert first.shape == image.shape
    assert np.isfinite(first).all()
    assert not np.array_equal(first, second)


def test_the_scheduler_is_the_one_trained_with() -> None:
    torch.testing.assert_close(build_scheduler().alphas_cumprod, alphas_cumprod(), rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(not (EMBEDDED / "model_index.json").exists(), reason="no embedded model in this checkout")
def test_the_embedded_model_follows_its_instruction() -> None:
    pipeline = load_pipeline(EMBEDDED)
    image = render(random_scene(900_000_123)).image
    night, snow = run_edits(pipeline, ["make it night", "make it snow"], [image, image], **sampler_settings(EMBEDDED))
    assert night.mean() < 0.75 * image.mean()
    assert snow.mean() > 1.3 * night.mean()


def test_measures() -> None:
    image = render(random_scene(1, 64, 64)).image
    assert psnr(image, image) >= 100
    assert abs(psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)) - 20) < 1e-6
    mask = np.eye(4, dtype=bool)
    assert psnr(np.zeros((4, 4, 3)), np.where(mask[..., None], 0.0, 1.0), mask) >= 100
    assert bicubic(image).shape == image.shape
    row = {"kind": "global", "edited": 20.0, "unedited": 10.0, "wrong": 12.0}
    assert "| night | global | 20.0 | 10.0 | 12.0 |" in as_markdown({"autoencoder": {}, "edits": {"night": row}})
