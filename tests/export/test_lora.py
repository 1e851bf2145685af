"""LoRA files of every naming change the weights by what they say, and a key without a place is an error."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairy.engines.store.key import weights_digest
from fairy.export.checkpoint import load_checkpoint
from fairy.export.lora import Lora
from fairy.kernels.errors import InputError

RANK = 4
PLACES = {
    "unet": (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "down_blocks.0.attentions.0.proj_in",
        "down_blocks.0.resnets.0.conv1",
    ),
    "text_encoder": ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"),
}


def modules(checkpoint, part: str) -> dict[str, torch.nn.Module]:
    """By name, without the prefix that some versions of CLIP have."""
    named = getattr(checkpoint, part).named_modules()
    return {name.removeprefix("text_model."): module for name, module in named}


@pytest.fixture(scope="module")
def plain(checkpoint_folder: Path):
    return load_checkpoint(checkpoint_folder)


@pytest.fixture(scope="module")
def changes(plain) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """(part, module) -> down and up."""
    rng = torch.Generator().manual_seed(0)
    made = {}
    for part, places in PLACES.items():
        for name in places:
            out, *inner = modules(plain, part)[name].weight.shape
            up = torch.randn(out, RANK, *[1] * (len(inner) - 1), generator=rng)
            made[part, name] = torch.randn(RANK, *inner, generator=rng) * 0.1, up * 0.1
    return made


def kohya(changes, alpha: float = 2.0) -> dict[str, torch.Tensor]:
    found = {}
    for part, places in PLACES.items():
        for name in places:
            whole = ("lora_unet_" if part == "unet" else "lora_te_text_model_") + name.replace(".", "_")
            found[f"{whole}.lora_down.weight"], found[f"{whole}.lora_up.weight"] = changes[part, name]
            found[f"{whole}.alpha"] = torch.tensor(alpha)
    return found


def peft(changes) -> dict[str, torch.Tensor]:
    found = {}
    for (part, name), (down, up) in changes.items():
        whole = f"{part}.{'text_model.' * (part == 'text_encoder')}{name}"
        found[f"{whole}.lora_A.weight"], found[f"{whole}.lora_B.weight"] = down, up
    return found


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({key: t.clone().contiguous() for key, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_weights_change_by_what_the_file_says(
    plain, changes, checkpoint_folder: Path, tmp_path: Path, naming: str
) -> None:
    tensors, alpha = (kohya(changes), 2.0) if naming == "kohya" else (peft(changes), RANK)
    path = save(tensors, tmp_path / "style.safetensors")
    changed = load_checkpoint(checkpoint_folder, loras=[Lora(path, 0.5)])
    assert "style.safetensors:0.5" in changed.name
    for part in PLACES:
        for name, module in modules(changed, part).items():
            if not hasattr(module, "weight") or module.weight is None:
                continue
            before, after = modules(plain, part)[name].weight, module.weight
            if (part, name) not in changes:
                assert torch.equal(before, after), name
                continue
            down, up = (t.double().flatten(1) for t in changes[part, name])
            expected = before.double() + (0.5 * alpha / RANK * up @ down).reshape(before.shape)
            torch.testing.assert_close(after.double(), expected, atol=1e-6, rtol=0)


def test_two_halves_are_one_whole_and_none_is_none(plain, changes, checkpoint_folder: Path, tmp_path: Path) -> None:
    path = save(kohya(changes), tmp_path / "style.safetensors")
    whole, halves, none = (
        load_checkpoint(checkpoint_folder, loras=loras)
        for loras in ([Lora(path)], [Lora(path, 0.5), Lora(path, 0.5)], [Lora(path, 0.0)])
    )
    for part in PLACES:
        one = getattr(whole, part).state_dict()
        assert all(torch.equal(t, one[name]) for name, t in getattr(halves, part).state_dict().items())
        left = getattr(none, part).state_dict()
        assert all(torch.equal(t, left[name]) for name, t in getattr(plain, part).state_dict().items())


def test_engines_of_other_loras_are_other_engines(changes, checkpoint_folder: Path, tmp_path: Path) -> None:
    path = save(kohya(changes), tmp_path / "style.safetensors")
    made = [load_checkpoint(checkpoint_folder, loras=loras) for loras in ([], [Lora(path)], [Lora(path, 0.5)])]
    assert len({weights_digest(checkpoint, "unet") for checkpoint in made}) == 3
    assert len({weights_digest(checkpoint, "vae") for checkpoint in made}) == 1


def test_what_has_no_place_is_told(changes, checkpoint_folder: Path, tmp_path: Path) -> None:
    down, up = next(iter(changes.values()))
    for key, shape in (("down_blocks.9.attn1.to_q", up), ("conv_in", up), ("mid_block.attentions.0.proj_in", down.T)):
        tensors = peft(changes) | {f"unet.{key}.lora_A.weight": down, f"unet.{key}.lora_B.weight": shape}
        with pytest.raises(InputError, match=f"does not have .*{key}"):
            load_checkpoint(checkpoint_folder, loras=[Lora(save(tensors, tmp_path / "odd.safetensors"))])
    with pytest.raises(InputError, match="must be a .safetensors file that exists"):
        load_checkpoint(checkpoint_folder, loras=[Lora(tmp_path / "style.ckpt")])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no LoRA that can be read"):
        load_checkpoint(checkpoint_folder, loras=[Lora(tmp_path / "broken.safetensors")])
