"""What the cached pairs hold beside latents: which kind of object is where."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.instructions import INSTRUCTIONS
from training.latents import PairsPlan, _shares, scene_pairs
from training.random_scenes import random_scene
from training.scenes import render
from training.shapes import SHAPES


@pytest.mark.parametrize("seed", [3, 8, 21])
def test_shapes_are_what_most_pixels_of_a_latent_show(seed: int) -> None:
    _, shapes, _ = scene_pairs(PairsPlan(edits=1), seed)
    scene = random_scene(seed)
    kinds = np.array([0, *(1 + SHAPES.index(sprite.shape) for sprite in scene.sprites)])
    blocks = kinds[render(scene).labels].reshape(32, 8, 32, 8).swapaxes(1, 2).reshape(32, 32, 64)
    counts = np.stack([(blocks == kind).sum(axis=2) for kind in range(7)], axis=2)
    assert shapes.shape == (32, 32)
    shown = np.take_along_axis(counts, shapes.numpy()[..., None].astype(int), axis=2)[..., 0]
    np.testing.assert_array_equal(shown, counts.max(axis=2))
    assert len(np.unique(shapes)) > 2, "the scene is to have objects in it"


def test_shapes_move_with_the_picture() -> None:
    """Under an affine map some latents show another kind of object than without, but most of the kinds stay."""
    plan = PairsPlan(edits=1)
    _, still, _ = scene_pairs(plan, 3)
    _, moved, _ = scene_pairs(replace(plan, affine=True), 3)
    changed = float((still != moved).float().mean())
    assert 0.01 < changed < 0.5, changed
    assert torch.isin(moved.unique(), still.unique()).all()


def test_instructions_are_drawn_in_their_shares() -> None:
    names = list(INSTRUCTIONS)
    shares = dict(zip(names, _shares(names), strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    for name in names:
        assert shares[name] / shares["sepia"] == pytest.approx(INSTRUCTIONS[name].share)
    assert shares["reshape"] > shares["recolour"] > shares["poster"] > shares["sepia"]
