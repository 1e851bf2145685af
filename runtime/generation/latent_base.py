"""Base stages from public weights: text to latents of 16 frames or so, and the autoencoder that makes pictures of them.

Two kinds of folders in diffusers' format are read: `TextToVideoSDPipeline` (a `UNet3DConditionModel`: ModelScope,
CC-BY-NC-4.0; ZeroScope) and `AnimateDiffPipeline` (a `UNetMotionModel`; any Stable Diffusion 1.5 checkpoint with a
motion adapter: their own licences, CreativeML OpenRAIL-M and Apache-2.0 as a rule). Safetensors alone, no remote code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fairy.engines.engine import Usage
from fairy.export.checkpoint import read_json
from fairy.export.loading import load_network, load_tokenizer, text_features
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.sampler import scale_model_input
from fairy.runtime.generation.cascade import Cascade, Stage
from fairy.runtime.generation.networks import check_finite, schedule_of, stage_scale

INDEX = "model_index.json"
UNETS = {
    "TextToVideoSDPipeline": "UNet3DConditionModel",
    "AnimateDiffPipeline": "UNetMotionModel",
    "StableDiffusionPipeline": "UNet2DConditionModel",  # with a motion adapter
}
_FRAMES, _OVERLAP, _STEPS, _GUIDANCE = 16, 8, 25, 7.5
_RATE = 8.0  # frames a second, which these networks are not told


class LatentNetworks:
    """The networks of a diffusers folder, as `CascadeNetworks` of one stage."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, *, motion_adapter: Path | None = None
    ) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._adapter = motion_adapter
        self.kind = check_index(folder, motion_adapter)
        self.cascade = Cascade((latent_stage(folder),), folder.name)
        self._parts: dict[str, Any] = {}

    backend_name = "eager"

    def engines(self) -> list[str]:
        """None is built of these networks."""
        return []

    def take_usage(self) -> Usage:
        """Nothing but the networks themselves ran."""
        return Usage()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, [texts, L, C]."""
        return text_features(self._part("tokenizer"), self._part("text_encoder"), texts)

    @torch.inference_mode()
    def predict_base(self, stage: Stage, index: int, x_FCHW: Tensor, fps: float, text_2LC: Tensor) -> Tensor:
        """The UNet's guided output for a window at one step: float32 [F, C, h, w] on the CPU; it knows no rate."""
        unet, schedule = self._part("unet"), schedule_of(stage)
        scale = stage_scale(stage, index)
        guided = scale != 1.0
        features = (text_2LC if guided else text_2LC[1:]).to(self.device, self.dtype)
        if type(unet).__name__ == "UNetMotionModel":
            features = features.repeat_interleave(len(x_FCHW), dim=0)
        x = scale_model_input(schedule, index, x_FCHW).transpose(0, 1)[None].to(self.device, self.dtype)
        count = 2 if guided else 1
        time = torch.tensor(schedule.timesteps[index], device=self.device)
        out = unet(x.expand(count, -1, -1, -1, -1), time, encoder_hidden_states=features).sample.float()
        check_finite(out, stage.name)
        one = out[0] + scale * (out[1] - out[0]) if guided else out[0]
        return cast(Tensor, one.transpose(0, 1).cpu())

    @torch.inference_mode()
    def decode_base(self, latents_CHW: Tensor) -> Tensor:
        """One frame's latents [C, h, w] as a picture float32 [3, H, W] in 0 to 1."""
        vae = self._part("vae")
        latents = latents_CHW[None].to(self.device, self.dtype) / vae.config.scaling_factor
        picture = vae.decode(latents).sample[0].float()
        check_finite(picture, "decoder")
        made: Tensor = ((picture + 1) / 2).clamp(0, 1).cpu()
        return made

    def _part(self, name: str) -> Any:
        if name not in self._parts:
            self._parts[name] = self._load(name)
        return self._parts[name]

    def _load(self, name: str) -> Any:
        import diffusers
        import transformers

        where = self.folder / name
        if name == "tokenizer":
            return load_tokenizer(where)
        classes = {"text_encoder": transformers.CLIPTextModel, "vae": diffusers.AutoencoderKL}
        made = load_network(classes.get(name) or getattr(diffusers, UNETS[self.kind]), where, self.dtype)
        if name == "unet" and self._adapter is not None:
            adapter = load_network(diffusers.MotionAdapter, self._adapter, self.dtype)
            made = diffusers.UNetMotionModel.from_unet2d(made, adapter).to(self.dtype)
            made = made.eval().requires_grad_(False)
        return made.to(self.device)


def is_latent(folder: Path) -> bool:
    """Whether a folder is in diffusers' format and not a cascade."""
    return (folder / INDEX).is_file() and not (folder / "cascade.json").is_file()


def check_index(folder: Path, motion_adapter: Path | None) -> str:
    """The kind of pipeline that a folder holds. Raises InputError where it cannot generate video."""
    index = read_json(folder / INDEX)
    kind = str(index.get("_class_name"))
    if kind not in UNETS:
        raise InputError(f"{folder} holds a {kind}, which makes no video from text; choose one of {', '.join(UNETS)}.")
    if (kind == "StableDiffusionPipeline") != (motion_adapter is not None):
        remedy = "needs one" if motion_adapter is None else "has no use for one"
        raise InputError(f"The {kind} in {folder} {remedy}: motion_adapter (--motion-adapter), a folder.")
    unet = index.get("unet")
    found = unet[1] if isinstance(unet, list) and len(unet) == 2 else unet
    if found != UNETS[kind]:
        raise InputError(f"{folder} has the unet {found}, but only {UNETS[kind]} can be run.")
    return kind


def latent_stage(folder: Path) -> Stage:
    """The base stage that a folder describes: its usual size, windows of 16 frames that share 8."""
    unet, vae = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    factor = 2 ** (len(vae.get("block_out_channels", [1])) - 1)
    sample = unet.get("sample_size") or 64
    height, width = sample if isinstance(sample, list) else (sample, sample)
    return Stage(
        "base",
        "base",
        "unet",
        frames=_FRAMES,
        height=height * factor,
        width=width * factor,
        fps=_RATE,
        window=_FRAMES,
        overlap=_OVERLAP,
        channels=int(vae.get("latent_channels", 4)),
        factor=factor,
        multiple=factor << (len(unet.get("block_out_channels", [1])) - 1),
        scheduler=scheduler,
        num_inference_steps=_STEPS,
        guidance_scale=_GUIDANCE,
    )
