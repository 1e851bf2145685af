"""Which safetensors files of a network's folder are read: one variant, whole."""

import json
import re
from pathlib import Path

from fairy.kernels.errors import InputError

OF_DIFFUSERS = "diffusion_pytorch_model"
STEMS = {"unet": OF_DIFFUSERS, "vae": OF_DIFFUSERS, "text_encoder": "model"}
"""Network -> how its files' names begin, in diffusers and transformers."""
_PREFERRED = ("fp16", "bf16")


def variants_of(where: Path, stem: str) -> tuple[str, ...]:
    """The variants that a folder holds weights of, the one to prefer first; "" is that without a name."""
    shape = re.compile(rf"{re.escape(stem)}(?:\.(?!safetensors)([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
    index = re.compile(rf"{re.escape(stem)}\.safetensors\.index(?:\.([\w-]+))?\.json")
    matches = (shape.fullmatch(file.name) or index.fullmatch(file.name) for file in where.glob(f"{stem}*"))
    found = {match[1] or "" for match in matches if match}
    return tuple(sorted(found, key=lambda name: (name != "", *(name != known for known in _PREFERRED), name)))


def choose_variant(where: Path, name: str, asked: str | None) -> str | None:
    """The variant to load of the network `name`: as asked for, else the one without a name, else what there is.

    Raises:
        InputError: one was asked for that the folder does not hold.
    """
    found = variants_of(where, STEMS[name])
    if asked is not None and asked not in found:
        there = " and ".join(variant or "those without a variant" for variant in found) or "no safetensors files"
        raise InputError(f"The {name} in {where} has no weights of the variant {asked!r}; it has {there}.")
    return asked or (found[0] if found else None) or None


def check_is_whole(where: Path, name: str, variant: str | None) -> None:
    """Refuse, by its whole name, the first file that the folder's own index names and that is not there."""
    index = where / f"{STEMS.get(name, OF_DIFFUSERS)}.safetensors.index{'' if variant is None else '.' + variant}.json"
    if not index.is_file():
        return
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is not a readable index of weights; get the model's files anew.") from None
    missing = [str(file) for file in files if not (where / str(file)).is_file()]
    if missing:
        raise InputError(
            f"The {name} in {where} lacks {missing[0]}, {len(missing)} of its {len(files)} files; "
            "get the model's files anew."
        )
