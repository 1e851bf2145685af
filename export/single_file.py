"""Checkpoints in one file, with the names of Stable Diffusion's own code, as many trainers write them.

diffusers converts the names. What a file does not say, how large the networks are, the tokenizer and the schedule,
comes from a folder in diffusers' format, whose own weights, if it has some, are not read.
"""

from pathlib import Path
from typing import Any

import torch

from fairy.kernels.errors import InputError

_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def single_file(model: str | Path) -> Path | None:
    """The file that `model` names; None where it is a folder or a hub id.

    Raises:
        InputError: the file is of a kind that may hold code.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() in _PICKLES and (path.is_file() or not path.exists()):
        raise InputError(
            f"{path} is a pickle, which can run any code when it is read; if you trust it, convert it by diffusers' "
            "StableDiffusionInstructPix2PixPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give FOLDER."
        )
    return path if path.suffix.lower() == ".safetensors" and path.is_file() else None


def config_folder(file: Path, config: str | Path | None) -> Path:
    """The folder whose configuration a file has. Raises InputError where none is named."""
    if config is None:
        raise InputError(
            f"{file} holds weights alone; name a folder in diffusers' format of the same class of model, whose "
            "configuration, tokenizer and schedule are used (config, --config); its weights are not needed."
        )
    folder = Path(config).expanduser()
    if not folder.is_dir():
        raise InputError("is not a folder", name="config", value=str(config), remedy="give one in diffusers' format")
    return folder


def load_from_file(file: Path, folder: Path, name: str, cls: Any, dtype: torch.dtype) -> Any:
    """One network of a file, by the configuration in a folder.

    Args:
        name: "unet", "vae" or "text_encoder"; cls: its class.

    Raises:
        InputError: the file has no such network, or not all of it.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        keys = [key for key in opened.keys() if key.startswith(_PREFIXES[name])]  # noqa: SIM118  # it is no mapping
        tensors = {} if name != "text_encoder" else {key: opened.get_tensor(key) for key in keys}
    where: dict[str, Any] = {"config": str(folder), "subfolder": name, "torch_dtype": dtype, "local_files_only": True}
    if not keys:
        raise InputError(f"{file} has no {name} (no key begins with {_PREFIXES[name]}); choose a whole checkpoint.")
    if name == "text_encoder":
        from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

        network = create_diffusers_clip_model_from_ldm(cls, tensors, **where)
    else:
        network = cls.from_single_file(str(file), **where)
    if len(keys) < len(network.state_dict()):  # what is missing would be left at random values
        raise InputError(f"{file} lacks weights of the {name}: {len(keys)} of {len(network.state_dict())} are there.")
    return network.to(dtype)
