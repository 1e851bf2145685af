"""Loading a model: only what it should be, whole, without code or pickles; every mistake is one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fairy.export.checkpoint import describe_model, load_checkpoint
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


def _missing_weight(part: str):
    def spoil(folder: Path) -> Path:
        from safetensors.torch import load_file, save_file

        (path,) = (folder / part).glob("*.safetensors")
        weights = load_file(path)
        weights.pop(sorted(weights)[0])
        save_file(weights, path, {"format": "pt"})
        return folder

    return spoil


def _empty(name: str):
    def spoil(folder: Path) -> Path:
        (folder / name).write_bytes(b"")
        return folder

    return spoil


def _no_tokenizer_files(folder: Path) -> Path:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    return folder


def _index_entry(value: object):
    def spoil(folder: Path) -> Path:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "unet": value}))
        return folder

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing_weight("text_encoder"), "text_encoder .* lacks weights"),
        (_missing_weight("unet"), "unet .* lacks weights|unet .* cannot be loaded"),
        (_missing_weight("vae"), "vae .* lacks weights|vae .* cannot be loaded"),
        (_empty("text_encoder/model.safetensors"), "text_encoder .* cannot be loaded"),
        (_empty("vae/config.json"), "vae .* cannot be loaded"),
        (_no_tokenizer_files, "no tokenizer.json or vocab.json"),
        (_index_entry(["x"]), "only UNet2DConditionModel"),
        (_index_entry("none"), "only UNet2DConditionModel"),
        (_missing, "neither a folder .* nor a hub id"),
        (_no_index, "no model_index.json"),
        (_broken_index, "not a readable JSON"),
        (_other_class, "SomeOtherModel, but only UNet2DConditionModel"),
        (_remote_code, "only UNet2DConditionModel can be run"),
        (_no_vae, "no folder vae"),
        (_pickle_only, "whole safetensors"),
        (_truncated, "whole safetensors"),
        (_four_channels, "takes 4 channels, not the 8"),
        (_no_scheduler, "scheduler_config.json"),
    ],
)
def test_a_spoilt_model_is_refused_in_a_sentence(folder: Path, spoil, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_checkpoint(str(spoil(folder)))
    assert "\n" not in str(caught.value)


def as_variant(folder: Path, variant: str, *, shards: bool = False) -> Path:
    """The same model as diffusers' `save_pretrained(variant=…)` writes it."""
    loaded = load_checkpoint(folder)
    for name in ("unet", "vae", "text_encoder"):
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        size = {"max_shard_size": "40KB"} if shards else {}
        getattr(loaded, name).half().save_pretrained(folder / name, variant=variant, **size)
    return folder


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "shards"])
@pytest.mark.parametrize("asked", [None, "fp16"])
def test_a_folder_with_nothing_but_a_variant_is_loaded(
    folder: Path, capfd: pytest.CaptureFixture[str], asked: str | None, shards: bool
) -> None:
    plain = load_checkpoint(folder)
    as_variant(folder, "fp16", shards=shards)
    capfd.readouterr()
    found = load_checkpoint(folder, variant=asked)
    for name in ("unet", "vae", "text_encoder"):
        mine, other = getattr(found, name).state_dict(), getattr(plain, name).state_dict()
        assert all(torch.equal(mine[key].float(), other[key].half().float()) for key in other)
    assert describe_model(folder)["variants"]["unet"] == ["fp16"]
    assert capfd.readouterr().err == "", "no bars and sentences of other libraries"


def test_a_variant_that_is_not_there_names_what_is(folder: Path) -> None:
    with pytest.raises(InputError, match="no weights of the variant 'bf16'; it has those without a variant"):
        load_checkpoint(folder, variant="bf16")
    with pytest.raises(InputError, match="no weights of the variant 'bf16'; it has fp16"):
        load_checkpoint(as_variant(folder, "fp16"), variant="bf16")


def test_a_missing_shard_is_named_whole(folder: Path) -> None:
    as_variant(folder, "fp16", shards=True)
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    shards[1].unlink()
    for look in (load_checkpoint, describe_model):
        with pytest.raises(InputError, match=rf"lacks {shards[1].name}, 1 of its {len(shards)} files; get"):
            look(folder)


def test_only_one_precision_of_each_network_is_fetched() -> None:
    from fnmatch import fnmatch

    from fairy.export.checkpoint import hub_patterns

    files = [
        "model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors", "v1-5-pruned.safetensors",
    ]  # fmt: skip
    chosen = {name for name in files if any(fnmatch(name, pattern) for pattern in hub_patterns())}
    assert chosen == {name for name in files if ".fp16" not in name and "safety" not in name} - {
        "unet/diffusion_pytorch_model.bin", "v1-5-pruned.safetensors"}  # fmt: skip
    half = {name for name in files if any(fnmatch(name, pattern) for pattern in hub_patterns("fp16"))}
    assert {name for name in half if "safetensors" in name} == {name for name in files if ".fp16." in name}


def test_a_hub_model_that_is_not_at_hand_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be fetched from the hub"):
        load_checkpoint("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
