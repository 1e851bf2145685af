"""The model that ships: whole, small, loadable by diffusers, the same edit by both, and an edit that can be seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairy.runtime import Editor, EditParams, embedded_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A picture it was never trained on: uint8 [192, 256, 3]."""
    from skimage import data, transform

    return (transform.resize(data.chelsea()[:, 20:420], (192, 256), anti_aliasing=True) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def embedded():
    with Editor.from_pretrained(device="cpu") as editor:
        yield editor


def test_it_is_whole_and_small() -> None:
    folder = embedded_model()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 18 * 2**20
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".py", ".pkl")]
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    assert (folder / "README.md").is_file()


def test_its_recommendations_are_valid() -> None:
    recommended = json.loads((embedded_model() / "fairy.json").read_text())
    params = EditParams("x").resolved(recommended)
    assert params.long_side == recommended["long_side"]
    assert {"long_side", "num_inference_steps", "guidance_scale", "image_guidance_scale"} <= set(recommended)


def test_diffusers_own_pipeline_gives_the_same_edit(embedded: Editor, photograph: np.ndarray) -> None:
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    params = EditParams("make it sepia", anchors=0, sampler="euler", num_inference_steps=4)
    latents = torch.randn(16, 24, 32, generator=torch.Generator().manual_seed(0))
    ours = embedded.edit(photograph[None], params, latents=latents)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(embedded_model(), dtype=torch.float32)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "make it sepia",
        image=Image.fromarray(photograph),
        num_inference_steps=4,
        guidance_scale=ours.report.params["guidance_scale"],
        image_guidance_scale=ours.report.params["image_guidance_scale"],
        latents=latents[None],
        output_type="np",
    ).images[0]
    assert np.abs((theirs * 255).round() - ours.frames[0]).max() <= 1


def test_an_edit_can_be_seen(embedded: Editor, photograph: np.ndarray) -> None:
    """What the instruction says happens, and the picture stays the same picture."""
    texts = {"grey": "make it black and white", "night": "make it night", "snow": "make it snow"}
    edits = {word: embedded.edit(photograph[None], EditParams(text)) for word, text in texts.items()}
    frames = {word: result.frames[0].astype(float) for word, result in edits.items()}
    source = photograph.astype(float)
    assert _saturation(frames["grey"]) < 0.6 * _saturation(source)
    assert frames["night"].mean() < 0.75 * source.mean()
    assert frames["snow"].mean() > 1.25 * source.mean()
    for word in frames:
        assert _likeness(frames[word], source) > 0.3, word


def _saturation(picture: np.ndarray) -> float:
    return float((picture.max(-1) - picture.min(-1)).mean())


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of brightness."""
    return float(np.corrcoef(one.mean(-1).ravel(), other.mean(-1).ravel())[0, 1])


@pytest.mark.slow
def test_the_command_line_needs_no_model_to_be_named(tmp_path: Path, clip: Path) -> None:
    from fairy.runtime.cli import main as cli

    out = tmp_path / "out.mp4"
    assert cli.run(["edit", str(clip), "make it sepia", "-o", str(out), "--steps", "2", "--quiet"]) == 0
    assert out.is_file()
