"""Equivariant finetuning's augmentation: one random affine map on source and target alike (arXiv 2312.13834, 5.2)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AffineRange:
    """The paper's ranges: degrees, fractions of the side, factors; ``crop`` is the part kept of a side (256/288)."""

    rotation_deg: float = 5.0
    shear_deg: float = 5.0
    shift: float = 0.05
    scale: tuple[float, float] = (0.95, 1.05)
    crop: float = 256 / 288


def random_affine(rng: np.random.Generator, limits: AffineRange = AffineRange()) -> Matrix:
    """A 2x3 matrix from output to input positions, both in [-1, 1] across the picture."""
    angle, shear_x, shear_y = np.deg2rad(
        rng.uniform(-1, 1, 3) * (limits.rotation_deg, limits.shear_deg, limits.shear_deg)
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, np.tan(shear_x)], [np.tan(shear_y), 1]])
    linear = limits.crop / rng.uniform(*limits.scale) * turn @ shear
    offset = rng.uniform(-1, 1, 2) * (2 * limits.shift + 1 - limits.crop)
    return np.concatenate([linear, offset[:, None]], axis=1)


def apply_affine(x_BCHW: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Every picture of the batch under the same map, mirrored beyond its borders; [B, C, H, W] to the same."""
    theta = torch.from_numpy(matrix).to(x_BCHW)[None].expand(x_BCHW.shape[0], -1, -1)
    grid = F.affine_grid(theta, list(x_BCHW.shape), align_corners=False)
    moved = F.grid_sample(x_BCHW, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return moved.clamp(-1, 1)
