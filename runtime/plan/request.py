"""What an edit of a file is asked to write, checked before a model is loaded or a frame is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.files import check_outputs, user_path
from fairy.runtime.video.formats import output_format
from fairy.runtime.video.info import exact_rate

DEFAULT_CRF = 18


SLOWEST_FPS = Fraction(1, 1000)  # containers have no room for much slower clocks


@dataclass(frozen=True, slots=True)
class FileRequest:
    """Absolute paths of the input and of everything to be written, and how.

    Attributes:
        video: a video file or a folder of images.
        out: the edited video; compare: source and result side by side; preview: the edited anchors as one picture;
            report: JSON.
        fps: frames per second, where the input has no clock; crf: quality of the encoder, 0 (best) to 51.
    """

    video: Path
    out: Path
    compare: Path | None
    preview: Path | None
    report: Path | None
    fps: Fraction | None
    crf: int

    @classmethod
    def checked(
        cls,
        video: str | Path,
        out: str | Path,
        *,
        compare: str | Path | None = None,
        preview: str | Path | None = None,
        report: str | Path | None = None,
        fps: float | Fraction | None = None,
        crf: int = DEFAULT_CRF,
        others: Sequence[str | Path | None] = (),
    ) -> "FileRequest":
        """The request with its paths made absolute; `others` are further inputs, which no output may replace.

        Raises:
            InputError: the input is missing, an output cannot be written, would meet another one or the input, or
                has an unknown ending, or a number is not possible.
        """
        source, target = user_path(video), user_path(out)
        beside, anchors, told = (None if path is None else user_path(path) for path in (compare, preview, report))
        request = cls(source, target, beside, anchors, told, check_fps(fps), check_crf(crf))
        if not source.exists():
            raise InputError(f"{video} does not exist; check the path.")
        outputs = {"out": target, "compare": beside, "preview": anchors, "report": told}
        check_outputs(outputs, source, *(user_path(path) for path in others if path is not None))
        for path in (target, beside):
            if path is not None:
                output_format(path)
        check_clock(has_clock=not source.is_dir(), fps=request.fps)
        return request


def check_fps(fps: Any) -> Fraction | None:
    """Frames per second as an exact fraction. Raises InputError unless it is from 0.001 to 1000."""
    if fps is None:
        return None
    if isinstance(fps, bool) or not isinstance(fps, Real) or not SLOWEST_FPS <= fps <= 1000:
        told = str(fps) if isinstance(fps, Fraction) else repr(fps)
        raise InputError(f"fps = {told} is not possible; it must be a number from 0.001 to 1000.")
    return exact_rate(fps if isinstance(fps, Fraction) else float(fps))


def check_crf(crf: Any) -> int:
    """The encoder's constant rate factor. Raises InputError unless it is a whole number from 0 to 51."""
    if isinstance(crf, bool) or not isinstance(crf, int) or not 0 <= crf <= 51:
        raise InputError(f"crf = {crf!r} is not possible; it must be a whole number from 0 (best) to 51.")
    return crf


def check_clock(*, has_clock: bool, fps: Fraction | None) -> None:
    """Frames need exactly one clock: the source's own time stamps, or a rate."""
    if not has_clock and fps is None:
        raise InputError("A folder of images or an array has no clock; say how many frames a second (fps, --fps).")
    if has_clock and fps is not None:
        raise InputError(f"fps = {float(fps):g} cannot be used: the video has its own time stamps, which are kept.")
