"""Anchors whose edited look is given: their own frames show it, and the others follow it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.denoise.sampler import noised, scale_model_input
from fairy.runtime.denoise.segment_edit import SegmentEdit
from fairy.runtime.plan.segments import plan_segments
from fairy.runtime.plan.tasks import anchor_task
from fairy.runtime.record.progress import Monitor
from tests.runtime.conftest import make_frames
from tests.runtime.test_strength import through_the_autoencoder

FRAMES = make_frames(6, 64, 64)
LOOKS = make_frames(2, 64, 64, seed=9)


def params(**changes: object) -> EditParams:
    return EditParams("make it red", **{"num_inference_steps": 2, "micro_batch": 2, **changes})


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("looks") / f"{i}.png" for i in range(2)]
    for path, look in zip(paths, LOOKS, strict=True):
        Image.fromarray(look).save(path)
    return paths


def test_its_frame_is_the_picture_through_the_autoencoder(editor: Editor, looks: list[Path]) -> None:
    result = editor.edit(FRAMES, params(anchor_images={2: looks[0]}))
    assert result.report.anchors == (2,), "nobody asked for others"
    assert np.array_equal(result.frames[2], through_the_autoencoder(editor, LOOKS[:1])[0])


def test_the_others_follow_it(editor: Editor, looks: list[Path]) -> None:
    first, second = (editor.edit(FRAMES, params(anchor_images={2: look})).frames for look in looks)
    assert all(not np.array_equal(first[i], second[i]) for i in (0, 1, 3, 4, 5))


@torch.inference_mode()
def test_the_bank_is_of_the_picture_with_the_noise_of_each_step(editor: Editor, looks: list[Path]) -> None:
    """Keys and values as the UNet alone gives them for what diffusers' scheduler would hand it."""
    run = editor._open(FRAMES, params(anchor_images={2: looks[0]}), Monitor(None, None), None, None)
    networks, segment, plan = editor._networks, run.plan.segments[0], run.plan
    edit = SegmentEdit(networks, run, segment)
    edit.begin(segment.anchors, [FRAMES[2]], anchors=True)
    edit.compute(anchor_task(segment, len(plan.schedule)))
    picture = networks.as_edited(networks.encode(run, [LOOKS[0]]))
    source = networks.encode(run, [FRAMES[2]])
    text = networks.encode_text(run, "make it red")
    engine = networks.engine(run, "unet_anchor", torch.float32)
    for k, time in enumerate(plan.schedule.timesteps):
        x = scale_model_input(plan.schedule, k, noised(plan.schedule, k, picture, edit.noise.initial([2])))
        sample = torch.stack([torch.cat([x, image], 1) for image in (source, source, torch.zeros_like(source))])
        theirs = engine({"sample": sample, "timestep": torch.tensor([time]), "text": text})
        if k == 0 and plan.schedule.sigmas:
            assert not torch.equal(x, edit.noise.initial([2])), "a look is in its latents from the first step on"
        ours = edit.bank.context(k, torch.float32)  # type: ignore[union-attr]
        emitted = [t.flatten() for name, t in theirs.items() if name != "output"]
        for a, b in zip(ours.values(), emitted, strict=True):
            torch.testing.assert_close(a.flatten(), b)


def test_anchors_that_are_asked_for_stay(editor: Editor, looks: list[Path]) -> None:
    assert editor.edit(FRAMES, params(anchors=[0, 5], anchor_images=[(3, looks[0])])).report.anchors == (0, 3, 5)
    segments, _ = plan_segments(params(shots=[3], anchor_images={4: looks[0]}), 6, 2)
    assert [s.anchors for s in segments] == [(0, 1, 2), (4,)]


def test_with_a_mask_and_a_weaker_edit(editor: Editor, looks: list[Path], tmp_path: Path) -> None:
    white = np.zeros((64, 64), np.uint8)
    white[8:40, 8:40] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    asked = params(anchor_images={2: looks[0]}, mask=tmp_path / "mask.png", mask_feather=0, strength=0.5)
    result = editor.edit(FRAMES, asked).frames
    assert np.array_equal(result[:, white == 0], FRAMES[:, white == 0])
    assert np.array_equal(result[2][white > 0], through_the_autoencoder(editor, LOOKS[:1])[0][white > 0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"anchor_images": {6: "0.png"}}, "6 is not a frame of the video"),
        ({"anchor_images": {2: "nothing.png"}}, "does not exist"),
        ({"anchor_images": {2: "wide.png"}}, "96×64 pixels, which is not the shape of the video's 64×64"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(LOOKS[0]).save("0.png")
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save("wide.png")
    with pytest.raises(InputError, match=sentence):
        editor.edit(FRAMES, params(**changes))


def test_what_is_no_look_is_refused() -> None:
    for wrong in ({-1: "a.png"}, [(1, "a.png"), (1, "b.png")], "1=a.png", {"x": "a.png"}, [(1, "")]):
        with pytest.raises(InputError, match="anchor_images"):
            params(anchor_images=wrong)
    with pytest.raises(InputError, match="anchors = 0"):
        params(anchor_images={1: "a.png"}, anchors=0)
    with pytest.raises(InputError, match="pix2video"):
        params(anchor_images={1: "a.png"}, method="pix2video")
