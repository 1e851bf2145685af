"""Anchors whose edited look the user gives, painted by hand or by any other editor: the other frames follow them."""

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.params import EditParams
from fairy.runtime.video.images import load_picture

_SHAPE = 0.02
"""By so much of it the proportion of a picture's sides may differ from the video's: a few rounded pixels."""


def check_looks(params: EditParams, size: tuple[int, int]) -> None:
    """Refuse pictures that cannot be read, or are not of the shape of the video's frames, (height, width)."""
    height, width = size
    for frame in params.looks:
        high, wide = load_look(params, frame).shape[:2]
        if abs(wide * height / (high * width) - 1.0) > _SHAPE:
            raise InputError(
                f"of frame {frame} has {wide}×{high} pixels, which is not the shape of the video's {width}×{height}",
                name="anchor_images",
                value=str(params.looks[frame]),
                remedy="paint over a frame of the video, or cut the picture to its shape",
            )


def load_look(params: EditParams, frame: int) -> Frames:
    """The picture [h, w, 3] of an anchor. Raises InputError."""
    path = user_path(params.looks[frame])
    if not path.is_file():
        raise InputError("does not exist", name="anchor_images", value=str(path), remedy="check the path")
    return load_picture(path, params.max_pixels)
