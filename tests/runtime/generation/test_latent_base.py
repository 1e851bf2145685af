"""Folders of diffusers' text-to-video pipelines: the same latents in, the same frames out as theirs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fairy.kernels.errors import InputError
from fairy.runtime.generation.generator import Generator
from fairy.runtime.generation.params import GenerateParams
from fairy.runtime.models import embedded_model

SIDE, FRAMES = 64, 5
UNET = {
    "sample_size": SIDE // 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}


def parts() -> dict[str, object]:
    """What both kinds have in common, small and random."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(embedded_model() / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(config).eval(),
        "vae": vae.eval(),
        "scheduler": scheduler,
    }


def picture_unet() -> UNet2DConditionModel:
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(attention_head_dim=4, **UNET, **kinds).eval()


def motion_adapter() -> MotionAdapter:
    torch.manual_seed(7)
    return MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    ).eval()


@pytest.fixture(scope="module")
def text_to_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_to_video")
    kinds = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    unet = UNet3DConditionModel(attention_head_dim=4, **UNET, **kinds).eval()
    TextToVideoSDPipeline(unet=unet, **parts()).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def animate_diff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("animate_diff")
    unet = UNetMotionModel.from_unet2d(picture_unet(), motion_adapter())
    AnimateDiffPipeline(unet=unet, motion_adapter=motion_adapter(), **parts()).save_pretrained(folder)
    return folder


def by_diffusers(cls: type, folder: Path, latents: torch.Tensor, guidance: float) -> np.ndarray:
    pipeline = cls.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        "a red ball", negative_prompt="blue", height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=3,
        guidance_scale=guidance, latents=latents, output_type="np",
    )  # fmt: skip
    return np.asarray(made.frames[0])


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize(
    ("cls", "fixture"), [(TextToVideoSDPipeline, "text_to_video"), (AnimateDiffPipeline, "animate_diff")]
)
def test_frames_are_those_of_diffusers(
    cls: type, fixture: str, guidance: float, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    latents = torch.randn(1, 4, FRAMES, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    wanted = by_diffusers(cls, folder, latents.clone(), guidance)
    params = GenerateParams(
        "a red ball", negative_prompt="blue", num_frames=FRAMES, num_inference_steps=3, guidance_scale=guidance
    )
    with Generator.from_pretrained(folder) as generator:
        made = generator.generate(params, latents=latents[0].transpose(0, 1)).frames
    assert made.shape == wanted.shape
    assert np.abs(made - wanted * 255).max() <= 1.5
    assert made.std() > 1


def test_a_motion_adapter_moves_a_picture_model(animate_diff: Path, tmp_path: Path) -> None:
    StableDiffusionPipeline(
        unet=picture_unet(), safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts()
    ).save_pretrained(tmp_path / "pictures")
    motion_adapter().save_pretrained(tmp_path / "adapter")
    torch.manual_seed(0)
    params = GenerateParams("a red ball", num_frames=3, num_inference_steps=2, size=(32, 64))
    with Generator.from_pretrained(tmp_path / "pictures", motion_adapter=tmp_path / "adapter") as generator:
        assert generator.generate(params).frames.shape == (3, 64, 32, 3)
    with pytest.raises(InputError, match="needs one: motion_adapter"):
        Generator.from_pretrained(tmp_path / "pictures")
    with pytest.raises(InputError, match="has no use for one"):
        Generator.from_pretrained(animate_diff, motion_adapter=tmp_path / "adapter")


def test_weights_that_are_missing_are_not_left_to_chance(text_to_video: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_to_video, tmp_path / "holes")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_out.weight"]
    save_file(tensors, weights)
    with Generator.from_pretrained(folder) as generator, pytest.raises(InputError, match="lacks weights, conv_out"):
        generator.generate(GenerateParams("a red ball", num_frames=1, num_inference_steps=1))


def test_a_first_frame_is_refused_before_anything_is_loaded(text_to_video: Path) -> None:
    with Generator.from_pretrained(text_to_video) as generator, pytest.raises(InputError, match="image = 'a.png'"):
        generator.resolve(GenerateParams("a red ball", image="a.png"))


def test_an_editor_is_no_generator() -> None:
    with pytest.raises(InputError, match="makes no video from text"):
        Generator.from_pretrained(embedded_model())


def test_long_clips_are_made_in_windows_by_any_workers(text_to_video: Path) -> None:
    params = GenerateParams("a red ball", num_frames=19, num_inference_steps=2, size=16)
    made = []
    for workers in (1, 2):
        with Generator.from_pretrained(text_to_video, workers=workers) as generator:
            made.append(generator.generate(params))
    assert made[0].frames.shape == (19, 16, 16, 3)
    assert made[0].report.frames_sha256 == made[1].report.frames_sha256
