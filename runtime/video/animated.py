"""Animated WebP, which FFmpeg does not decode: through Pillow, in the helper process like everything else."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from av.video.frame import VideoFrame

from fairy.runtime.video.helper import Refusal

_MOST_FRAMES = 100_000
_SHORTEST_MS, _USUAL_MS = 10, 100
"""Browsers show a frame that asks for less as long as is usual."""


def is_webp(path: Path) -> bool:
    """Whether the file says so."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


class AnimatedWebp:
    """Frames that follow each other in one picture file; a context manager like `OpenedVideo`."""

    crop = (0, 0, 0, 0)
    ends_early = False
    has_alpha = False
    stream = None
    tick = Fraction(1, 1000)

    def __init__(self, path: Path, max_pixels: int) -> None:
        from PIL import Image, UnidentifiedImageError  # here, because nothing else in a helper needs it

        self.path = path
        Image.MAX_IMAGE_PIXELS = None  # the limit is our own
        try:
            self._image: Any = Image.open(path, formats=("WEBP",))
        except (UnidentifiedImageError, OSError, ValueError):
            raise Refusal(f"{path} is not a WebP picture that can be read; export it again.") from None
        width, height = self._image.size
        if width * height > max_pixels:
            raise Refusal(
                f"{path} has {width}×{height} pixels, more than max_pixels = {max_pixels:,} allows; "
                "make it smaller or raise max_pixels."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._image.close()

    def describe(self) -> dict[str, Any]:
        """As of a video file without sound."""
        return {"container": "webp", "codec": "webp", "rates": [], "audio": [], "other": []}

    def zero(self, first: int) -> int:
        """Its clock begins at 0."""
        return 0

    def decode(self) -> Iterator[tuple[VideoFrame, int]]:
        """Every frame with its time in milliseconds."""
        at = 0
        for index in range(min(getattr(self._image, "n_frames", 1), _MOST_FRAMES)):
            try:
                self._image.seek(index)
                mode = "RGBA" if self._image.mode == "RGBA" else "RGB"
                pixels = np.asarray(self._image.convert(mode))
            except MemoryError:
                raise
            except Exception:
                raise Refusal(f"{self.path} is damaged at {at / 1000:.2f} s; export it again.") from None
            frame = VideoFrame.from_ndarray(pixels, format="rgba" if mode == "RGBA" else "rgb24")
            asked_ms = int(self._image.info.get("duration") or 0)
            frame.pts, frame.time_base = at, self.tick
            frame.duration = asked_ms if asked_ms > _SHORTEST_MS else _USUAL_MS
            yield frame, at
            at += frame.duration
