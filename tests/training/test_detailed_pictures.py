"""Photographs inside packages, drawn detail, and the pool of both."""

from pathlib import Path

import numpy as np
import pytest

from training import photo_files
from training.detailed_pictures import detailed_picture, detailed_pool
from training.details import DETAILS
from training.evaluate import held_out_picture
from training.photo_files import HELD_OUT_FILES, TRAINING_FILES, MissingPhotograph, PhotoFile, locate, whole_photograph
from training.photographs import HELD_OUT, photograph


@pytest.mark.parametrize("name", [*TRAINING_FILES, *HELD_OUT_FILES])
def test_every_photograph_is_there(name: str) -> None:
    picture = whole_photograph(name)
    assert picture.dtype == np.uint8
    assert min(picture.shape[:2]) >= 256
    assert picture.shape[2] == 3
    assert picture.std() > 5
    grey = bool((picture == picture[..., :1]).all())
    assert grey == (TRAINING_FILES | HELD_OUT_FILES)[name].grey


def test_no_picture_is_on_both_sides() -> None:
    assert not {(f.package, f.path) for f in TRAINING_FILES.values()} & {
        (f.package, f.path) for f in HELD_OUT_FILES.values()
    }
    assert set(HELD_OUT) <= HELD_OUT_FILES.keys()


def test_files_are_what_scikit_image_gives() -> None:
    picture = photograph("chelsea", 451)  # its own size
    np.testing.assert_allclose(whole_photograph("chelsea") / 255, picture, atol=1e-6)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingPhotograph, match=r"a\.png of no-such-package.*training"):
        locate(PhotoFile("no-such-package", "a.png"))
    monkeypatch.setitem(photo_files.TRAINING_FILES, "odd", PhotoFile("scikit-image", "skimage/data/odd.png"))
    with pytest.raises(MissingPhotograph, match="odd"):
        whole_photograph("odd")


@pytest.mark.parametrize("draw", DETAILS, ids=lambda draw: str(draw.__name__))
def test_drawn_detail_is_fine_and_a_function_of_its_seed(draw: object) -> None:
    assert callable(draw)
    first, again, other = (draw(np.random.default_rng(seed), 96) for seed in (4, 4, 5))
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3
    assert np.abs(np.diff(first.astype(int), axis=1)).mean() > 0.3


def test_the_pool_is_kept_and_each_picture_is_its_seeds(tmp_path: Path) -> None:
    pool = detailed_pool(tmp_path / "pool.npy", 3, 2)
    np.testing.assert_array_equal(pool[1], detailed_picture(2_000_001))
    np.testing.assert_array_equal(detailed_pool(tmp_path / "pool.npy", 3, 2), pool)


def test_held_out_pictures_have_whole_latents() -> None:
    picture = held_out_picture("china", 256)
    assert picture.shape == (160, 256, 3)
    assert 0 <= picture.min() < picture.max() <= 1
