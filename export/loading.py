"""Networks and tokenizers from folders, from safetensors alone, complete or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fairy.export.checkpoint import quiet_loading
from fairy.kernels.errors import InputError


def load_network(cls: Any, where: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers' or transformers' kind, ready to be used. Raises InputError."""
    precision = "dtype" if cls.__module__.startswith("transformers.") else "torch_dtype"
    how = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, precision: dtype}
    with one_sentence(where):
        network, info = cls.from_pretrained(where, **how)
    if info["missing_keys"]:  # they would be left at random values
        first = sorted(info["missing_keys"])[0]
        raise InputError(f"The network in {where} lacks weights, {first} among them; get its files anew.")
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
def one_sentence(where: Path) -> Iterator[None]:
    """What the libraries raise for a broken file is not theirs to promise."""
    try:
        with quiet_loading():
            yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"What lies in {where} cannot be loaded ({reason}); get its files anew.") from error
