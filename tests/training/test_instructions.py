"""Targets are exact, masks are right, words are known to the tokenizer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import training
from training.changes import reshaped
from training.instructions import INSTRUCTIONS, corpus, edit_mask, make_edit, plural
from training.latents import PairsPlan, scene_pairs
from training.looks import LOOKS, apply_look
from training.random_scenes import random_scene
from training.scenes import Motion, Scene, Sprite, render
from training.shapes import SHAPES
from training.text import LENGTH, build_tokenizer, token_ids
from training.text16 import build_tokenizer16
from training.textures import NAMED_COLOURS, Texture


def test_there_are_enough_instructions_of_each_kind() -> None:
    kinds = [instruction.kind for instruction in INSTRUCTIONS.values()]
    assert len(INSTRUCTIONS) >= 16
    assert {kind: kinds.count(kind) >= 3 for kind in kinds} == {"global": True, "local": True, "free": True}
    assert all(len(instruction.wordings) >= 4 for instruction in INSTRUCTIONS.values())


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_a_pure_function_within_range(name: str) -> None:
    image = render(random_scene(3, 64, 64)).image
    kept = image.copy()
    first, second = apply_look(name, image), apply_look(name, image)
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_array_equal(first, second)
    assert (first.shape, first.dtype) == (image.shape, np.float32)
    assert 0 <= first.min() <= first.max() <= 1
    assert np.abs(first - image).mean() > 0.02


@pytest.mark.parametrize("seed", [3, 4, 7])
def test_a_poster_has_few_colours(seed: int) -> None:
    """More of every channel is nearly off or nearly full than in the picture, and neither is all of it."""
    image = render(random_scene(seed, 128, 128)).image

    def inked(picture: np.ndarray) -> tuple[float, float]:
        return float((picture < 0.14).mean()), float((picture > 0.9).mean())

    before, after = inked(image), inked(apply_look("poster", image))
    assert sum(after) > sum(before) + 0.2, (before, after)
    assert min(after) > 0.05, after


def test_global_targets_follow_the_moving_scene() -> None:
    scene = random_scene(4, 64, 64)
    edit = make_edit("sepia", scene, np.random.default_rng(0))
    expected = apply_look("sepia", render(scene, 2.0).image)
    np.testing.assert_array_equal(edit.target(2.0), expected)


@pytest.mark.parametrize("seed", [2, 5, 9])
def test_recolouring_changes_the_named_shape_only(seed: int) -> None:
    scene = random_scene(seed, 96, 96, photos=0)
    edit = make_edit("recolour", scene, np.random.default_rng(seed), wording=0)
    _, _, shapes, colour = edit.text.split()
    shape = {plural(shape): shape for shape in SHAPES}[shapes]
    frame = render(scene)
    changed = edit_mask(frame, edit.target())
    touched = {scene.sprites[label - 1].shape for label in np.unique(frame.labels[changed]) if label}
    named = [sprite for sprite in edit.scene.sprites if sprite.shape == shape]
    assert named
    assert all(sprite.texture.light == NAMED_COLOURS[colour] for sprite in named)
    inside = np.isin(frame.labels, [i + 1 for i, s in enumerate(scene.sprites) if s.shape == shape])
    assert touched
    stray = (changed & ~_grown(inside)).sum()
    assert stray <= 0.03 * changed.sum(), "more than the thin tips of stars"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_shape_stands_upright_and_its_pattern_stays_in_place(shape: str) -> None:
    """The target follows from the picture: where both shapes cover a pixel, its colour is the same."""
    checks = Texture("checks", 9.0, 0.3, (0.9, 0.2, 0.1), (0.1, 0.3, 0.8))
    plain = Texture("plain", 9.0, 0.0, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
    old = next(other for other in SHAPES if other != shape)
    sprites = [Sprite(old, checks, (47.3, 48.6), 30.0, angle, Motion()) for angle in (0.7, 2.9)]
    scenes = [Scene(96, 96, plain, (sprite,)) for sprite in sprites]
    edited = [replace(scene, sprites=(reshaped(scene.sprites[0], shape),)) for scene in scenes]
    first, second = (render(scene) for scene in edited)
    np.testing.assert_array_equal(first.labels, second.labels, "the old angle is not to be seen in the new shape")
    for scene, after in zip(scenes, (first, second), strict=True):
        before = render(scene)
        both = ~_grown(_grown((before.labels == 0) | (after.labels == 0)))
        assert both.sum() > 200
        np.testing.assert_allclose(before.image[both], after.image[both], atol=1e-3)


@pytest.mark.parametrize("shape", ["triangle", "star", "square", "cross"])
def test_upright_shapes_are_mirrored_left_to_right_and_not_heavy_above(shape: str) -> None:
    plain = Texture("plain", 9.0, 0.0, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    dark = replace(plain, light=(0.0, 0.0, 0.0))
    sprite = reshaped(Sprite("circle", plain, (47.5, 47.5), 40.0, 1.3, Motion()), shape)
    shown = render(Scene(96, 96, dark, (sprite,))).labels > 0
    assert (shown != shown[:, ::-1]).sum() < 0.02 * shown.sum()
    top = np.flatnonzero(shown.any(axis=1))[0]
    widths = shown[[top + 4, top + 40]].sum(axis=1)
    assert widths[0] <= widths[1], "a tip or a side points upwards"


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its four neighbours: outlines are blended."""
    padded = np.pad(mask, 1)
    return mask | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]


def test_every_sentence_fits_and_differs_from_nothing() -> None:
    tokenizer = build_tokenizer()
    sentences = sorted(set(corpus()))
    ids = token_ids(tokenizer, ["", *sentences])
    assert ids.shape == (len(sentences) + 1, LENGTH)
    assert (ids[:, -1] == tokenizer.eos_token_id).all(), "a sentence was cut"
    assert len({tuple(row) for row in ids.tolist()}) == len(ids)


def test_pairs_are_a_function_of_the_seed() -> None:
    plan = PairsPlan(edits=3, affine=True)
    (first, shapes, words), (second, same_shapes, again) = scene_pairs(plan, 11), scene_pairs(plan, 11)
    assert words == again
    assert first.equal(second)
    assert shapes.equal(same_shapes)
    assert len(first) == 1 + len(words)


def test_the_tokenizers_are_those_of_the_models() -> None:
    """Numbers that the networks were trained with, in every process, in the shipped model and in the one before it."""
    from transformers import CLIPTokenizer

    from fairy.runtime import embedded_model

    sentences, former = sorted(set(corpus())), Path(training.__file__).parent / "checkpoints/embedded4"
    for build, model in ((build_tokenizer, former), (build_tokenizer16, embedded_model())):
        shipped = CLIPTokenizer.from_pretrained(model / "tokenizer")
        assert token_ids(build(), sentences).equal(token_ids(shipped, sentences))
