"""The affine augmentation moves source and target alike, and as far as the paper says."""

import numpy as np
import torch

from training.equivariant import AffineRange, apply_affine, random_affine


def smooth_pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=False).clamp(-1, 1)


def test_a_pointwise_look_commutes_with_the_map() -> None:
    source = smooth_pictures(2)
    matrix = random_affine(np.random.default_rng(5))
    moved = apply_affine(torch.cat([source, -0.5 * source]), matrix)
    torch.testing.assert_close(moved[2:], -0.5 * moved[:2], atol=2e-2, rtol=0)
    assert (moved[:2] - source).abs().mean() > 0.01


def test_no_map_is_the_identity() -> None:
    nothing = AffineRange(0.0, 0.0, 0.0, (1.0, 1.0), 1.0)
    source = smooth_pictures(1)
    moved = apply_affine(source, random_affine(np.random.default_rng(0), nothing))
    torch.testing.assert_close(moved, source, atol=1e-5, rtol=0)


def test_maps_stay_within_the_papers_ranges() -> None:
    rng = np.random.default_rng(1)
    matrices = np.stack([random_affine(rng) for _ in range(200)])
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0] - matrices[:, 0, 1], matrices[:, 0, 0] + matrices[:, 1, 1]))
    areas = np.linalg.det(matrices[:, :, :2]) * (288 / 256) ** 2
    assert np.abs(angles).max() <= 10.1
    np.testing.assert_allclose(areas, 1, atol=0.13)
    assert np.abs(matrices[:, :, 2]).max() <= 0.1 + 32 / 288 + 1e-9
    assert angles.std() > 1, "degrees"
    assert matrices[:, :, 2].std() > 0.05
