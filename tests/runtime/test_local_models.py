"""`fairy models`: what is at hand, told from configurations and cards alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairy.kernels.errors import InputError
from fairy.runtime.cli import main as cli
from fairy.runtime.models.local import local_models


@pytest.fixture
def cache(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model, whose card states a licence."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = Path(shutil.copytree(checkpoint_folder, repository / "snapshots" / "0123abcd"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    (snapshot / "README.md").write_text("---\nlicense: openrail\ntags: [x]\n---\n# A model\nlicense: none\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


def test_what_is_at_hand(cache: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["licence"] for model in found[:2]] == ["Apache-2.0"] * 2
    assert [Path(model["path"]).is_dir() for model in found] == [True] * len(found)
    own = [model for model in found if model["name"] == "owner/name"]
    assert [(m["family"], m["licence"]) for m in own] == [
        ("editor: StableDiffusionInstructPix2PixPipeline, sees the picture", "openrail")
    ]
    assert cli.run(["models"]) == 0
    assert "licence: openrail" in capsys.readouterr().out


def test_folders_of_models_and_files(checkpoint_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint_folder, tmp_path / "whole")
    shutil.copytree(checkpoint_folder, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "unet")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    files = {
        "editor": {first: torch.zeros(4, 8, 3, 3)},
        "painter": {first: torch.zeros(4, 4, 3, 3)},
        "lora": {"lora_unet_x.lora_down.weight": torch.zeros(1, 1)},
        "adapter": {"image_proj.proj.weight": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)},
        "other": {"x": torch.zeros(1)},
    }
    configs = {"canny": {"_class_name": "ControlNetModel"}, "sketch": {"_class_name": "T2IAdapter"}}
    configs |= {"finder": {"model_type": "clipseg"}, "depth": {"model_type": "dpt"}, "unknown": {"model_type": "x"}}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"x")
    found = {Path(m.path).name: m.family for m in local_models([tmp_path]) if Path(m.path).parent == tmp_path}
    assert found.pop("broken").startswith("cannot be used (")
    assert found == {
        "whole": "editor: StableDiffusionInstructPix2PixPipeline, sees the picture",
        "editor.safetensors": "editor in one file (needs --config)",
        "painter.safetensors": "no editor: one file, 4 channels in",
        "canny": "ControlNet (--controlnet)",
        "sketch": "T2I adapter (--controlnet)",
        "finder": "segmenter (--segmenter)",
        "depth": "depth estimator (--depth-estimator)",
        "lora.safetensors": "LoRA (--lora)",
        "adapter.safetensors": "IP-Adapter (--ip-adapter)",
        "other.safetensors": "weights of another kind",
        "torn.safetensors": "cannot be used (no whole safetensors file)",
    }
    with pytest.raises(InputError, match="is not a folder"):
        list(local_models([tmp_path / "nowhere"]))
