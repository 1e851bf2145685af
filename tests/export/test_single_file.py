"""Models in one file: the same networks as from their folder, nothing of them missing, no pickle read."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairy.engines.store.key import weights_digest
from fairy.export.checkpoint import Checkpoint, load_checkpoint
from fairy.kernels.errors import InputError

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def renamed(name: str, table: dict[str, str]) -> str:
    """A name whose beginning is in a table."""
    old = next((old for old in table if name.startswith(f"{old}.")), None)
    return name if old is None else table[old] + name[len(old) :]


def of_unet(name: str) -> str:
    """Stable Diffusion's own name of a weight of a UNet with two layers a block."""
    part, _, rest = name.partition("_block")
    found = re.match(r"s?\.(?:(\d)\.)?(\w+)\.(\d)\.(.*)", rest)
    if found is None or part not in ("down", "mid", "up"):
        return renamed(name, ENDS)
    block, kind, number, inner = int(found[1] or 0), found[2], int(found[3]), found[4]
    inner = renamed(inner, RESNET) if kind == "resnets" else inner
    if part == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{inner}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.{min(block, 1) + 1}.{inner}"
    place = f"input_blocks.{3 * block + number + 1}" if part == "down" else f"output_blocks.{3 * block + number}"
    return f"{place}.{int(kind == 'attentions')}.{inner}"


def of_vae(name: str) -> str:
    """The same of an autoencoder with four blocks."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    found = re.match(r"(encoder|decoder)\.(mid|down|up)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.*)", name)
    if found is None:
        return name
    half, part, block, kind, number, inner = found.groups()
    if part == "mid" and kind == "attentions":
        return f"{half}.mid.attn_1.{renamed(inner, ATTENTION)}"
    if part == "mid":
        return f"{half}.mid.block_{int(number) + 1}.{inner}"
    level = int(block) if part == "down" else 3 - int(block)
    return f"{half}.{part}.{level}.{f'block.{number}' if kind == 'resnets' else f'{part}sample'}.{inner}"


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """A model as one file has it."""
    made = {f"model.diffusion_model.{of_unet(name)}": t for name, t in checkpoint.unet.state_dict().items()}
    for name, t in checkpoint.vae.state_dict().items():
        key = f"first_stage_model.{of_vae(name)}"
        made[key] = t[..., None, None] if ".attn_1." in key and t.ndim == 2 else t
    for name, t in checkpoint.text_encoder.state_dict().items():
        made[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = t
    return {name: t.clone() for name, t in made.items()}


@pytest.fixture(scope="module")
def whole(checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folder)


@pytest.fixture(scope="module")
def config(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder without its weights."""
    folder = tmp_path_factory.mktemp("config") / "model"
    return Path(shutil.copytree(checkpoint_folder, folder, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture(scope="module")
def file(whole: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(tensors_of(whole), path)
    return path


def test_it_is_the_model_of_the_folder(
    whole: Checkpoint, file: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = load_checkpoint(file, config=config)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(checkpoint, name).state_dict() for checkpoint in (found, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(t, theirs[key]) for key, t in ours.items()), name
    assert found.scheduler_config == whole.scheduler_config
    assert (found.single_file, found.folder) == (file, config)
    assert weights_digest(found, "unet") != weights_digest(whole, "unet"), "files are known by their bytes"


def test_what_is_missing_is_told(whole: Checkpoint, file: Path, config: Path, tmp_path: Path) -> None:
    tensors, lacking = tensors_of(whole), tmp_path / "lacking.safetensors"
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, lacking)
    with pytest.raises(InputError, match=r"unet"):
        load_checkpoint(lacking, config=config)
    save_file({name: t for name, t in tensors_of(whole).items() if not name.startswith("first_stage")}, lacking)
    with pytest.raises(InputError, match="has no vae"):
        load_checkpoint(lacking, config=config)
    with pytest.raises(InputError, match="name a folder in diffusers' format"):
        load_checkpoint(file)
    with pytest.raises(InputError, match="config = 'nowhere' is not a folder"):
        load_checkpoint(file, config="nowhere")


def test_pickles_and_needless_configurations_are_refused(checkpoint_folder: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"is a pickle, which can run any code.*save_pretrained"):
        load_checkpoint(tmp_path / "model.ckpt", config=config)
    with pytest.raises(InputError, match="is for a model in one file"):
        load_checkpoint(checkpoint_folder, config=config)
