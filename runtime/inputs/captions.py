"""What a picture shows, in words: the source prompt of an inversion where the user gave none."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairy.kernels.errors import InputError

CAPTIONER = "Salesforce/blip-image-captioning-base"
_MOST_TOKENS = 30


@torch.inference_mode()
def caption(picture: np.ndarray[Any, np.dtype[np.uint8]], model: str | Path = CAPTIONER) -> str:
    """A caption of a frame uint8 [H, W, 3] by BLIP (arXiv 2201.12086), on the CPU, the same every time.

    Args:
        model: a folder or hub id; only files that are on this machine are read.

    Raises:
        InputError: its weights are not on this machine.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    try:
        processor = BlipProcessor.from_pretrained(model, local_files_only=True)
        network = BlipForConditionalGeneration.from_pretrained(model, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        problem, remedy = f"needs {model} on this machine", f"run `hf download {model}`, or describe the video in words"
        raise InputError(problem, name="source_prompt", value="auto", remedy=remedy) from error
    inputs = processor(images=picture, return_tensors="pt")
    tokens = network.eval().generate(**inputs, max_new_tokens=_MOST_TOKENS, do_sample=False)
    text: str = processor.decode(tokens[0], skip_special_tokens=True)
    return text.strip()
