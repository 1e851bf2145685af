"""Masks: only what is white is edited, everything else is the source to the byte, whoever computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.denoise.sampler import make_schedule, noise_in, noised
from fairy.runtime.denoise.schedulers import SAMPLERS, SCHEDULERS
from fairy.runtime.inputs.masks import composite, latent_mask, weights_of
from fairy.runtime.plan.geometry import make_geometry
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video import probe, read_frames
from tests.conftest import SCHEDULER
from tests.runtime.conftest import make_frames, write_clip

FRAMES = make_frames(7, 52, 70)  # no multiple of anything
STEPS = {"num_inference_steps": 2, "anchors": 2, "micro_batch": 2}


def params(mask: Path | None, **changes: object) -> EditParams:
    return EditParams("make it red", **{**STEPS, "mask": mask, **changes})


def box(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = (52, 70)) -> np.ndarray:
    """Black with a white box: uint8 [H, W]."""
    picture = np.zeros(size, np.uint8)
    picture[top:bottom, left:right] = 255
    return picture


def save(picture: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(box(10, 30, 20, 45), tmp_path_factory.mktemp("mask") / "box.png")


@pytest.fixture(scope="module")
def edited(editor: Editor, still: Path) -> np.ndarray:
    return editor.edit(FRAMES, params(still, mask_feather=3)).frames


@pytest.mark.parametrize("feather", [0, 1, 2, 3, 8, 40])
def test_white_stays_and_nothing_lies_beyond_the_feather(feather: int) -> None:
    white = np.random.default_rng(feather).random((37, 53)) > 0.995
    weights = weights_of(np.repeat(white[..., None], 3, 2) * np.uint8(255), white.shape, feather)
    rows, columns = np.nonzero(white)
    grid = np.indices(white.shape)
    away = np.maximum(abs(grid[0][..., None] - rows), abs(grid[1][..., None] - columns)).min(-1)
    assert (weights[white] == 255).all()
    assert not weights[away > feather].any()
    assert (weights[away <= (feather + 1) // 2] > 0).all()


def test_a_mask_of_another_size_is_scaled() -> None:
    large, small = box(20, 60, 40, 90, (104, 140)), box(10, 30, 20, 45)
    assert np.array_equal(*(weights_of(np.repeat(m[..., None], 3, 2), (52, 70), 0) for m in (large, small)))


@pytest.mark.parametrize("long_side", [70, 33, 200])
def test_a_latent_is_edited_where_any_of_its_pixels_is(long_side: int) -> None:
    geometry = make_geometry(52, 70, long_side=long_side, upscale=True, multiple=64)
    for row, column in ((0, 0), (51, 69), (17, 40)):
        mask = latent_mask(box(row, row + 1, column, column + 1), geometry, 8)
        assert tuple(mask.shape[1:]) == geometry.latent(8)
        high, wide = geometry.scaled
        assert mask[0, int((row + 0.5) * high / 52) // 8, int((column + 0.5) * wide / 70) // 8]
    assert not latent_mask(box(0, 0, 0, 0), geometry, 8).any()
    assert latent_mask(box(0, 52, 0, 70), geometry, 8).all()


def test_mixing_is_exact_at_both_ends() -> None:
    source, edit = FRAMES[:1], FRAMES[1:2]
    weights = np.tile(np.array([0, 255], np.uint8), (1, 52, 35))
    mixed = composite(source, edit, weights)
    assert np.array_equal(mixed[:, :, ::2], source[:, :, ::2])
    assert np.array_equal(mixed[:, :, 1::2], edit[:, :, 1::2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_kept_has_the_noise_that_diffusers_adds(sampler: str) -> None:
    import diffusers

    flow = sampler == "flow_match_euler"
    config = {"_class_name": SCHEDULERS[sampler], "shift": 3.0} if flow else SCHEDULER
    schedule = make_schedule(sampler, config, 5)
    scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(config)
    scheduler.set_timesteps(**({"sigmas": np.linspace(1, 0.2, 5)} if flow else {"num_inference_steps": 5}))
    add = scheduler.scale_noise if flow else lambda original, time, noise: scheduler.add_noise(original, noise, time)
    original, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for i, time in enumerate(scheduler.timesteps):
        x = noised(schedule, i, original, noise)
        torch.testing.assert_close(x, add(original, time[None], noise), atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(noise_in(schedule, i, x, original), noise, atol=1e-4, rtol=1e-4)
    assert torch.equal(noised(schedule, 5, original, noise), original)


def test_outside_is_the_source_to_the_byte(edited: np.ndarray) -> None:
    outside = np.ones((52, 70), bool)
    outside[10 - 3 : 30 + 3, 20 - 3 : 45 + 3] = False
    assert np.array_equal(edited[:, outside], FRAMES[:, outside])
    assert (edited[:, 10:30, 20:45] != FRAMES[:, 10:30, 20:45]).mean() > 0.9


def test_a_white_mask_is_the_usual_edit_and_an_empty_one_the_source(editor: Editor, tmp_path: Path) -> None:
    usual = editor.edit(FRAMES, params(None))
    white = editor.edit(FRAMES, params(save(box(0, 52, 0, 70), tmp_path / "white.png")))
    empty = editor.edit(FRAMES, params(save(box(0, 0, 0, 0), tmp_path / "black.png")))
    assert np.array_equal(white.frames, usual.frames)
    assert np.array_equal(empty.frames, FRAMES)
    assert [note for note in empty.report.notes if "mask is empty" in note]
    assert not [note for note in white.report.notes if "mask" in note]


def test_what_is_outside_does_not_change_what_the_network_sees_of_it(
    editor: Editor, still: Path, edited: np.ndarray
) -> None:
    """The edit inside is not the usual edit cut out: its surroundings are the source's in every step."""
    usual = editor.edit(FRAMES, params(None)).frames
    assert not np.array_equal(edited[:, 10:30, 20:45], usual[:, 10:30, 20:45])


