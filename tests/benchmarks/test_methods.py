"""The methods' figures against values worked out by hand, and the table from a real edit."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import methods
from fairy.runtime import InputError


def test_pixel_mse_follows_the_flow() -> None:
    """A ramp that moves one pixel a frame: its own flow explains all but the border, no flow nothing."""
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (12, 1, 3))
    frames = np.stack([ramp, np.roll(ramp, 1, axis=1)])
    still, moving = np.zeros((12, 16, 2), np.float32), np.zeros((12, 16, 2), np.float32)
    moving[..., 0] = -1.0
    assert methods.pixel_mse(frames[:1].repeat(2, 0), (still,)) == pytest.approx(0.0, abs=1e-9)
    wrapped = (150.0 - 0.0) ** 2 / 16  # the first column came from the other side
    assert methods.pixel_mse(frames, (moving,)) == pytest.approx(wrapped)
    assert methods.pixel_mse(frames, (still,)) == pytest.approx((15 * 10.0**2 + 150.0**2) / 16)


def test_what_is_not_on_this_machine_is_left_out_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = methods.TextFeatures("nobody/clip")
    assert texts(np.zeros((2, 8, 8, 3), np.uint8), "sepia") is None
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="flow = 'raft' needs"):
        methods.raft_flows(np.zeros((2, 128, 128, 3), np.uint8))


def test_cosines_are_those_of_clips_own_projections(tmp_path: Path) -> None:
    """A random CLIP, asked the way transformers' documentation does."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    from tests.conftest import write_tokenizer

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": 190, "max_position_embeddings": 16, "eos_token_id": 189}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=size | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    ).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    found = methods.TextFeatures(str(tmp_path))(frames, "sepia")
    model, processor = CLIPModel.from_pretrained(tmp_path), CLIPProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        scores = model(**processor(text=["sepia"], images=list(frames), return_tensors="pt")).logits_per_image
    assert found == pytest.approx(float((scores / model.logit_scale.detach().exp()).mean()), abs=1e-5)


@pytest.mark.slow
def test_the_table_has_every_row(tmp_path: Path) -> None:
    methods.main(["--out", str(tmp_path), "--clips", "1", "--frames", "3", "--size", "32", "--steps", "2"])
    table = (tmp_path / "methods.md").read_text()
    figures = json.loads((tmp_path / "methods.json").read_text())["figures"]
    assert [f["row"] for f in figures] == list(methods.ROWS)
    assert all(f"| {row} |" in table for row in methods.ROWS)
    assert len({f["pixel_mse"] for f in figures}) == len(methods.ROWS)
