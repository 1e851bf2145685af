"""The one command runs every stage, writes its record and the models, and never overwrites by accident."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from training import train
from training.autoencoder import AutoencoderPlan, DecoderPlan
from training.editor import EditorPlan
from training.latents import PairsPlan

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tiny_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    def editor_plan(stage: str, quick: bool, steps: int | None) -> EditorPlan:
        pairs = PairsPlan(scenes=1, edits=2, affine=stage == "equivariant")
        return EditorPlan(steps=steps or 1, crops=((8, 1),), pairs=pairs)

    plan = AutoencoderPlan(steps=1, crops=((32, 1),), pictures=2)
    monkeypatch.setattr(train, "autoencoder_plan", lambda quick, steps: plan)
    decoder = DecoderPlan(steps=1, crops=((32, 2),), pictures=2)
    monkeypatch.setattr(train, "decoder_plan", lambda quick, steps: decoder)
    monkeypatch.setattr(train, "tiny_decoder_plan", lambda quick, steps: decoder)
    monkeypatch.setattr(train, "editor_plan", editor_plan)


def test_all_stages_then_a_longer_editor(tmp_path: Path) -> None:
    train.main(["--out", str(tmp_path)])
    record = json.loads((tmp_path / "record.json").read_text())
    assert [run["stage"] for run in record["runs"]] == list(train.STAGES)
    assert all(run["steps_done"] == 1 and run["seconds"] > 0 for run in record["runs"])
    assert {"torch", "diffusers", "python"} <= record["versions"].keys()
    for model in ("model", "model_equivariant"):
        assert (tmp_path / model / "model_index.json").exists()
        small = tmp_path / model / "tiny_decoder"
        assert AutoencoderTiny.from_pretrained(small).config.latent_channels == 4
        stored = load_file(small / "diffusion_pytorch_model.safetensors").values()
        assert {tensor.dtype for tensor in stored} == {torch.float16}

    with pytest.raises(SystemExit, match="--resume"):
        train.main(["--out", str(tmp_path), "--stage", "editor"])
    train.main(["--out", str(tmp_path), "--stage", "editor", "--steps", "2", "--resume"])
    runs = json.loads((tmp_path / "record.json").read_text())["runs"]
    assert (runs[-1]["stage"], runs[-1]["steps_done"], len(runs)) == ("editor", 2, 6)


def test_an_editor_may_start_from_another(tmp_path: Path) -> None:
    """Its first weights are the other's averages, and the record says whose."""
    train.main(["--out", str(tmp_path / "first"), "--stage", "autoencoder"])
    train.main(["--out", str(tmp_path / "first"), "--stage", "editor"])
    start = tmp_path / "first" / "editor.safetensors"
    averages = {k: v for k, v in load_file(start).items() if k.startswith("average/unet")}
    train.main(["--out", str(tmp_path / "second"), "--stage", "autoencoder"])
    train.main(["--out", str(tmp_path / "second"), "--stage", "editor", "--start-from", str(start)])
    after = load_file(tmp_path / "second" / "editor.safetensors")
    moved = max(float((after[k.replace("average", "weights")] - v).abs().max()) for k, v in averages.items())
    assert 0 < moved < 1e-3, moved
    runs = json.loads((tmp_path / "second" / "record.json").read_text())["runs"]
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    assert [run["started_from"] for run in runs] == [None, digest]


@pytest.mark.parametrize(("stage", "file"), [("decoder", "there.safetensors"), ("editor", "missing.safetensors")])
def test_a_start_that_cannot_be_is_named(tmp_path: Path, stage: str, file: str) -> None:
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(SystemExit, match=stage if stage == "decoder" else file):
        train.main(["--out", str(tmp_path / "out"), "--stage", stage, "--start-from", str(tmp_path / file)])
    assert not (tmp_path / "out").exists()


def test_the_editor_needs_an_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="autoencoder"):
        train.main(["--out", str(tmp_path), "--stage", "editor"])
