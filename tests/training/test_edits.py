"""Edits of named things: what is said is what changes, exactly."""

from dataclasses import replace

import numpy as np
import pytest

from training.changes import plural
from training.edits import EDITS, SHARES, coverage, draw_edit, name_things, recoloured
from training.named_scenes import COLOURS, colour_name, named_scene, named_texture
from training.scenes import Motion, Scene, Sprite, Still, render
from training.sentences import look_sentence
from training.shapes import ALL_SHAPES, MORE_SHAPES, UPRIGHT, signed_distance
from training.text import LENGTH, token_ids
from training.text16 import build_tokenizer16
from training.textures import Texture, random_texture


def plain(colour: str) -> Texture:
    return Texture("plain", 10, 0, COLOURS[colour], COLOURS[colour])


def row_of(*things: tuple[str, str]) -> Scene:
    """Things (colour, shape) side by side over white."""
    sprites = [
        Sprite(shape, plain(colour), (32.0 + 64 * index, 32.0), 24.0, UPRIGHT[shape], Motion())
        for index, (colour, shape) in enumerate(things)
    ]
    return Scene(64, 64 * len(things), plain("white"), tuple(sprites))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_a_little_off_keeps_its_name(colour: str) -> None:
    rng = np.random.default_rng(0)
    assert {colour_name(named_texture(rng, colour)) for _ in range(100)} == {colour}


def test_two_colours_have_no_name() -> None:
    texture = Texture("stripes", 9.0, 0.0, COLOURS["red"], COLOURS["green"])
    assert colour_name(texture) is None
    assert colour_name(replace(texture, dark=(0.43, 0.06, 0.06))) == "red"


@pytest.mark.parametrize("seed", range(12))
def test_a_phrase_means_all_it_fits_and_nothing_else(seed: int) -> None:
    scene = row_of(("red", "circle"), ("blue", "circle"), ("red", "star"), ("blue", "star"), ("red", "circle"))
    named = name_things(scene, render(scene), np.random.default_rng(seed))
    assert named is not None

    def fits(sprite: Sprite) -> bool:
        words = set(named.phrase.split()) - {"the", "all", "things", "shapes", "objects"}
        kind = {colour_name(sprite.texture), sprite.shape, plural(sprite.shape)}
        return words <= kind

    assert named.indices == tuple(i for i, sprite in enumerate(scene.sprites) if fits(sprite)), named


