"""Which pixels of which frame are edited: a picture for all frames, a folder of pictures, or a video. White is edited.

A masked frame travels as uint8 [H, W, 4]: its colours, then its mask's weight, 0 (source) to 255 (edit). So whatever
carries frames, to other processes too, carries their masks.
"""

from collections.abc import Collection, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.runtime.inputs.companions import Companion, open_companion
from fairy.runtime.inputs.frames import Frames, Source
from fairy.runtime.plan.geometry import Geometry, pad_by_reflection
from fairy.runtime.record.progress import Monitor

Weights = np.ndarray[Any, np.dtype[np.uint8]]
_WHITE = 128  # of 255; from here on a pixel of a mask counts as white


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of every edited frame.

    Attributes:
        size: (height, width) of the frames.
        still: the weights of all frames, uint8 [H, W]; None where each has its own, made of `pictures`.
        feather: pixels beyond the white ones over which the edit fades out.
    """

    size: tuple[int, int]
    still: Weights | None
    pictures: Companion
    feather: int

    def read(self, indices: Collection[int] | None, num_frames: int) -> Generator[Weights, None, None]:
        """Weights uint8 [H, W] of all frames, or of those of the given numbers, in order. Close it when done."""
        with closing(self.pictures.read(indices, num_frames)) as pictures:
            for picture in pictures:
                yield weights_of(picture, self.size, self.feather) if self.still is None else self.still


def open_mask(mask: str | Path, source: Source, feather: int, monitor: Monitor) -> Mask:
    """The mask of a source that was looked at.

    Raises:
        InputError: it cannot be read, or has another number of pictures than the source has frames.
    """
    pictures = open_companion("mask", mask, source, monitor)
    still = None if pictures.still is None else weights_of(pictures.still, source.size, feather)
    return Mask(source.size, still, pictures, feather)


def with_masks(
    frames: Generator[Frames, None, None], masks: Generator[Weights, None, None]
) -> Generator[Frames, None, None]:
    """Frames [H, W, 3] with their weights [H, W] as a fourth channel."""
    with closing(frames), closing(masks):
        for frame, weights in zip(frames, masks, strict=True):
            yield np.concatenate([frame, weights[..., None]], axis=2)


def colours(frame: Frames) -> Frames:
    """A frame without its mask, where it has one: a view [H, W, 3]."""
    return frame[..., :3]


def weights_of(picture: Frames, size: tuple[int, int], feather: int) -> Weights:
    """What a mask's picture [h, w, 3] says of frames of a size: 255 where it is white, 0 farther away than `feather`.

    White is grown by half of the feather and blurred over the rest of it, each by squares; so all that is white stays
    255, and what is more than so many rows or columns away from it is 0.
    """
    grey = torch.from_numpy(picture.astype(np.float32).mean(axis=2))[None, None]
    if tuple(grey.shape[-2:]) != size:
        grey = F.interpolate(grey, size, mode="bilinear", antialias=True, align_corners=False)
    white = grey[0, 0].numpy() >= _WHITE
    blur = feather // 2
    grown = _counts(np.pad(white, feather - blur), feather - blur) > 0
    share = _counts(np.pad(grown, blur, mode="edge"), blur) / (2 * blur + 1) ** 2
    weights: Weights = np.round(share * 255.0).astype(np.uint8)
    return weights


def latent_mask(weights: Weights, geometry: Geometry, factor: int) -> Tensor:
    """Which latents stand for a pixel that is edited: bool [1, h, w], by weights [H, W] of a frame.

    Args:
        factor: pixels a latent stands for, along one side.
    """
    edited = torch.from_numpy(weights > 0).float()[None]
    scaled = F.adaptive_max_pool2d(edited, geometry.scaled)
    return F.max_pool2d(pad_by_reflection(scaled, geometry.padded), factor) > 0


def composite(source: Frames, edited: Frames, weights: Weights) -> Frames:
    """Source and edit, uint8 [..., 3] each, mixed by weights [...]: at 0 the source's bytes, at 255 the edit's."""
    w = weights[..., None].astype(np.uint16)
    mixed: Frames = ((w * edited + (255 - w) * source + 127) // 255).astype(np.uint8)
    return mixed


def scaled_weights(weights: Weights, size: tuple[int, int]) -> Weights:
    """Weights [H, W] at another size."""
    if weights.shape == size:
        return weights
    levels = torch.from_numpy(weights.astype(np.float32))[None, None]
    scaled = F.interpolate(levels, size, mode="bilinear", antialias=True, align_corners=False)
    result: Weights = scaled[0, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    return result


def _counts(white: np.ndarray[Any, np.dtype[np.bool_]], reach: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How many pixels of the square of `reach` around each are white, without the outermost ones."""
    if reach == 0:
        return white.astype(np.int64)
    sums = np.pad(white.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * reach + 1
    counts: np.ndarray[Any, np.dtype[np.int64]] = (
        sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    )
    return counts
