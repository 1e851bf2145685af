"""Networks and tokenizers from folders, from safetensors alone, complete or not at all."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fairy.kernels.errors import InputError


def load_network(
    cls: Any, where: Path, dtype: torch.dtype, *, what: str | None = None, variant: str | None = None
) -> Any:
    """A network of diffusers' or transformers' kind, ready to be used; `what` sentences call it. Raises InputError."""
    precision = "dtype" if cls.__module__.startswith("transformers.") else "torch_dtype"
    how = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, precision: dtype}
    with one_sentence(where, what):
        network, info = cls.from_pretrained(where, variant=variant, **how)
    if info["missing_keys"]:  # they would be left at random values
        first = sorted(info["missing_keys"])[0]
        raise InputError(f"The {what or 'network'} in {where} lacks weights, {first} among them; get its files anew.")
    return network.eval().requires_grad_(False)


def load_tokenizer(where: Path) -> Any:
    """The CLIP tokenizer of a folder. Raises InputError."""
    from transformers import CLIPTokenizer

    with one_sentence(where):
        return CLIPTokenizer.from_pretrained(where, local_files_only=True)


@torch.inference_mode()
def text_features(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Tensor:
    """Features of texts, [texts, L, C], where the encoder is."""
    tokens = token_ids(tokenizer, texts)
    return cast(Tensor, encoder(tokens.to(encoder.device)).last_hidden_state)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Ids of texts, [texts, L], filled up or cut to the tokenizer's length."""
    how = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return cast(Tensor, tokenizer(list(texts), return_tensors="pt", **how).input_ids)


@contextmanager
def one_sentence(where: Path, what: str | None = None) -> Iterator[None]:
    """What the libraries raise for a broken file is not theirs to promise."""
    try:
        with quiet_loading():
            yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        named = f"What lies in {where}" if what is None else f"The {what} in {where}"
        raise InputError(f"{named} cannot be loaded ({reason}); get its files anew.") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading without the progress bars and sentences of the libraries: what matters of them is checked here."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = of_transformers.is_progress_bar_enabled()
    levels = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    for library in (of_diffusers, of_transformers):
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip((of_diffusers, of_transformers), levels, strict=True):
            library.set_verbosity(level)
        of_diffusers.enable_progress_bar()
        if shown:
            of_transformers.enable_progress_bar()
