"""A whole model in diffusers' format with random weights: Stable Diffusion 1.5's InstructPix2Pix, or a small one.

Weights decide no time. They are drawn by torch's own rules on the device that will use them, which keeps activations
within float16; what comes out is no picture of anything.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from fairy.benchmarks.ladder.networks import SCHEDULER, Size, make_networks
from fairy.runtime import embedded_model

_SMALL_TEXT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
_FULL_TEXT: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}


def write_model(folder: Path, size: Size, device: torch.device, dtype: torch.dtype) -> Path:
    """Write a model whose UNet and autoencoder have a size's layout; the tokenizer is the embedded model's.

    The same weights every time on one kind of device, so that edits of different processes can be compared.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    networks = make_networks(size, device, dtype)
    networks.unet.save_pretrained(folder / "unet")
    networks.vae.save_pretrained(folder / "vae")
    shutil.copytree(embedded_model() / "tokenizer", folder / "tokenizer")
    settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    settings["model_max_length"] = size.tokens
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    text = _SMALL_TEXT if size.unet else _FULL_TEXT
    heads = text["hidden_size"] // 64 if text["hidden_size"] > 64 else 4
    config = CLIPTextConfig(**text, num_attention_heads=heads, max_position_embeddings=size.tokens)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        CLIPTextModel(config).to(dtype).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    scheduler = {**SCHEDULER, "_class_name": "EulerAncestralDiscreteScheduler"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((embedded_model() / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
