"""A small IP-Adapter for `training.small_controls`, with an encoder of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fairy.export.checkpoint import load_checkpoint
from fairy.runtime.models import embedded_model
from training.distil_editor import encode_text
from training.pictures import Bytes
from training.small_fits import BATCH, Pairs, fit, levels_of, noisy, quarters

STYLED = "a painting"
RARE = 3.0  # weight of pixels that show what is named, which are few
SEEN, WIDTH = 64, 64  # sides of the encoders' pictures, and channels
_LAYERS = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def make_ip_adapter(out: Path, steps: int) -> None:
    """An IP-Adapter by the names of the published files, and a small CLIP encoder that learns with it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    checkpoint = load_checkpoint(embedded_model())
    levels, sources = levels_of(checkpoint), quarters()
    styles = np.roll(sources, 5, axis=0)
    pairs = Pairs(checkpoint, sources, np.stack([recoloured(*each) for each in zip(sources, styles, strict=True)]))
    text, seen = encode_text(checkpoint, STYLED).expand(BATCH, -1, -1), clip_pixels(styles)
    sizes: dict[str, Any] = {**_LAYERS, "projection_dim": WIDTH, "image_size": SEEN, "patch_size": 8}
    encoder: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)).train()
    unet = checkpoint.unet
    unet._load_ip_adapter_weights([first_weights(unet)])
    learned = [p.requires_grad_(True) for name, p in unet.named_parameters() if "_ip." in name or "hid_proj" in name]

    def loss_at(step: int) -> Tensor:
        chosen, image, clean = pairs.batch(step)
        z, time_B, v = noisy(levels, clean, step)
        shown = {"image_embeds": [encoder(seen[chosen]).image_embeds[:, None]]}
        return F.mse_loss(unet(torch.cat([z, image], 1), time_B, text, added_cond_kwargs=shown).sample, v)

    fit([*learned, *encoder.parameters()], loss_at, steps, 2e-3)
    encoder.save_pretrained(out / "ip_adapter" / "image_encoder")
    save_ip_adapter(unet, out / "ip_adapter" / "ip_adapter.safetensors")


def first_weights(unet: Any) -> dict[str, dict[str, Tensor]]:
    """Where learning begins: four random tokens, read by the UNet's own keys and values of texts."""
    channels, attended = unet.config.cross_attention_dim, {}
    for i, attention in enumerate(cross_attentions(unet)):
        for to in ("to_k", "to_v"):
            attended[f"{2 * i + 1}.{to}_ip.weight"] = getattr(attention, to).weight.detach().clone()
    projection = {"proj.weight": torch.randn(4 * channels, WIDTH) / WIDTH**0.5, "proj.bias": torch.zeros(4 * channels)}
    projection |= {"norm.weight": torch.ones(channels), "norm.bias": torch.zeros(channels)}
    return {"image_proj": projection, "ip_adapter": attended}


def save_ip_adapter(unet: Any, path: Path) -> None:
    """What was learned, by the names of the published files."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    modules = {"image_proj.proj": projection.image_embeds, "image_proj.norm": projection.norm}
    for i, attention in enumerate(cross_attentions(unet)):
        for to in ("to_k_ip", "to_v_ip"):
            modules[f"ip_adapter.{2 * i + 1}.{to}"] = getattr(attention.processor, to)[0]
    found = {f"{name}.{n}": t for name, module in modules.items() for n, t in module.state_dict().items()}
    save_file({key: t.detach().clone().contiguous() for key, t in found.items()}, path)


def cross_attentions(unet: Any) -> list[Any]:
    """The layers that read the text, in the order in which the published files count them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return [unet.get_submodule(name) for name in names]


def clip_pixels(pictures: Bytes) -> Tensor:
    """Pictures as CLIP's encoders take them: float32 [N, 3, SEEN, SEEN]."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    process = CLIPImageProcessorPil(size={"shortest_edge": SEEN}, crop_size={"height": SEEN, "width": SEEN})
    pixels: Tensor = process(images=list(pictures), return_tensors="pt").pixel_values
    return pixels


def recoloured(picture: Bytes, style: Bytes) -> Bytes:
    """A picture from the dark to the light colour of another one: the means of its darkest and lightest fifths."""
    colours = style.reshape(-1, 3)[np.argsort(style.reshape(-1, 3) @ _LUMA)]
    fifth = len(colours) // 5
    weight = (picture @ _LUMA / 255)[..., None]
    mixed = (1 - weight) * colours[:fifth].mean(axis=0) + weight * colours[-fifth:].mean(axis=0)
    return np.asarray(mixed.round().astype(np.uint8))
