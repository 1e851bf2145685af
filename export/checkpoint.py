"""A checkpoint in diffusers' directory format, loaded component by component.

Only classes named here are ever made, only safetensors files are read, and no code comes from the checkpoint.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairy.kernels.errors import InputError

_COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_HUB_FILES = ["model_index.json", "fairy.json", "*/*.json", "*/*.safetensors", "*/*.txt"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The networks of one model and what its directory says about them.

    Attributes:
        name: what the user called it: a directory or a hub id.
        scheduler_config: the checkpoint's own scheduler configuration, as it stands.
        recommended: values of `fairy.json` beside `model_index.json`; empty without that file.
    """

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    recommended: dict[str, Any]

    @property
    def vae_factor(self) -> int:
        """Pixels a latent stands for, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """What the padded sides of a picture must be a multiple of, in pixels."""
        return int(self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def text_channels(self) -> int:
        return int(self.unet.config.cross_attention_dim)


def load_checkpoint(
    model: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Load an InstructPix2Pix-type model from a directory in diffusers' format, or from the hub by its id.

    Raises:
        InputError: the model is missing, of another kind, or holds no safetensors files.
    """
    folder = _folder(model, revision, token, cache_dir, local_files_only)
    _check_index(folder)
    with _quiet():
        parts: dict[str, Any] = {name: _load(folder, name, dtype, variant) for name in _COMPONENTS}
    for name in ("unet", "vae", "text_encoder"):
        parts[name] = parts[name].eval().requires_grad_(False).to(device=device)
    checkpoint = Checkpoint(
        name=str(model),
        scheduler_config=_read_json(folder / "scheduler" / "scheduler_config.json"),
        recommended=_read_json(folder / "fairy.json") if (folder / "fairy.json").is_file() else {},
        **parts,
    )
    check_is_editor(checkpoint)
    return checkpoint


def check_is_editor(checkpoint: Checkpoint) -> None:
    """Refuse, in a sentence, networks that are not those of an InstructPix2Pix-type editor."""
    unet, vae = checkpoint.unet.config, checkpoint.vae.config
    if unet.in_channels != 2 * vae.latent_channels:
        raise InputError(
            f"{checkpoint.name} is not an InstructPix2Pix-type editor: its UNet takes {unet.in_channels} channels, "
            f"not the {2 * vae.latent_channels} of noisy and image latents; choose an instruction-editing checkpoint."
        )
    if unet.addition_embed_type is not None or unet.class_embed_type is not None:
        raise InputError(
            f"{checkpoint.name} needs additional embeddings ({unet.addition_embed_type or unet.class_embed_type}), "
            "which are not supported; choose a checkpoint of the Stable Diffusion 1.5 class."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without the progress bars that transformers draws on its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _folder(
    model: str | Path, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local: bool
) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if isinstance(model, Path) or path.exists() or str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise InputError(
            f"The model {str(model)!r} is neither a folder in diffusers' format nor a hub id such as owner/name."
        )
    return _download(str(model), revision, token, cache_dir, local)


def _download(
    model: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local: bool
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local,
                allow_patterns=_HUB_FILES,
            )
        )
    except Exception as error:  # the hub client raises a dozen kinds; each means the model is not to be had
        raise InputError(
            f"The model {model!r} could not be fetched from the hub ({type(error).__name__}); check the name and the "
            "network, or give a folder in diffusers' format."
        ) from error


def _check_index(folder: Path) -> None:
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise InputError(f"{folder} is not a model in diffusers' format: it has no model_index.json.")
    index = _read_json(index_file)
    for name, expected in _COMPONENTS.items():
        found = (index.get(name) or [None, None])[1]
        if found != expected and not (name == "tokenizer" and found in _TOKENIZERS):
            raise InputError(f"{folder} has the {name} {found}, but only {expected} can be run.")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise InputError(f"{folder} has no scheduler/scheduler_config.json, which says how the model was trained.")


def _load(folder: Path, name: str, dtype: torch.dtype, variant: str | None) -> Any:
    where = folder / name
    if not where.is_dir():
        raise InputError(f"{folder} has no folder {name}; the model is not complete.")
    try:
        if name == "tokenizer":
            from transformers import CLIPTokenizer

            return CLIPTokenizer.from_pretrained(where)
        if name == "text_encoder":
            from transformers import CLIPTextModel

            return CLIPTextModel.from_pretrained(where, dtype=dtype, use_safetensors=True, variant=variant)
        import diffusers

        cls = getattr(diffusers, _COMPONENTS[name])
        return cls.from_pretrained(where, torch_dtype=dtype, use_safetensors=True, variant=variant)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"The {name} in {where} cannot be loaded ({str(error).splitlines()[0][:200]}); "
            "only whole safetensors files in diffusers' format are read."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable JSON file ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return value
