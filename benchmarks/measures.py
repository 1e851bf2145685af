"""Figures of quality: how close to the target, how steady along the true motion, how alike successive frames are.

Frames are uint8 [T, H, W, 3]; flow and masks as `training.scenes.backward_flow` gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Flow = NDArray[np.float32]  # [H, W, 2], pixels (x, y) from a frame to where it came from
Mask = NDArray[np.bool_]  # [H, W], True where the same surface is seen in both frames


def psnr(frames: Frames, target: Frames, mask: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all frames, inside the mask [T, H, W] where one is given."""
    error = ((frames.astype(np.float64) - target) / 255.0) ** 2
    error = error.mean(-1)
    return float(-10 * np.log10(max(float((error if mask is None else error[mask]).mean()), 1e-10)))


def warp_error(frames: Frames, flows: Sequence[Flow], masks: Sequence[Mask]) -> float:
    """Mean squared difference between every frame and its predecessor moved along the true flow, times 10⁴.

    Values in 0…1 before squaring; only pixels whose surface is visible in both frames count. `flows[t]` belongs to
    frame t + 1. What the picture itself shows is left out, so that flicker remains. Source of the measure: Lai et
    al., Learning Blind Video Temporal Consistency (ECCV 2018), with the true flow in place of an estimated one.
    """
    total, count = 0.0, 0
    for before, after, flow, mask in zip(frames, frames[1:], flows, masks, strict=False):
        error = ((after.astype(np.float64) - warp(before, flow)) / 255.0) ** 2
        total += float(error.mean(-1)[mask].sum())
        count += int(mask.sum())
    return 1e4 * total / max(count, 1)


def warp(frame: Frames, flow: Flow) -> NDArray[np.float64]:
    """A frame [H, W, 3] seen from the next frame's pixels: bilinear samples at pixel + flow."""
    height, width = frame.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x = (columns + flow[..., 0]) * 2 / (width - 1) - 1
    y = (rows + flow[..., 1]) * 2 / (height - 1) - 1
    grid = torch.from_numpy(np.stack([x, y], -1)).double().unsqueeze(0)
    picture = torch.from_numpy(frame.copy()).double().permute(2, 0, 1).unsqueeze(0)
    moved = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return moved[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % confidence interval, over `count` cases."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g}…{self.high:.4g})"


def estimate(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean and 95 % bootstrap interval (Efron 1979): cases drawn anew `draws` times with replacement."""
    data = np.asarray(values, np.float64)
    if len(data) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    picks = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    low, high = np.percentile(data[picks].mean(1), [2.5, 97.5])
    return Estimate(float(data.mean()), float(low), float(high), len(data))


class FrameFeatures:
    """Features of single frames, for Tem-Con. `name` says whose they are; only CLIP's compare with the paper's."""

    def __init__(self, vae: Any) -> None:
        self._clip, self._processor = _clip()
        self._vae = vae
        self.name = "CLIP ViT-B/32" if self._clip is not None else "embedded autoencoder, 4×4 pooled"

    @torch.inference_mode()
    def __call__(self, frames: Frames) -> torch.Tensor:
        """[T, features] of unit length."""
        if self._clip is not None:
            inputs = self._processor(images=list(frames), return_tensors="pt")
            return F.normalize(self._clip.get_image_features(**inputs), dim=-1)
        rows = []
        for frame in frames:
            image = torch.from_numpy(frame.copy()).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1
            height, width = (side // 8 * 8 for side in image.shape[-2:])
            latents = self._vae.encode(image[..., :height, :width]).latent_dist.mode()
            rows.append(F.adaptive_avg_pool2d(latents, 4).flatten())
        return F.normalize(torch.stack(rows), dim=-1)


def tem_con(features: torch.Tensor) -> float:
    """Mean cosine of successive frames' features (Fairy, arXiv 2312.13834, §6)."""
    return float((features[1:] * features[:-1]).sum(-1).mean())


def _clip() -> tuple[Any, Any]:
    """CLIP, where its weights are already on this machine; nothing is downloaded."""
    from transformers import CLIPImageProcessor, CLIPModel

    name = "openai/clip-vit-base-patch32"
    try:
        return CLIPModel.from_pretrained(name, local_files_only=True), CLIPImageProcessor.from_pretrained(
            name, local_files_only=True
        )
    except (OSError, ValueError):
        return None, None
