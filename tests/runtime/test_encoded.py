"""Several edits of one video encode each picture once, and give the bytes of single edits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.runtime import Editor, EditParams
from fairy.runtime.inputs.encoded import EncodedPictures, key_of


def test_edits_of_one_video_share_the_encoding_and_nothing_else(clip: Path) -> None:
    prompts = ("make it sepia", "make it snow")
    hashes = {}
    for keeps in (False, True):
        with Editor.from_pretrained() as editor:
            if keeps:
                editor.keep_encoded()
            for prompt in prompts:
                params = EditParams(prompt, num_inference_steps=1, anchors=2)
                hashes[keeps, prompt] = editor.edit(clip, params).report.frames_sha256
            if keeps:
                kept = editor._networks.encoded
                assert kept is not None
                assert (kept.made, kept.found) == (5, 5)
                editor.edit(clip, EditParams("x", num_inference_steps=1, anchors=2, long_side=48))
                assert kept.made == 10  # at another size they are other pictures
    assert all(hashes[True, prompt] == hashes[False, prompt] for prompt in prompts)


def test_only_so_many_bytes_are_kept_and_the_longest_unused_go_first() -> None:
    kept, here = EncodedPictures(3 * 400), torch.device("cpu")
    made: list[int] = []

    def get(number: int) -> torch.Tensor:
        picture = np.full((2, 2, 3), number, np.uint8)

        def encode() -> torch.Tensor:
            made.append(number)
            return torch.full((100,), float(number))

        return kept.get(key_of(picture, "how"), here, encode)

    for number in (1, 2, 3, 1, 4, 1, 2):
        assert float(get(number)[0]) == number
    assert made == [1, 2, 3, 4, 2]


def test_a_picture_is_known_by_its_pixels_its_shape_and_how() -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    other = picture.copy()
    other[0, 0, 0] = 1
    keys = {key_of(picture, 1), key_of(picture, 2), key_of(other, 1), key_of(picture.reshape(3, 2, 3), 1)}
    assert len(keys) == 4
    assert key_of(picture[::-1], 1) == key_of(picture, 1)


@pytest.mark.parametrize("given", [{}, {"num_inference_steps": 3, "guidance_scale": 2.0}])
def test_what_an_edit_would_use(given: dict) -> None:
    with Editor.from_pretrained() as editor:
        used = editor.resolve(EditParams("x", **given))
    assert used.num_inference_steps == given.get("num_inference_steps", 2)  # the embedded model's
    assert used.guidance_scale == given.get("guidance_scale", used.guidance_scale)
    assert used.guidance_scale is not None
