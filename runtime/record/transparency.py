"""The source's transparency, given back to the edited frames where what is written can hold it.

The edit saw the source over black. So a frame's colours are divided by how opaque it is: laid over black it is the edit
again, laid over anything else the cut-out of it, without a dark seam.
"""

from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from fairy.runtime.inputs.frames import Frames, Source
from fairy.runtime.inputs.masks import scaled_weights

if TYPE_CHECKING:
    from fairy.runtime.record.edit_report import FrameWriter


class WithAlpha:
    """A writer of frames with four channels that takes those of a source's edit: [n, height, width, 3]."""

    def __init__(self, writer: "FrameWriter", source: Source) -> None:
        self.notes = writer.notes
        self._writer = writer
        self._alphas: Generator[Frames, None, None] = source.read_alpha()

    def write(self, frames: Frames) -> None:
        """The next frames, uint8 [n, height, width, 3]."""
        for frame in frames:
            alpha = scaled_weights(next(self._alphas)[..., 0], frame.shape[:2])
            self._writer.write(straight(frame, alpha)[None])

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alphas.close()
        self._writer.__exit__(kind, error, trace)


def straight(frame: Frames, alpha: Frames) -> Frames:
    """A frame over black [H, W, 3], whose opacity is [H, W], as its colours and that: uint8 [H, W, 4].

    Where it is opaque the colours are the frame's, where it is not at all they are black.
    """
    opaque = alpha.astype(np.uint16)[..., None]
    colours = (frame.astype(np.uint16) * 255 + opaque // 2) // np.maximum(opaque, 1)
    seen = np.where(opaque > 0, colours.clip(max=255), 0).astype(np.uint8)
    return np.concatenate([seen, alpha[..., None]], axis=2)
