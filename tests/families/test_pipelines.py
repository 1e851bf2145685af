"""Without anchors the other families give what diffusers' own pipelines give, from the same noise."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DreamLiteUNetModel, FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import BatchFeature

from fairy.export.bases.dreamlite import DreamLite
from fairy.export.families import load_edit_model
from fairy.runtime import Editor, EditParams
from tests.families.folders import FLOW, write_dreamlite, write_klein

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
STEPS = 3
PROMPT = "make it snow"


def _edited(folder: Path, latents: torch.Tensor, **params: float) -> np.ndarray:
    asked = EditParams(PROMPT, anchors=0, num_inference_steps=STEPS, long_side=96, **params)
    with Editor.from_pretrained(folder, device="cpu") as editor:
        return editor.edit(FRAMES, asked, latents=latents).frames


def _noise(channels: int, factor: int) -> torch.Tensor:
    return torch.randn(channels, 64 // factor, 96 // factor, generator=torch.Generator().manual_seed(3))


def _assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """But for what lies so near the middle of two levels that the order of a sum decides."""
    away = np.abs(ours.astype(int) - (theirs * 255).round().astype(int))
    assert away.max() <= 1
    assert (away > 0).mean() < 1e-3


class _Processor:
    """Stands in for transformers' Qwen3VLProcessor, which needs torchvision."""

    def __init__(self, model: DreamLite) -> None:
        self._model = model

    def __call__(self, text: list[str], images: list[Image.Image], **_: object) -> BatchFeature:
        return BatchFeature(self._model.text.inputs(text, images[0]))


@pytest.mark.parametrize(
    ("mobile", "scales"), [(True, {}), (False, {"guidance_scale": 3.0, "image_guidance_scale": 1.4})]
)
def test_dreamlite_is_its_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mobile: bool, scales: dict[str, float]
) -> None:
    folder = write_dreamlite(tmp_path / "model", mobile=mobile)
    model = load_edit_model(folder)
    assert isinstance(model, DreamLite)
    name = "DreamLiteMobilePipeline" if mobile else "DreamLitePipeline"
    pipeline = getattr(diffusers, name)(
        model.text.encoder,
        model.text.tokenizer,
        _Processor(model),
        AutoencoderTiny.from_pretrained(folder / "vae").eval(),
        DreamLiteUNetModel.from_pretrained(folder / "unet").eval(),
        FlowMatchEulerDiscreteScheduler.from_config(FLOW),
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = _noise(4, 8)
    monkeypatch.setattr(pipeline, "prepare_latents", lambda *_: noise[None])
    theirs = [
        pipeline(PROMPT, image=Image.fromarray(f), num_inference_steps=STEPS, output_type="np", **scales).images[0]
        for f in FRAMES
    ]
    ours = _edited(folder, noise, **scales)
    assert ours.std() > 5
    _assert_same(ours, np.stack(theirs))


@pytest.mark.parametrize("kind", ["distilled", "guided", "kv"])
def test_klein_is_its_pipeline(tmp_path: Path, kind: str) -> None:
    folder = write_klein(tmp_path / "model", kv=kind == "kv", distilled=kind != "guided")
    name = "Flux2KleinKVPipeline" if kind == "kv" else "Flux2KleinPipeline"
    pipeline = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    scales = {"guidance_scale": 3.0} if kind == "guided" else {}
    noise = _noise(16, 4)
    theirs = [
        pipeline(
            prompt=PROMPT,
            image=Image.fromarray(frame),
            height=64,
            width=96,
            num_inference_steps=STEPS,
            latents=noise[None],
            output_type="np",
            **scales,
        ).images[0]
        for frame in FRAMES
    ]
    ours = _edited(folder, noise, **scales)
    assert ours.std() > 5
    _assert_same(ours, np.stack(theirs))
