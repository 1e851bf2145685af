"""The editor with 16 channels: its pairs, its first weights, and that training goes on where it stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training import editor16
from training.autoencoder16 import build_autoencoder16
from training.checkpoint import read_json, read_notes
from training.editor import EditorPlan, draw_batch
from training.editor16 import Translation, _translate_in, _translate_out, build_unet16
from training.named_scenes import named_scene
from training.package import load_pipeline
from training.pairs16 import (
    FAVOURED,
    ShardPlan,
    draw_scene,
    draw_shard,
    encode_shards,
    load_shards,
    shard_path,
    shown_shapes,
    thinned,
)
from training.scenes import render
from training.sentences import asks_for
from training.shapes import ALL_SHAPES
from training.unet import build_unet

PLAN = ShardPlan(scenes=2, edits=2)


def tokens_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text)] for text in texts])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two small shards, encoded by fresh weights."""
    torch.manual_seed(0)
    encode_shards(tmp_path, PLAN, range(2), build_autoencoder16((8, 8, 8, 8)).eval(), "digest")
    return tmp_path


def test_scenes_are_functions_of_plan_and_number() -> None:
    (first, shapes, edits), (again, same, _) = draw_scene(PLAN, 5), draw_scene(PLAN, 5)
    assert (first.shape, first.dtype) == ((3, 256, 256, 3), torch.uint8)
    assert first.equal(again)
    assert shapes.equal(same)
    assert len(edits) == 2


def test_shapes_are_what_most_pixels_show() -> None:
    scene = named_scene(9)
    frame = render(scene)
    kinds = np.array([0, *(1 + ALL_SHAPES.index(sprite.shape) for sprite in scene.sprites)])[frame.labels]
    blocks = kinds.reshape(32, 8, 32, 8).swapaxes(1, 2).reshape(32, 32, 64)
    counts = np.stack([(blocks == kind).sum(axis=2) for kind in range(1 + len(ALL_SHAPES))], axis=2)
    shown = np.take_along_axis(counts, shown_shapes(scene, frame).numpy()[..., None].astype(int), axis=2)[..., 0]
    np.testing.assert_array_equal(shown, counts.max(axis=2))


