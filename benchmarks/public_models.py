"""Models of other families at their public sizes, made in code: on the meta device to be counted, or of random weights.

Weights decide no time and no count. What a configuration leaves to its class is the class's own; where the files that
DreamLite is published as say otherwise, they are right and this is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fairy.export.bases.dreamlite import DreamLite
from fairy.export.bases.flux2 import TEXT_LAYERS, Flux2Klein
from fairy.export.bases.vision_text import VisionText
from fairy.export.model import EditModel

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


@dataclass(frozen=True, slots=True)
class Klein:
    """What a FLUX.2 [klein] is made of: blocks of two streams and of one, heads of 128 channels, text of Qwen3."""

    blocks: tuple[int, int]
    heads: int
    text: dict[str, int]
    head_dim: int = 128
    vae: dict[str, Any] | None = None


KLEIN_4B = Klein((5, 20), 24, {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36})
KLEIN_9B = Klein((8, 24), 32, {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36})
_SMALL_KLEIN = Klein(
    (1, 1),
    2,
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 28},
    head_dim=16,
    vae={
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
)
_SMALL_DREAMLITE: dict[str, Any] = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16,
    "ff_mult": 2,
}
_DREAMLITE: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 512,
}
_QWEN3 = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
_SMALL_QWEN3 = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300}


def make_klein(
    device: torch.device, dtype: torch.dtype, what: Klein = KLEIN_4B, *, cached_source: bool = False
) -> EditModel:
    """FLUX.2 [klein] of some size; `cached_source`: a KV model."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    channels = 4 * (what.vae or {}).get("latent_channels", 32)
    rope = what.head_dim // 4
    with torch.device(device):
        transformer = diffusers.Flux2Transformer2DModel(
            in_channels=channels,
            num_layers=what.blocks[0],
            num_single_layers=what.blocks[1],
            attention_head_dim=what.head_dim,
            num_attention_heads=what.heads,
            joint_attention_dim=len(TEXT_LAYERS) * what.text["hidden_size"],
            axes_dims_rope=(rope,) * 4,
            guidance_embeds=False,
        )
        vae = diffusers.AutoencoderKLFlux2(**(what.vae or {}))
        encoder = Qwen3ForCausalLM(Qwen3Config(**what.text, **(_SMALL_QWEN3 if what.vae else _QWEN3)))
    transformer, vae, encoder = (_ready(network, dtype) for network in (transformer, vae, encoder))
    return Flux2Klein(
        f"{what.blocks} blocks",
        transformer,
        vae,
        encoder,
        byte_tokenizer(),
        SCHEDULER,
        {},
        distilled=True,
        cached_source=cached_source,
    )


def make_dreamlite(device: torch.device, dtype: torch.dtype, *, small: bool = False) -> EditModel:
    """DreamLite-mobile, with text from Qwen3-VL-2B."""
    import diffusers
    from transformers import Qwen2VLImageProcessor, Qwen3VLForConditionalGeneration

    text = _qwen3_vl(small=small)
    with torch.device(device):
        unet = diffusers.DreamLiteUNetModel(
            **(_SMALL_DREAMLITE if small else _DREAMLITE),
            encoder_hid_dim=text.text_config.hidden_size,
            encoder_hid_dim_type="text_proj_rms",
            addition_embed_type="time",
        )
        vae = diffusers.AutoencoderTiny()
        encoder = Qwen3VLForConditionalGeneration(text)
    unet, vae, encoder = (_ready(network, dtype) for network in (unet, vae, encoder))
    texts = VisionText(encoder, byte_tokenizer(), Qwen2VLImageProcessor(patch_size=16, merge_size=2))
    return DreamLite("dreamlite-mobile", unet, vae, texts, SCHEDULER, {}, distilled=True)


def _qwen3_vl(*, small: bool) -> Any:
    from transformers import Qwen3VLConfig

    text: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    }
    vision: dict[str, Any] = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
    }
    sections = [24, 20, 20]
    if small:
        sections = [4, 2, 2]
        text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
        vision |= {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 256}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision | {"patch_size": 16},
        image_token_id=SPECIAL.index("<|image_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
    )


def byte_tokenizer() -> Any:
    """Qwen's kind of tokenizer, which spells every byte out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["a"], trainers.BpeTrainer(vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[2], padding_side="right"
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def _ready(network: Any, dtype: torch.dtype) -> Any:
    cast: nn.Module = nn.Module.to(network, dtype)  # diffusers warns of what its own does
    return cast.eval().requires_grad_(False)


Maker = Callable[[torch.device, torch.dtype], EditModel]
PUBLIC: dict[str, Maker] = {
    "klein-4b": make_klein,
    "klein-9b": lambda device, dtype: make_klein(device, dtype, KLEIN_9B),
    "klein-9b-kv": lambda device, dtype: make_klein(device, dtype, KLEIN_9B, cached_source=True),
    "dreamlite-mobile": make_dreamlite,
}
SMALL: dict[str, Maker] = {
    "klein-4b": lambda device, dtype: make_klein(device, dtype, _SMALL_KLEIN),
    "klein-9b-kv": lambda device, dtype: make_klein(device, dtype, _SMALL_KLEIN, cached_source=True),
    "dreamlite-mobile": lambda device, dtype: make_dreamlite(device, dtype, small=True),
}

__all__ = ["KLEIN_4B", "KLEIN_9B", "PUBLIC", "SCHEDULER", "SMALL", "SPECIAL", "byte_tokenizer"]