@pytest.mark.parametrize("kind", ["recolour", "reshape", "remove"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_only_what_is_named_changes(kind: str, seed: int) -> None:
    scene = row_of(("red", "circle"), ("blue", "circle"), ("green", "star"))
    frame, rng = render(scene), np.random.default_rng(seed)
    edit = EDITS[kind](scene, frame, rng)
    assert edit is not None
    named = name_things(scene, frame, np.random.default_rng(seed))
    assert named is not None
    assert named.phrase in edit.text
    changed = np.abs(edit.target() - frame.image).max(axis=(0, 2)) > 0.02
    touched = {index for index in range(3) if changed[64 * index : 64 * index + 64].any()}
    assert touched <= set(named.indices)


def test_what_is_removed_leaves_the_background() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(64, 192, 3), dtype=np.uint8)
    scene = replace(row_of(("red", "circle"), ("blue", "circle"), ("green", "star")), background=Still(pixels))
    edit = next(
        e
        for s in range(99)
        if (e := EDITS["remove"](scene, render(scene), np.random.default_rng(s)))
        and "all" in e.text
        and "circle" not in e.text
        and "star" not in e.text
    )
    np.testing.assert_allclose(edit.target(), pixels / 255, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_not_there_changes_nothing(seed: int) -> None:
    scene = row_of(("red", "circle"), ("blue", "circle"), ("green", "star"))
    edit = EDITS["absent"](scene, render(scene), np.random.default_rng(seed))
    assert edit is not None
    assert edit.scene is scene
    here = {f"{c} {s}" for c, s in (("red", "circle"), ("blue", "circle"), ("green", "star"))}
    assert not any(f"the {thing}" in edit.text for thing in here | {"circle", "star"})


def test_a_look_of_a_part_blends_along_its_outline() -> None:
    scene = row_of(("red", "circle"), ("blue", "star"))
    parts = [coverage(scene, frozenset({label})) for label in range(3)]
    np.testing.assert_allclose(sum(parts), 1.0, atol=1e-5)
    edge = (parts[1] > 0.05) & (parts[1] < 0.95)
    assert edge.any()
    inside = render(scene).labels == 1
    assert parts[1][inside].min() >= 0.5


def test_black_is_a_silhouette_and_other_colours_keep_the_pattern() -> None:
    sprite = Sprite("ring", random_texture(np.random.default_rng(3), plain=0), (0.0, 0.0), 9.0, 0.0, Motion())
    assert recoloured(sprite, "black").texture.pattern == "plain"
    green = recoloured(sprite, "green").texture
    assert (green.pattern, green.period, green.light) == (
        sprite.texture.pattern,
        sprite.texture.period,
        COLOURS["green"],
    )


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_shapes_fit_the_unit_disc_and_stand_upright(shape: str) -> None:
    y, x = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j].astype(np.float32)
    assert signed_distance(shape, x, y)[np.hypot(x, y) > 1.02].min() > 0
    if shape in MORE_SHAPES and shape != "moon":
        c, s = np.cos(UPRIGHT[shape]), np.sin(UPRIGHT[shape])
        inside = signed_distance(shape, c * x + s * y, c * y - s * x) < 0
        assert 0.1 < inside.mean() < 0.6
        assert (inside != inside[:, ::-1]).mean() < 0.01, "mirrored left to right"


@pytest.mark.parametrize(
    ("shape", "x", "y", "expected"),
    [("arrow", 0.0, 0.5, -0.24), ("arrow", 1.0, 0.92, 0.76), ("hexagon", 0.0, 0.0, -0.82), ("moon", 0.9, 0.0, 0.36)],
)
def test_distances_at_points_worked_out_by_hand(shape: str, x: float, y: float, expected: float) -> None:
    at = (np.array([[v]], np.float32) for v in (x, y))
    assert signed_distance(shape, *at)[0, 0] == pytest.approx(expected, abs=1e-3)


def test_scenes_are_of_their_seed_and_hold_what_they_promise() -> None:
    scenes = [named_scene(seed, 64) for seed in range(60)]
    again = named_scene(7, 64)
    np.testing.assert_array_equal(render(scenes[7]).image, render(again).image)
    assert 5 <= sum(not scene.sprites for scene in scenes) <= 30
    shapes = {sprite.shape for scene in scenes for sprite in scene.sprites}
    assert shapes == set(ALL_SHAPES)
    radii = [sprite.radius / 64 for scene in scenes for sprite in scene.sprites]
    assert min(radii) < 0.08
    assert max(radii) > 0.25


def test_sentences_fit_and_hold_no_unknown_words() -> None:
    tokenizer, rng, texts = build_tokenizer16(), np.random.default_rng(0), []
    for seed in range(16):
        scene = named_scene(seed, 64)
        frame = render(scene)
        texts += [draw_edit(scene, frame, rng).text for _ in range(20)]
    assert len(set(texts)) > 200
    ids = token_ids(tokenizer, texts)
    assert (ids[:, LENGTH - 1] == tokenizer.eos_token_id).all(), "a sentence was cut"
    words = {word.strip(".?,") for text in texts for word in text.lower().split()}
    assert [word for word in sorted(words) if len(tokenizer.tokenize(word)) > 1] == []


def test_old_wordings_of_looks_still_come_up() -> None:
    rng = np.random.default_rng(0)
    assert {"make it snow", "cover it with snow"} <= {look_sentence(rng, "snow") for _ in range(400)}
    assert set(SHARES) == set(EDITS)
