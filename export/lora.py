"""LoRA: low-rank changes of a model's weights (Hu et al., arXiv 2106.09685), added to them when the model is loaded.

Files are read and their names converted by diffusers, as kohya's trainers, diffusers and PEFT write them. Engines and
workers then know no LoRA: they see other weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairy.kernels.errors import InputError

_PARTS = ("unet", "text_encoder")
_TOLD = 3  # names of keys without a place in an error


@dataclass(frozen=True, slots=True)
class Lora:
    """A file, and how much of its change is added; 1 = as it was trained."""

    path: Path
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.path.name}:{self.scale:g}"


_AND = " + "


def joined_name(model: str, loras: Sequence[Lora]) -> str:
    """What a model with LoRAs is called."""
    return _AND.join([model, *map(str, loras)])


def base_name(name: str) -> str:
    """What the model is called without its LoRAs."""
    return name.partition(_AND)[0]


@dataclass(frozen=True, slots=True)
class _Change:
    """up [out, rank, …] @ down [rank, in, …], times `scale`."""

    down: Tensor
    up: Tensor
    scale: float

    def of(self, weight: Tensor) -> Tensor:
        """The change of a weight, in float64 and its shape. Raises RuntimeError where the shapes do not fit."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return product.reshape(weight.shape) * self.scale


def fuse(networks: dict[str, nn.Module], loras: Sequence[Lora]) -> None:
    """Add the changes of some files to a model's weights, in place.

    All changes of a weight are summed up in float64 and added once, so that two halves are one whole.

    Args:
        networks: the model's networks by the name of their folder; "unet" and "text_encoder" are changed.

    Raises:
        InputError: a file cannot be read, or changes what the model does not have; the sentence names keys.
    """
    if not loras:
        return
    places = {(part, name): module for part in _PARTS for name, module in networks[part].named_modules()}
    changes: dict[tuple[str, str], list[_Change]] = {}
    for lora in loras:
        for part, name, change in _read(lora, places):
            changes.setdefault((part, name), []).append(change)
    with torch.no_grad():
        for place, found in changes.items():
            weight = places[place].weight
            assert isinstance(weight, Tensor)
            total = torch.stack([change.of(weight) for change in found]).sum(0)
            weight.copy_((weight.double() + total.to(weight.device)).to(weight.dtype))


def _read(lora: Lora, places: dict[tuple[str, str], nn.Module]) -> Iterator[tuple[str, str, _Change]]:
    """Every change of a file with the network and the module that it is for."""
    tensors, alphas = _tensors(lora)
    lost = sorted(tensors)
    found = []
    for key in [key for key in lost if key.endswith(".lora_A.weight")]:
        whole = key.removesuffix(".lora_A.weight")
        up = f"{whole}.lora_B.weight"
        place = _place(whole, places)
        if place is None or up not in tensors:
            continue
        down, rank = tensors[key], len(tensors[key])
        alpha = alphas.get(f"{key}.alpha", alphas.get(f"{whole}.alpha", rank))
        change = _Change(down, tensors[up], lora.scale * float(alpha) / rank)
        if not _fits(change, places[place]):
            continue
        lost = [other for other in lost if other not in (key, up)]
        found.append((*place, change))
    if lost or not found:
        told = ", ".join(lost[:_TOLD]) + (f" and {len(lost) - _TOLD} more" if len(lost) > _TOLD else "")
        raise InputError(
            f"{lora.path} changes what the model does not have ({told or 'nothing'}); "
            "choose a LoRA that was made for this class of model."
        )
    yield from found


def _fits(change: _Change, module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return False
    sides = change.up[0].numel() == change.down.shape[0] == change.up.shape[1]
    return sides and change.up.shape[0] == weight.shape[0] and change.down[0].numel() == weight[0].numel()


def _place(whole: str, places: dict[tuple[str, str], nn.Module]) -> tuple[str, str] | None:
    """The network and the module that a key names; versions of CLIP differ in whether their parts have a prefix."""
    part, _, name = whole.partition(".")
    names = (name, name.removeprefix("text_model."))
    return next(((part, each) for each in names if (part, each) in places), None)


def _tensors(lora: Lora) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors by PEFT's names, with the network's name before them, and its alphas."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    path = lora.path
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(
            f"{path} is no LoRA that is read: it must be a .safetensors file that exists; others may hold code."
        )
    try:
        tensors, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(path.absolute()), local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # what the library raises for a file of another kind is not its to promise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} is no LoRA that can be read ({reason}).") from error
    renamed: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    of_text = partial(
        convert_state_dict_to_peft, original_type=StateDictType.DIFFUSERS_OLD
    )  # knows the newer names too
    for part, convert in (("unet", convert_unet_state_dict_to_peft), ("text_encoder", of_text)):
        for into, given in ((renamed, tensors), (told, alphas or {})):
            own = {key.removeprefix(f"{part}."): t for key, t in given.items() if key.startswith(f"{part}.")}
            into.update({f"{part}.{key}": t for key, t in _converted(convert, own).items()})
    others = {key: t for key, t in tensors.items() if not key.startswith(tuple(f"{part}." for part in _PARTS))}
    return renamed | others, told


def _converted(convert: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Keys by PEFT's names; those that have them already stay."""
    if not tensors or any("lora_A" in key for key in tensors):
        return tensors
    converted: dict[str, Any] = convert(tensors)
    return converted
