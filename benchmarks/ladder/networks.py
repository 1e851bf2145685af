"""Networks with random weights: InstructPix2Pix of Stable Diffusion 1.5 in full size, and the same layout made small.

Weights decide no time, so nothing is downloaded. Outputs mean nothing; only how much two ways of computing the same
differ does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fairy.export.bases.stable_diffusion import UNetGraph, VaeDecoderGraph, VaeEncoderGraph
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import GraphSpec, anchor_layers, frame_layers, self_attention_layers, unet_spec

BRANCHES = 3

# The public configuration of timbrooks/instruct-pix2pix: 859.5 and 83.7 million parameters.
SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 8,
    "out_channels": 4,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


@dataclass(frozen=True, slots=True)
class Size:
    """How large networks and pictures are.

    Attributes:
        unet, vae: what differs from the public configuration.
        height, width: of a picture, in pixels.
        frames: of a micro-batch; anchors: K; tokens: of the text.
    """

    name: str
    height: int
    width: int
    frames: int
    anchors: int = 3
    tokens: int = 77
    unet: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)

    @property
    def latent(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.height // 8, self.width // 8


FULL = Size("full", 384, 512, frames=15)
SMALL = Size(
    "small",
    128,
    128,
    frames=3,
    unet={"block_out_channels": (64, 128, 192, 192), "cross_attention_dim": 64, "layers_per_block": 1},
    vae={"block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8, "layers_per_block": 1},
)


def make_networks(size: Size, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """A checkpoint without text encoder and tokenizer, its weights drawn from a fixed seed.

    They are drawn where they will be: 0.9 billion numbers take one thread of a processor half a minute.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel(**{**SD15_UNET, **size.unet})
        vae: Any = AutoencoderKL(**{**SD15_VAE, **size.vae})
    unet, vae = (nn.Module.to(net.eval().requires_grad_(False), device, dtype) for net in (unet, vae))
    return Checkpoint(f"random, {size.name}", unet, vae, None, None, SCHEDULER, {})


def unet_graphs(unet: Any) -> dict[str, GraphSpec]:
    """The UNet's graphs without anchors, of phase A and of phase B."""
    layers, text = self_attention_layers(unet), unet.config.cross_attention_dim
    rules = {"unet": layers, "unet_anchor": anchor_layers(layers, "all"), "unet_frame": frame_layers(layers, "all")}
    return {
        name: unet_spec(name, rule, in_channels=8, out_channels=4, text_channels=text) for name, rule in rules.items()
    }


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of the plain form, 2 a multiply-add: of one sample-forward by graph, of one frame's VAE."""

    unet: dict[str, int]
    encode: int
    decode: int


def count_flops(size: Size) -> Flops:
    """Operations of one sample with self-attention alone, in phase A and in phase B, and of the autoencoder.

    Convolutions and matrix products are counted on the meta device, attention by its formula, 4·queries·keys·channels.
    """
    with torch.device("meta"):
        checkpoint = _meta_networks(size)
        height, width = size.latent
        sample = torch.empty(1, 1, 8, height, width)
        text = torch.empty(1, size.tokens, checkpoint.text_channels)
        image, latents = torch.empty(1, 3, size.height, size.width), torch.empty(1, 4, height, width)
    graphs = unet_graphs(checkpoint.unet)
    plain = graphs["unet"]
    rest = _counted(UNetGraph(checkpoint.unet, plain, _no_attention), sample, torch.empty(1, device="meta"), text)
    cross = sum(4 * _tokens(size, layer.level) * size.tokens * layer.channels for layer in plain.layers)
    own = sum(4 * _tokens(size, layer.level) ** 2 * layer.channels for layer in plain.layers)
    frames = {"unet": 1, "unet_anchor": size.anchors, "unet_frame": size.anchors + 1}
    return Flops(
        {name: rest + cross + own * count for name, count in frames.items()},
        _counted(VaeEncoderGraph(checkpoint.vae), image),
        _counted(VaeDecoderGraph(checkpoint.vae), latents),
    )


def _meta_networks(size: Size) -> Checkpoint:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet, vae = UNet2DConditionModel(**{**SD15_UNET, **size.unet}), AutoencoderKL(**{**SD15_VAE, **size.vae})
    return Checkpoint("meta", unet.eval(), vae.eval(), None, None, SCHEDULER, {})


def _counted(module: nn.Module, *inputs: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return int(counter.get_total_flops())


def _no_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor] = (),
    context_v: Sequence[Tensor] = (),
    *,
    heads: int,
) -> Tensor:
    return torch.empty_like(q)


def _tokens(size: Size, level: int) -> int:
    return (size.latent[0] >> level) * (size.latent[1] >> level)
