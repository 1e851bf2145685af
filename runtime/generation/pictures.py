"""Frames and pictures as the stages take and make them: float32 [3, H, W] in 0 to 1."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.inputs.frames import Frames


def to_uint8(frame_CHW: Tensor) -> Frames:
    """float32 [3, H, W] in 0 to 1 to uint8 [H, W, 3]."""
    made: Frames = (frame_CHW * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return made


def to_float(frame_HWC: Frames) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W] in 0 to 1."""
    return torch.tensor(frame_HWC).permute(2, 0, 1).float() / 255


def read_image(path: str | Path, height: int, width: int) -> Tensor:
    """A picture, cut to the shape of the base stage's frames in its middle and scaled: float32 [3, height, width].

    Raises:
        InputError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(user_path(path)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"The picture {path} cannot be read ({error}); name a .png or .jpg file.") from error
    return fitted(to_float(np.array(picture)), height, width)


def fitted(picture_CHW: Tensor, height: int, width: int) -> Tensor:
    """A picture [3, H, W] in 0 to 1, cut to a shape in its middle and scaled: float32 [3, height, width]."""
    tall, broad = picture_CHW.shape[1:]
    share = min(tall / height, broad / width)
    high, wide = max(1, int(height * share)), max(1, int(width * share))
    top, left = (tall - high) // 2, (broad - wide) // 2
    part = picture_CHW[None, :, top : top + high, left : left + wide]
    return F.interpolate(part, (height, width), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
