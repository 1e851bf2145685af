"""Every control on the embedded model, with small random weights, two workers, shots, and after an interruption."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fairy.export.checkpoint import load_checkpoint
from fairy.runtime import Editor, EditParams, embedded_model
from tests.runtime.conftest import make_frames, write_clip
from tests.runtime.workers.test_controls import interrupt

FRAMES = make_frames(10, 64, 96)
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def params(**changes: object) -> EditParams:
    return EditParams("make it snow", **{"anchors": 2, "micro_batch": 2, "shots": (6,), **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet, a LoRA and half of it, a mask and a clip."""
    from diffusers import ControlNetModel

    made, unet = tmp_path_factory.mktemp("controls"), load_checkpoint(embedded_model()).unet
    rng = torch.Generator().manual_seed(0)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    with torch.no_grad():
        for conv in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=rng) * 0.02)
    network.save_pretrained(made / "net")
    width = unet.get_submodule(LAYER).weight.shape[0]
    down, up = torch.randn(4, width, generator=rng) * 0.2, torch.randn(width, 4, generator=rng) * 0.2
    save_file({f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}, made / "lora.safetensors")
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(made / "mask.png")
    write_clip(made / "clip.mp4", FRAMES)
    return made


@pytest.fixture(scope="module")
def plain() -> Iterator[Editor]:
    with Editor.from_pretrained(device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def guided(folder: Path) -> Iterator[Editor]:
    """With a ControlNet that sees edges."""
    with Editor.from_pretrained(device="cpu", controlnet=[folder / "net"]) as made:
        yield made


def test_outside_a_mask_is_the_source(plain: Editor, folder: Path) -> None:
    found = plain.edit(FRAMES, params(mask=folder / "mask.png", mask_feather=4)).frames
    assert np.array_equal(found[:, :, :44], FRAMES[:, :, :44])
    assert not np.array_equal(found[:, :, 48:], FRAMES[:, :, 48:])


def test_no_strength_is_the_source_through_the_autoencoder(plain: Editor) -> None:
    found = plain.edit(FRAMES, params(strength=0.0)).frames
    vae = load_checkpoint(embedded_model()).vae
    levels = torch.from_numpy(FRAMES[3:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        through = vae.decode(vae.encode(levels).latent_dist.mode()).sample
    expected = ((through / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0)[:64, :96]
    assert (expected - torch.from_numpy(found[3]).float()).abs().max() <= 0.5 + 1e-2


def test_two_halves_of_a_lora_are_the_whole(plain: Editor, folder: Path) -> None:
    def edited(*lora: str) -> np.ndarray:
        with Editor.from_pretrained(device="cpu", lora=[f"{folder / 'lora.safetensors'}{end}" for end in lora]) as made:
            return made.edit(FRAMES[:3], params(shots="off")).frames

    whole = edited("")
    assert np.array_equal(edited(":0.5", ":0.5"), whole)
    assert not np.array_equal(whole, plain.edit(FRAMES[:3], params(shots="off")).frames)


def test_a_controlnet_of_scale_0_is_none(plain: Editor, guided: Editor) -> None:
    asked = params(control=("canny",), controlnet_conditioning_scale=0.0)
    without = plain.edit(FRAMES, params()).frames
    assert np.array_equal(guided.edit(FRAMES, asked).frames, without)
    assert not np.array_equal(guided.edit(FRAMES, params(control=("canny",))).frames, without)


@pytest.mark.slow
def test_all_at_once_by_two_workers_and_after_an_interruption(guided: Editor, folder: Path, tmp_path: Path) -> None:
    story = [(0, "make it snow", (0.5, 1.0))]
    asked = params(mask=folder / "mask.png", prompts=story, control=("canny",))
    clip, out = folder / "clip.mp4", tmp_path / "again.mp4"
    whole = guided.edit_file(clip, tmp_path / "whole.mp4", asked)
    with Editor.from_pretrained(device="cpu", controlnet=[folder / "net"], workers=2) as crew:
        assert crew.edit_file(clip, tmp_path / "shared.mp4", asked).frames_sha256 == whole.frames_sha256
        interrupt(guided, clip, out, asked)
        resumed = crew.edit_file(clip, out, asked, resume=True)
    assert resumed.resumed_batches == 1
    assert resumed.frames_sha256 == whole.frames_sha256
