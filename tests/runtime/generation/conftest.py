"""A generator of three small stages with random weights."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fairy.export.bases.causal_tokenizer import CausalVideoTokenizer
from fairy.export.bases.masked_transformer import MaskedVideoTransformer
from fairy.export.bases.video_unet import VideoUNet
from fairy.runtime.models import embedded_generator
from training.package_generator import SCHEDULE

STAGES = [
    {
        "name": "base",
        "kind": "base",
        "network": "base",
        "frames": 4,
        "height": 16,
        "width": 16,
        "fps": 4.0,
        "window": 4,
        "overlap": 2,
        "scheduler": SCHEDULE | {"prediction_type": "v_prediction"},
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
    },
    {"name": "interpolation", "kind": "interpolation", "network": "interpolation", "times": 3},
    {
        "name": "super_resolution",
        "kind": "super_resolution",
        "network": "super_resolution",
        "scale": 2,
        "window": 5,
        "overlap": 1,
        "scheduler": SCHEDULE | {"prediction_type": "sample"},
    },
    {
        "name": "super_resolution_2",
        "kind": "super_resolution",
        "network": "super_resolution",
        "scale": 2,
        "window": 1,
        "enable_time": False,
        "scheduler": SCHEDULE | {"prediction_type": "sample"},
    },
]


def shaken(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The network with random values where it starts with none, so that every layer counts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def base_network(**changes: object) -> VideoUNet:
    torch.manual_seed(0)
    how = {"block_out_channels": (16, 24), "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 8}
    return VideoUNet(**{"patch_size": 2, **how, **changes})


def super_resolution_network() -> VideoUNet:
    torch.manual_seed(1)
    how = {"block_out_channels": (8, 16), "attention": (False, False), "layers_per_block": 1, "norm_num_groups": 0}
    return VideoUNet(condition_channels=3, patch_size=2, adds_to_condition=True, **how)


def interpolation_network() -> VideoUNet:
    torch.manual_seed(2)
    how = {"block_out_channels": (8, 16), "attention": (False, False), "layers_per_block": 1, "norm_num_groups": 0}
    return VideoUNet(in_channels=0, condition_channels=7, patch_size=2, warps=True, **how)


def write_generator(folder: Path) -> Path:
    """A generator's folder with small random networks."""
    made = (base_network(), interpolation_network(), super_resolution_network())
    for number, (name, network) in enumerate(zip(("base", "interpolation", "super_resolution"), made, strict=True)):
        shaken(network, number).save_pretrained(folder / name, safe_serialization=True)
    _write_text_side(folder)
    (folder / "cascade.json").write_text(json.dumps({"name": "small", "stages": STAGES}), encoding="utf-8")
    return folder


def _write_text_side(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(embedded_generator() / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(3)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")


def write_storyteller(folder: Path) -> Path:
    """A Phenaki's folder with small random networks: 2x2 codes a token frame, 2 new ones after 2."""
    torch.manual_seed(4)
    video_tokenizer = CausalVideoTokenizer(
        height=16, width=16, hidden_size=16, num_attention_heads=2, num_spatial_layers=1, temporal_window=3,
        levels=(4, 3, 3),
    )  # fmt: skip
    transformer = MaskedVideoTransformer(
        num_codes=video_tokenizer.num_codes, height=2, width=2, max_frames=2, max_frames_before=2, hidden_size=16,
        num_attention_heads=2, num_layers=2, cross_attention_dim=16,
    )  # fmt: skip
    for number, (name, network) in enumerate((("video_tokenizer", video_tokenizer), ("transformer", transformer))):
        shaken(network, number).save_pretrained(folder / name, safe_serialization=True)
    _write_text_side(folder)
    told = {"fps": 8, "num_inference_steps": 3, "guidance_scale": 3.0, "temperature": 4.0}
    (folder / "phenaki.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_storyteller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_storyteller(tmp_path_factory.mktemp("storyteller"))


@pytest.fixture(scope="session")
def small_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generator(tmp_path_factory.mktemp("generator"))
