"""Small random models of the other families, in the folders that their pipelines save."""

import json
from pathlib import Path

import torch

from fairy.benchmarks.public_models import SCHEDULER as FLOW
from fairy.benchmarks.public_models import SPECIAL, byte_tokenizer

HIDDEN = 32  # channels of text


def write_qwen_tokenizer(folder: Path) -> int:
    """One that spells every byte out; the number of its words."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_dreamlite(folder: Path, *, mobile: bool = True) -> Path:
    """DreamLite's layout: separable convolutions, one head of keys and values, text from Qwen3-VL."""
    from diffusers import AutoencoderTiny, DreamLiteUNetModel
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    words = write_qwen_tokenizer(folder / "processor")
    Qwen2VLImageProcessor(patch_size=16, merge_size=2).save_pretrained(folder / "processor")
    torch.manual_seed(0)
    DreamLiteUNetModel(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=4,
        encoder_hid_dim=HIDDEN,
        encoder_hid_dim_type="text_proj_rms",
        addition_embed_type="time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
        ff_mult=2,
    ).save_pretrained(folder / "unet")
    AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_decoder_blocks=(1,) * 4,
    ).save_pretrained(folder / "vae")
    text = {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": words,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "patch_size": 16,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 256,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    parts = {
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "processor": ["transformers", "Qwen3VLProcessor"],
        "unet": ["diffusers", "DreamLiteUNetModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    return _finished(folder, "DreamLiteMobilePipeline" if mobile else "DreamLitePipeline", parts)


def write_klein(folder: Path, *, kv: bool = False, distilled: bool = True) -> Path:
    """FLUX.2 [klein]'s layout with two blocks of each kind."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = write_qwen_tokenizer(folder / "tokenizer")
    torch.manual_seed(1)
    Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * HIDDEN,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).save_pretrained(folder / "transformer")
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.uniform_(-0.5, 0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    vae.save_pretrained(folder / "vae")
    text = Qwen3Config(
        vocab_size=words,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    Qwen3ForCausalLM(text).save_pretrained(folder / "text_encoder")
    parts = {
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    pipeline = "Flux2KleinKVPipeline" if kv else "Flux2KleinPipeline"
    return _finished(folder, pipeline, parts, **({} if kv else {"is_distilled": distilled}))


def _finished(folder: Path, pipeline: str, parts: dict[str, list[str]], **more: object) -> Path:
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLOW))
    index = {"_class_name": pipeline, **parts, "scheduler": ["diffusers", FLOW["_class_name"]], **more}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
