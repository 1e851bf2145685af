"""IP-Adapter: a picture as a prompt (Ye et al., arXiv 2308.06721), for UNets of Stable Diffusion 1.5's kind.

A CLIP encoder makes features of the picture, a projection makes tokens of them, and every cross-attention layer of the
UNet reads these beside the text, by keys and values of their own: `to_k_ip` and `to_v_ip`, which loading adds to the
layer. UNet graphs that read them take the tokens as inputs:

    style [groups, tokens, channels]   style_scale [groups] float32, how much of what is read of them is added
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairy.export.bases.control import CONTROLLED, SUFFIXES
from fairy.export.graphs import GraphSpec, TensorSpec
from fairy.kernels.errors import InputError

SUFFIX = "_styled"
_FACE_PLUS = "perceiver_resampler.proj_in.weight"  # of FaceID, whose features are not CLIP's


@dataclass(frozen=True, slots=True)
class IpAdapter:
    """An IP-Adapter whose keys and values are in the UNet.

    Attributes:
        file: its weights. folder: of the encoder, a `CLIPVisionModelWithProjection`.
        encoder, processor, projection: from a picture to tokens, in float32.
        tokens: how many there are.
        pooled: the projection takes the encoder's one embedding, else its last hidden states but one.
    """

    file: Path
    folder: Path
    encoder: Any
    processor: Any
    projection: Any
    tokens: int
    pooled: bool

    @torch.inference_mode()
    def features(self, picture: Any) -> tuple[Tensor, Tensor]:
        """Tokens of a picture uint8 [H, W, 3], and those of none: float32 [tokens, channels] each.

        As in diffusers: none is an embedding of zeros, or a picture of zeros after normalising.
        """
        pixels = self.processor(images=[picture], return_tensors="pt").pixel_values.to(self.encoder.device)
        if self.pooled:
            embedding = self.encoder(pixels).image_embeds
            both = torch.cat([embedding, torch.zeros_like(embedding)])
        else:
            both = torch.cat([self._hidden(pixels), self._hidden(torch.zeros_like(pixels))])
        style, none = self.projection(both)
        return style, none

    def _hidden(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return states


def find_files(given: str | Path) -> tuple[Path, Path]:
    """The file of weights and the encoder's folder beside it: from that file, or from their folder.

    Raises:
        InputError: one of them is missing; the sentence says which and where.
    """
    path = Path(given).expanduser()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or files[0].suffix != ".safetensors" or not files[0].is_file():
        found = ", ".join(file.name for file in files) or "none"
        problem = f"is no single .safetensors file, nor a folder with one (found: {found})"
        raise InputError(problem, name="ip_adapter", value=str(given), remedy="name the file of weights")
    folder = files[0].parent / "image_encoder"
    if not (folder / "config.json").is_file():
        remedy = f"put the encoder's folder there: {folder}"
        raise InputError("has no image_encoder beside it", name="ip_adapter", value=str(given), remedy=remedy)
    return files[0], folder


def load_ip_adapter(given: str | Path, unet: Any, device: str | torch.device) -> IpAdapter:
    """Read an IP-Adapter and add its keys and values to a diffusers UNet, in the UNet's precision.

    Raises:
        InputError: files are missing, broken, or made for another UNet.
    """
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    file, folder = find_files(given)
    projected, attended = _tensors(file)
    layers = [name for name in unet.attn_processors if name.endswith(".attn2.processor")]
    try:
        made = unet._convert_ip_adapter_attn_to_diffusers(
            [{"image_proj": projected, "ip_adapter": attended}], low_cpu_mem_usage=False
        )
        projection = unet._convert_ip_adapter_image_proj_to_diffusers(projected, low_cpu_mem_usage=False)
        pooled = "proj.weight" in projected
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        side = encoder.config.image_size
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        found = IpAdapter(file, folder, encoder.eval(), processor, projection.float().eval(), 0, pooled)
        style, _ = found.features(torch.zeros((side, side, 3), dtype=torch.uint8).numpy())
        fits = style.shape[-1] == unet.config.cross_attention_dim and len(attended) == 2 * len(layers)
    except Exception as error:  # what the library raises for files of another kind is not its to promise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise _misfit(given, reason) from error
    if not fits:
        raise _misfit(given, f"{len(attended)} weights of {2 * len(layers)}, tokens of {style.shape[-1]} channels")
    like = next(unet.parameters())
    for name in layers:
        attention, of_layer = unet.get_submodule(name.removesuffix(".processor")), made[name]
        attention.to_k_ip = of_layer.to_k_ip[0].to(like.dtype)
        attention.to_v_ip = of_layer.to_v_ip[0].to(like.dtype)
    networks = {"encoder": encoder.eval(), "projection": projection.float().eval()}
    there = {name: network.requires_grad_(False).to(device) for name, network in networks.items()}
    return replace(found, tokens=len(style), **there)


def styled(spec: GraphSpec, text_channels: int, tokens: int) -> GraphSpec:
    """A UNet's graph that reads a picture's tokens beside the text."""
    own = [tensor for tensor in spec.inputs if not tensor.name.startswith("context.")]
    tensors = (
        TensorSpec("style", "float", ("groups", tokens, text_channels)),
        TensorSpec("style_scale", "float32", ("groups",)),
    )
    return replace(spec, name=spec.name + SUFFIX, inputs=(*own, *tensors, *spec.inputs[len(own) :]))


def styled_graphs(model: Any, graphs: list[GraphSpec]) -> list[GraphSpec]:
    """The UNet's graphs that read a picture's tokens, those with controls among them."""
    if model.ip_adapter is None:
        return []
    ends = ("", *SUFFIXES.values(), "".join(SUFFIXES.values()))
    names = {name + end for name in CONTROLLED for end in ends}
    return [styled(spec, model.text_channels, model.ip_adapter.tokens) for spec in graphs if spec.name in names]


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the projection and of the attention layers."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors' own kind has no public base
        raise _misfit(file, "it is not a whole safetensors file") from error
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise _misfit(file, f"its key {key} is not an IP-Adapter's")
        parts[part][name] = tensor
    found = parts["image_proj"]
    if _FACE_PLUS in found or ("norm.weight" in found and not {"proj.weight", "proj.3.weight"} & found.keys()):
        raise _misfit(file, "FaceID needs a face recogniser, which is not served")
    return parts["image_proj"], parts["ip_adapter"]


def _misfit(given: str | Path, reason: str) -> InputError:
    remedy = "choose an IP-Adapter made for Stable Diffusion 1.5, with its own image_encoder"
    return InputError(f"does not fit the model ({reason})", name="ip_adapter", value=str(given), remedy=remedy)
