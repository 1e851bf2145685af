"""Latents of pictures that were encoded lately, for several edits of one video: each picture is encoded once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fairy.runtime.inputs.frames import Frames

Key = bytes


class EncodedPictures:
    """The last ones, at most so many bytes of them, kept in ordinary memory. One thread at a time may use it.

    Attributes:
        found, made: how many were there, and how many had to be encoded.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._latents: OrderedDict[Key, Tensor] = OrderedDict()
        self.found = self.made = 0

    def get(self, key: Key, device: torch.device, encode: Callable[[], Tensor]) -> Tensor:
        """The latents of that picture, on the device; `encode` makes them where they are not there."""
        kept = self._latents.get(key)
        if kept is not None:
            self._latents.move_to_end(key)
            self.found += 1
            return kept.to(device)
        latents = encode()
        self.made += 1
        self._latents[key] = kept = latents.detach().cpu().clone()
        self._bytes += kept.nbytes
        while self._bytes > self._most_bytes:
            self._bytes -= self._latents.popitem(last=False)[1].nbytes
        return latents

    def forget(self, key: Key) -> None:
        """As if that picture had never been encoded."""
        kept = self._latents.pop(key, None)
        self._bytes -= 0 if kept is None else kept.nbytes


def key_of(picture: Frames, how: object) -> Key:
    """What decides the latents of a picture: its pixels, and how it is scaled, padded and computed."""
    digest = hashlib.sha256(repr((picture.shape, how)).encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.digest()
