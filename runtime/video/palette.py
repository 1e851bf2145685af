"""Pictures for GIF: each with 256 colours of its own, and dots of them between. Runs in helper processes only."""

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray


def with_palette(picture: NDArray[np.uint8]) -> VideoFrame:
    """A picture [H, W, 3] as pal8: colours by an octree, errors diffused as Floyd and Steinberg do."""
    from PIL import Image  # here, because nothing else that writes needs it

    whole = Image.fromarray(picture)
    found = whole.quantize(256, method=Image.Quantize.FASTOCTREE)
    dithered = whole.quantize(palette=found, dither=Image.Dither.FLOYDSTEINBERG)
    palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    colours = np.frombuffer(bytes(dithered.getpalette("RGB") or []), np.uint8).reshape(-1, 3)
    palette[: len(colours), 0], palette[: len(colours), 1:] = 255, colours
    return VideoFrame.from_ndarray((np.asarray(dithered), palette), format="pal8")  # type: ignore[arg-type]  # stubs know no palette