@pytest.mark.parametrize("scaled", [{"long_side": 48}, {"long_side": 48, "size": "source"}])
def test_at_other_sizes(editor: Editor, still: Path, scaled: dict) -> None:
    result = editor.edit(FRAMES, params(still, **scaled)).frames
    plain = editor.edit(FRAMES, params(save(box(0, 0, 0, 0), still.parent / "black.png"), **scaled)).frames
    high, wide = result.shape[1:3]
    inside = result[:, high * 12 // 52 : high * 28 // 52, wide * 22 // 70 : wide * 43 // 70]
    assert np.array_equal(result[:, : high // 26], plain[:, : high // 26])
    assert np.array_equal(result[:, :, -wide // 7 :], plain[:, :, -wide // 7 :])
    assert inside.size
    if "size" in scaled:
        assert np.array_equal(plain, FRAMES)


@pytest.mark.parametrize("changes", [{"keep_details": True}, {"shots": (3,)}, {"anchors": 0}, {"sampler": "ddim"}])
def test_with_other_options(editor: Editor, still: Path, changes: dict) -> None:
    result = editor.edit(FRAMES, params(still, mask_feather=0, **changes)).frames
    outside = box(10, 30, 20, 45) == 0
    assert np.array_equal(result[:, outside], FRAMES[:, outside])
    assert not np.array_equal(result, FRAMES)


@pytest.mark.parametrize("method", ["per_frame", "pix2video"])
def test_with_every_method(editor: Editor, still: Path, method: str) -> None:
    changes = {"method": method, "anchors": None, "micro_batch": None}
    result = editor.edit(FRAMES[:3], params(still, mask_feather=0, **changes)).frames
    outside = box(10, 30, 20, 45) == 0
    assert np.array_equal(result[:, outside], FRAMES[:3][:, outside])
    assert not np.array_equal(result, FRAMES[:3])


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_mask_that_moves(editor: Editor, tmp_path: Path, kind: str) -> None:
    masks = np.stack([box(8, 24, 4 * i, 4 * i + 24, (48, 64)) for i in range(7)])
    if kind == "folder":
        mask = tmp_path / "masks"
        for i, picture in enumerate(masks):
            save(picture, mask / f"{i}.png")
    else:
        mask = write_clip(tmp_path / "mask.mp4", np.repeat(masks[..., None], 3, 3), sound=False)
    frames = FRAMES[:, :48, :64]
    result = editor.edit(frames, params(mask, mask_feather=0)).frames
    for i in range(7):
        slack = 0 if kind == "folder" else 2  # a compressed edge is not quite where it was
        outside = box(8 - slack, 24 + slack, max(0, 4 * i - slack), 4 * i + 24 + slack, (48, 64)) == 0
        assert np.array_equal(result[i][outside], frames[i][outside])
        assert not np.array_equal(result[i], frames[i])


def test_another_length_is_refused_with_both(editor: Editor, tmp_path: Path) -> None:
    for i in range(5):
        save(box(0, 9, 0, 9), tmp_path / "masks" / f"{i}.png")
    with pytest.raises(InputError, match="5 pictures for 7 frames"):
        editor.edit(FRAMES, params(tmp_path / "masks"))
    with pytest.raises(InputError, match="does not exist"):
        editor.edit(FRAMES, params(tmp_path / "nothing.png"))
    with pytest.raises(InputError, match="mask_feather"):
        params(None, mask_feather=4)


@pytest.fixture(scope="module")
def clip_and_mask(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("moving")
    frames = make_frames(10)
    masks = np.stack([box(8, 24, 3 * i, 3 * i + 24, (48, 64)) for i in range(10)])
    write_clip(folder / "mask.mp4", np.repeat(masks[..., None], 3, 3), sound=False)
    return write_clip(folder / "clip.mp4", frames), folder / "mask.mp4"


def test_a_part_of_a_video_takes_its_part_of_the_mask(editor: Editor, clip_and_mask: tuple[Path, Path]) -> None:
    clip, mask = clip_and_mask
    whole = editor.edit(clip, params(mask, anchors=(3, 5))).frames
    part = editor.edit(clip, params(mask, anchors=(1, 3), start=0.08)).frames
    assert np.array_equal(part[1], whole[3])  # an anchor knows only anchors
    assert np.array_equal(part[3], whole[5])


def test_a_changed_mask_is_another_edit(editor: Editor, clip: Path, tmp_path: Path) -> None:
    mask = save(box(8, 24, 0, 24, (48, 64)), tmp_path / "mask.png")

    def identity() -> dict:
        return editor._identity(editor._open(str(clip), params(mask), Monitor(None, None), None, None).plan)

    before = identity()
    save(box(8, 25, 0, 24, (48, 64)), mask)
    assert identity() != before


def test_outside_comes_back_from_a_lossless_file(editor: Editor, clip: Path, tmp_path: Path) -> None:
    mask, out = save(box(8, 24, 10, 34, (48, 64)), tmp_path / "mask.png"), tmp_path / "out.mkv"
    editor.edit_file(clip, out, params(mask, mask_feather=0), codec="ffv1", lossless=True)
    source, result = (np.stack(list(read_frames(probe(path)))) for path in (clip, out))
    outside = box(8, 24, 10, 34, (48, 64)) == 0
    assert np.array_equal(result[:, outside], source[:, outside])
    assert not np.array_equal(result, source)


def test_a_folder_of_pictures(editor: Editor, clip: Path, tmp_path: Path) -> None:
    from fairy.runtime.video import probe_images, read_images

    asked = params(None)
    editor.edit_file(clip, tmp_path / "out", asked, codec="png")
    frames = np.stack(list(read_images(probe_images(tmp_path / "out"))))
    assert np.array_equal(frames, editor.edit(clip, asked).frames)
    with pytest.raises(InputError, match="is a folder; name"):
        editor.edit_file(clip, tmp_path / "out", asked, codec="png")
    with pytest.raises(InputError, match="codec = 'prores' is not held by MP4"):
        editor.edit_file(clip, tmp_path / "out.mp4", asked, codec="prores")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_warming_up_needs_none(editor: Editor, clip: Path) -> None:
    """What is of another video is not looked for then, but by an edit."""
    missing = params(Path("of_another_video.png"), mask_feather=2, anchor_images={0: "of_it.png"})
    editor.warm_up(48, 64, missing)
    with pytest.raises(InputError, match="does not exist"):
        editor.edit(clip, missing)
