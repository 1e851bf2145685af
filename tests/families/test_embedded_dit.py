"""The transformer that ships: the loader's own path, and edits that one can see."""

import diffusers
import numpy as np
import torch
from PIL import Image

from fairy.runtime import Editor, EditParams
from fairy.runtime.models import embedded_dit, find_editor
from training.evaluate import held_out_photograph
from training.pictures import to_bytes


def test_it_is_what_diffusers_pipeline_makes_of_its_folder() -> None:
    picture = to_bytes(held_out_photograph("chelsea", 128))
    height, width = picture.shape[:2]
    pipeline = diffusers.Flux2KleinPipeline.from_pretrained(embedded_dit(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 64, height // 16, width // 16, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        image=Image.fromarray(picture),
        prompt="make it sepia",
        height=height,
        width=width,
        num_inference_steps=1,
        latents=noise,
        max_sequence_length=pipeline.tokenizer.model_max_length,
        output_type="np",
    ).images[0]
    with Editor.from_pretrained("embedded-dit", device="cpu") as editor:
        ours = editor.edit(picture[None], EditParams("make it sepia", anchors=0), latents=noise[0]).frames[0]
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


def test_it_keeps_the_picture_and_hears_the_words() -> None:
    """It is young: what it shows is the source's scene, and another one for other words."""
    picture = to_bytes(held_out_photograph("coffee", 128))[None].repeat(3, axis=0)
    with Editor.from_pretrained(find_editor("embedded-dit"), device="cpu") as editor:
        night = editor.edit(picture, EditParams("make it night", anchors=1)).frames.astype(float)
        kept = editor.edit(picture, EditParams("leave it as it is", anchors=1)).frames.astype(float)
    grey = [frames.mean(axis=-1).ravel() for frames in (picture.astype(float), kept, night)]
    assert np.corrcoef(grey[0], grey[1])[0, 1] > 0.8
    assert night.mean() < kept.mean() - 5, "night is darker"
