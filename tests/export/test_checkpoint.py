"""Loading a model: only what it should be, whole, without code or pickles; every mistake is one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import InputError


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "model"))


def test_loads_what_diffusers_loads(checkpoint_folder: Path) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    ours = load_checkpoint(checkpoint_folder)
    theirs = StableDiffusionInstructPix2PixPipeline.from_pretrained(checkpoint_folder)
    for name in ("unet", "vae", "text_encoder"):
        mine, other = getattr(ours, name).state_dict(), getattr(theirs, name).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert ours.vae_factor == theirs.vae_scale_factor == 8
    assert ours.size_multiple == 64


def test_dtype_and_modes(checkpoint_folder: Path) -> None:
    loaded = load_checkpoint(checkpoint_folder, dtype=torch.bfloat16)
    for module in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_recommended_values_are_read(folder: Path) -> None:
    (folder / "fairy.json").write_text('{"long_side": 256, "num_inference_steps": 7}')
    assert load_checkpoint(folder).recommended == {"long_side": 256, "num_inference_steps": 7}


def _missing(folder: Path) -> Path:
    return folder.parent / "nowhere"


def _no_index(folder: Path) -> Path:
    (folder / "model_index.json").unlink()
    return folder


def _broken_index(folder: Path) -> Path:
    (folder / "model_index.json").write_text("{")
    return folder


def _other_class(folder: Path) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "SomeOtherModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _remote_code(folder: Path) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["unet.evil", "UNet2DConditionModelX"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "evil.py").write_text("raise SystemExit('code from the checkpoint ran')")
    return folder


def _no_vae(folder: Path) -> Path:
    shutil.rmtree(folder / "vae")
    return folder


def _pickle_only(folder: Path) -> Path:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    return folder


def _truncated(folder: Path) -> Path:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def _four_channels(folder: Path) -> Path:
    from tests.conftest import make_unet

    make_unet(in_channels=4).save_pretrained(folder / "unet")
    return folder


def _no_scheduler(folder: Path) -> Path:
    shutil.rmtree(folder / "scheduler")
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing, "neither a folder .* nor a hub id"),
        (_no_index, "no model_index.json"),
        (_broken_index, "not a readable JSON"),
        (_other_class, "SomeOtherModel, but only UNet2DConditionModel"),
        (_remote_code, "only UNet2DConditionModel can be run"),
        (_no_vae, "no folder vae"),
        (_pickle_only, "only whole safetensors"),
        (_truncated, "only whole safetensors"),
        (_four_channels, "takes 4 channels, not the 8"),
        (_no_scheduler, "scheduler_config.json"),
    ],
)
def test_a_spoilt_model_is_refused_in_a_sentence(folder: Path, spoil, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_checkpoint(str(spoil(folder)))
    assert "\n" not in str(caught.value)


def test_a_hub_model_that_is_not_at_hand_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be fetched from the hub"):
        load_checkpoint("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
