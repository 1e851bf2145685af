"""Small weights for the documentation's pictures: what they are fitted to, and that editors take the files."""

from pathlib import Path

import numpy as np
import pytest

from fairy.runtime import Editor, EditParams
from tests.conftest import ROOT
from tests.runtime.conftest import make_frames
from training import small_controls, small_fits, small_ip_adapter
from training.looks import apply_look

RNG = np.random.default_rng(0)


def test_a_mosaic_is_of_tiles_with_joints() -> None:
    picture = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    found = small_controls.mosaic(picture)
    for top, left in np.ndindex(2, 3):
        tile = found[8 * top : 8 * top + 8, 8 * left : 8 * left + 8].astype(float)
        mean = picture[8 * top : 8 * top + 8, 8 * left : 8 * left + 8].mean(axis=(0, 1))
        assert np.abs(tile[1:, 1:] - mean).max() <= 0.5
        assert np.abs(tile[0] - 0.35 * mean).max() <= 0.5
        assert np.abs(tile[:, 0] - 0.35 * mean).max() <= 0.5


def test_lines_are_white_and_the_rest_is_night() -> None:
    picture = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    lines = np.zeros((32, 32), np.uint8)
    lines[10] = 255
    found = small_controls.drawn(picture, lines)
    assert (found[9:12] == 255).all()
    night = apply_look("night", (picture / 255).astype(np.float32))
    assert np.abs(found[12:] - 255 * night[12:]).max() <= 0.51


def test_colours_run_between_those_of_the_style() -> None:
    ramp = np.linspace(0, 255, 40).round().astype(np.uint8)
    picture = np.stack([ramp] * 3, axis=1)[None].repeat(2, axis=0)
    style = np.where(np.arange(40)[:, None, None] < 20, (10, 0, 60), (250, 220, 90)).astype(np.uint8).repeat(9, axis=1)
    found = small_ip_adapter.recoloured(picture, style).astype(float)
    weight = ramp[:, None] / 255
    assert np.abs(found[0] - ((1 - weight) * (10, 0, 60) + weight * (250, 220, 90))).max() <= 0.51


@pytest.mark.slow
@pytest.mark.parametrize("name", small_controls.MAKERS)
def test_editors_take_the_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_fits, "SCENES", 2)
    make, _ = small_controls.MAKERS[name]
    make(tmp_path, 4)
    frames = make_frames(2, 64, 64)
    setups = {
        "lora": ({"lora": [tmp_path / "lora.safetensors"]}, {}),
        "controlnet": ({"controlnet": [tmp_path / "controlnet"]}, {"control": ("canny",)}),
        "ip_adapter": ({"ip_adapter": tmp_path / "ip_adapter"}, {"style": ROOT / "docs" / "before.jpg"}),
    }
    setup, asked = setups[name]
    with Editor.from_pretrained(device="cpu", **setup) as editor:
        assert editor.edit(frames, EditParams("make it snow", **asked)).frames.shape == frames.shape
