"""What ControlNets and T2I adapters see of a frame: its edges, its depth, or a picture that the user brings.

Edges and depth are computed as diffusers' documentation does it: `cv2.Canny` with thresholds of 100 and 200 on the
scaled frame, and a DPT's depth of the padded frame, near white.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.export.model import EditModel
from fairy.runtime.inputs.depth import estimated
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.controls import ControlUse
from fairy.runtime.plan.geometry import Geometry, pad_by_reflection, scale_frames

_THRESHOLDS = (100, 200)  # of the gradient, in levels of 0 to 255


def condition_of(
    checkpoint: EditModel, use: ControlUse, picture: Frames, geometry: Geometry, device: torch.device
) -> Tensor:
    """What a control sees of a frame.

    Args:
        picture: the frame as it is handed on, uint8 [H, W, channels].

    Returns:
        float32 [1, 3, padded height, padded width] in 0…1.
    """
    channel = use.channel or 0
    levels = torch.from_numpy(picture[..., channel : channel + 3].copy()).to(device).permute(2, 0, 1).float()[None]
    scaled = scale_frames(levels, geometry.scaled)
    if use.sees == "depth":
        padded = pad_by_reflection(scaled, geometry.padded)
        return estimated(checkpoint, padded, geometry.padded).expand(-1, 3, -1, -1) / 2 + 0.5
    if use.sees == "canny":
        scaled = edges(scaled)
    return pad_by_reflection(scaled / 255.0, geometry.padded)


def edges(levels: Tensor) -> Tensor:
    """Canny's edges of a picture [1, 3, H, W] in 0…255: 0 or 255, the same in all three channels."""
    import cv2

    picture = levels[0].round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    found = torch.from_numpy(cv2.Canny(picture, *_THRESHOLDS)).to(levels.device)
    return found.float().expand(1, 3, -1, -1)


def resized(picture: Frames, size: tuple[int, int]) -> Frames:
    """A given picture [h, w, 3] at the size of the frames."""
    if picture.shape[:2] == size:
        return picture
    levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None]
    scaled = F.interpolate(levels, size, mode="bicubic", antialias=True, align_corners=False)
    result: Frames = scaled[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return result