def test_shards_hold_sources_targets_and_words_in_order(shards: Path) -> None:
    pairs = load_shards(shards, tokens_of, 1.5)
    assert (pairs.source.shape, pairs.target.shape) == ((4, 16, 32, 32), (8, 16, 32, 32))
    assert pairs.origin.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    words = [edit.text for index in range(4) for edit in draw_scene(PLAN, index)[2]]
    assert pairs.tokens[:, 0].tolist() == [len(text) for text in words]
    assert not list((shards / "pictures").iterdir()), "pictures go when they are encoded"
    still = [i for i in range(8) if draw_scene(PLAN, i // 2)[2][i % 2].kind in ("absent", "keep")]
    for index in still:
        assert pairs.target[index].equal(pairs.source[index // 2])


def test_latents_of_two_autoencoders_are_refused(shards: Path) -> None:
    encode_shards(shards, PLAN, range(2, 3), build_autoencoder16((8, 8, 8, 8)).eval(), "another")
    with pytest.raises(SystemExit, match="several autoencoders"):
        load_shards(shards, tokens_of, 1.0)


def test_what_is_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    path = shard_path(tmp_path, "pictures", 1)
    draw_shard(path, PLAN, 1)
    kept = path.read_bytes()
    torch.manual_seed(0)
    encode_shards(tmp_path, replace(PLAN, edits=1), range(1, 2), build_autoencoder16((8, 8, 8, 8)).eval(), "digest")
    assert len(load_file(shard_path(tmp_path, "latents", 1))["target"]) == 4, kept[:0]
    assert "edits=2" in read_notes(shard_path(tmp_path, "latents", 1))["plan"]


def test_what_has_a_place_is_seen_whole(shards: Path) -> None:
    pairs = load_shards(shards, tokens_of, 1.0)
    placed = torch.zeros(8, dtype=torch.bool)
    placed[3:] = True
    pairs = replace(pairs, placed=placed, tokens=torch.arange(8)[:, None].repeat(1, 24))
    plan = EditorPlan(crops=((16, 64),), drop=0.0)
    cut = draw_batch(pairs, plan, torch.zeros(24, dtype=torch.long), 0, 0)
    assert set(cut.tokens[:, 0].tolist()) == {0, 1, 2}
    whole = draw_batch(pairs, replace(plan, crops=((32, 256),)), torch.zeros(24, dtype=torch.long), 0, 0)
    assert set(whole.tokens[:, 0].tolist()) == set(range(8))


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("please add a red heart in the top left corner", "add"),
        ("there should be an orange ring", "add"),
        ("remove the circles.", "remove"),
        ("the red star should disappear", "remove"),
        ("put a heart in place of the flower", "reshape"),
        ("swap all objects for stars", "reshape"),
        ("turn the picture into a comic", None),
        ("put it in front of a red wall", None),
        ("make the red circle blue", None),
        ("put snow on everything", None),
    ],
)
def test_what_a_sentence_asks_for(sentence: str, kind: str | None) -> None:
    assert asks_for(sentence) == kind


def test_what_is_learned_last_is_drawn_oftener(shards: Path) -> None:
    pairs = load_shards(shards, tokens_of, 1.0)
    words = [edit.text for index in range(4) for edit in draw_scene(PLAN, index)[2]]
    assert pairs.turns is not None
    counts = pairs.turns.bincount(minlength=8).tolist()
    assert counts == [FAVOURED.get(asks_for(text) or "", 1) for text in words]
    turned = replace(pairs, turns=torch.tensor([5, 5, 2]), tokens=torch.arange(8)[:, None].repeat(1, 24), placed=None)
    drawn = draw_batch(turned, EditorPlan(crops=((16, 64),), drop=0.0), torch.zeros(24, dtype=torch.long), 0, 0)
    assert set(drawn.tokens[:, 0].tolist()) == {2, 5}


def test_thinning_keeps_the_turns_of_what_stays(shards: Path) -> None:
    pairs = load_shards(shards, tokens_of, 1.0)
    target = pairs.source[pairs.origin].clone()
    target[:2] += 1.0
    pairs = replace(pairs, target=target, turns=torch.tensor([0, 1, 2, 2, 7]))
    thin = thinned(pairs, 0.0)
    assert thin.turns is not None
    assert (len(thin.target), thin.turns.tolist()) == (6, [0, 0, 5])


def test_edits_of_whole_pictures_can_be_thinned(shards: Path) -> None:
    """Of eight pairs the first two change a quarter of the picture, the others all of it."""
    pairs = load_shards(shards, tokens_of, 1.0)
    target = pairs.source[pairs.origin] + 1
    target[:2] = pairs.source[:1]
    target[:2, :, :16, :16] += 1
    pairs = replace(pairs, target=target)
    few = thinned(pairs, 0.0)
    assert few.target.equal(target[:2])
    assert few.tokens.equal(pairs.tokens[:2])
    assert few.origin.tolist() == [0, 0]
    assert len(thinned(pairs, 1.0).target) == 8


def test_a_translation_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4000, 16, generator=generator), torch.randn(4, 16, generator=generator)
    found = Translation.fit(x, x @ weight.T + 3)
    torch.testing.assert_close(found.weight, weight, atol=0.05, rtol=0.05)
    torch.testing.assert_close(found.bias, torch.full((4,), 3.0), atol=0.05, rtol=0.05)


def test_first_layers_read_and_write_translated_latents() -> None:
    """Away from the border the new layer of latents is the old layer of translated ones."""
    torch.manual_seed(0)
    old, new = build_unet(), build_unet16()
    noisy, image = (Translation(torch.randn(4, 16), torch.randn(4)) for _ in range(2))
    _translate_in(new.conv_in, old.conv_in, noisy, image)
    z = torch.randn(1, 32, 6, 6)
    translated = [
        torch.einsum("oi,bihw->bohw", t.weight, part) + t.bias[:, None, None]
        for t, part in zip((noisy, image), z.split(16, dim=1), strict=True)
    ]
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    expected = old.conv_in(torch.cat(translated, dim=1))[inner]
    torch.testing.assert_close(new.conv_in(z)[inner], expected, atol=1e-4, rtol=1e-4)
    write = Translation(torch.randn(16, 4), torch.zeros(16))
    _translate_out(new.conv_out, old.conv_out, write)
    features = torch.randn(1, 48, 6, 6)
    expected = torch.einsum("oi,bihw->bohw", write.weight, old.conv_out(features))
    torch.testing.assert_close(new.conv_out(features), expected, atol=1e-4, rtol=1e-4)


def test_the_layout_is_the_embedded_models() -> None:
    old, new = build_unet(), build_unet16()
    assert (new.config["in_channels"], new.config["out_channels"]) == (32, 16)
    other = {k: v.shape for k, v in new.state_dict().items() if not k.startswith(("conv_in", "conv_out"))}
    assert other == {k: v.shape for k, v in old.state_dict().items() if not k.startswith(("conv_in", "conv_out"))}


@pytest.mark.slow
def test_the_command_resumes_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor16, "PLAN", EditorPlan(steps=1, crops=((8, 1),), save_every=1))
    monkeypatch.setattr(editor16, "FIRST_SCENES", 1)
    monkeypatch.setattr(editor16, "TINY_PLAN", replace(editor16.TINY_PLAN, steps=1, pictures=4))
    monkeypatch.setattr(editor16, "ShardPlan", lambda **settings: ShardPlan(**settings | {"scenes": 1, "edits": 1}))
    arguments = ["--out", str(tmp_path), "--shards", "0", "1"]
    editor16.main(arguments)
    assert read_notes(tmp_path / "editor.safetensors")["step"] == "1"
    editor16.main([*arguments, "--stage", "editor", "--steps", "2"])
    assert read_notes(tmp_path / "editor.safetensors")["step"] == "2"
    exported = tmp_path / "exported.safetensors"
    editor16.main(["--out", str(tmp_path), "--export", str(exported)])
    assert {tensor.dtype for tensor in load_file(exported).values()} == {torch.float16}
    editor16.main(["--out", str(tmp_path / "other"), "--stage", "package", "--start-from", str(exported)])
    pipeline = load_pipeline(tmp_path / "other" / "model")
    assert read_json(tmp_path / "other" / "model" / "fairy.json")["num_inference_steps"] == 2
    first = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    stale = max(float((pipeline.unet.state_dict()[k] - v.float()).abs().max()) for k, v in first.items())
    assert 0 < stale < 0.01, "the model packaged first is of one step less"
    edited = pipeline("make it snow", image=torch.rand(1, 3, 64, 64), num_inference_steps=1, output_type="np")
    assert np.isfinite(edited.images).all()
