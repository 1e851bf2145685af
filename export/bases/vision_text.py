"""Text encoded by a language model that sees a picture too (Qwen3-VL), as the model's own processor prepares it.

The processor's class needs torchvision for videos; here its two halves for pictures are used, which do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

_IMAGE, _TEXT = 1, 0  # types of tokens


@dataclass(frozen=True, slots=True)
class VisionText:
    """The encoder, on the device that it waits on, with what prepares its inputs."""

    encoder: Any
    tokenizer: Any
    image_processor: Any

    @property
    def channels(self) -> int:
        return int(self.encoder.config.get_text_config().hidden_size)

    @torch.inference_mode()
    def features(self, texts: Sequence[str], picture: Image, device: Any) -> list[Tensor]:
        """The last hidden states of texts, each with one place for the picture: [tokens, channels] each, on `device`.

        The encoder is on the device for this call only.
        """
        inputs = self.inputs(texts, picture)
        home = self.encoder.device
        self.encoder.to(device)
        try:
            told = {name: tensor.to(device) for name, tensor in inputs.items()}
            states = self.encoder(**told, output_hidden_states=True).hidden_states[-1]
        finally:
            self.encoder.to(home)
        return [row[mask.bool()] for row, mask in zip(states, told["attention_mask"], strict=True)]

    def inputs(self, texts: Sequence[str], picture: Image) -> dict[str, Tensor]:
        """What the encoder is told: the place of the picture is repeated for each of its tokens."""
        seen = self.image_processor(images=[picture] * len(texts), return_tensors="pt")
        image_id = self.encoder.config.image_token_id
        place = self.tokenizer.convert_ids_to_tokens(image_id)
        count = int(seen["image_grid_thw"][0].prod()) // self.image_processor.merge_size**2
        filled = [text.replace(place, place * count) for text in texts]
        told = self.tokenizer(filled, padding=True, return_tensors="pt")
        types = torch.where(told["input_ids"] == image_id, _IMAGE, _TEXT)
        words = {"input_ids": told["input_ids"], "attention_mask": told["attention_mask"], "mm_token_type_ids": types}
        return words | {name: seen[name] for name in ("pixel_values", "image_grid_thw")}
