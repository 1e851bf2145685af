"""What an edit of a file is asked to write, checked before a model is loaded or a frame is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.files import check_outputs, user_path
from fairy.runtime.options import Choice, Flag, Kind, Name, Rate, Text, Whole, option, options_of
from fairy.runtime.video.codecs import CHOICES, FOLDERS, Encoding, check_folder
from fairy.runtime.video.formats import output_format

DEFAULT_CRF = 18
FOLLOW_UPS = ("upscale", "interpolate")

_SLOWEST_FPS = Fraction(1, 1000)  # containers have no room for much slower clocks


@dataclass(frozen=True, slots=True)
class FollowUps(Kind):
    """What an edit is followed by, in that order."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """The names."""
        return f"{' or '.join(FOLLOW_UPS)}, or both with a comma between"

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        """Names, each once."""
        names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (value,)
        wrong = next((one for one in names if one not in FOLLOW_UPS), None)
        if wrong is not None or not names or len(set(names)) != len(names):
            shown = value if wrong is None else wrong
            raise InputError("is not possible", name=name, value=shown, remedy=f"give {self.takes()}")
        return names

    def parse(self, name: str, text: str) -> tuple[str, ...]:
        """Names with commas between them."""
        return self.check(name, tuple(part.strip() for part in text.split(",")))


@dataclass(frozen=True, slots=True)
class FileRequest:
    """Absolute paths of the input and of everything to be written, and how.

    Attributes:
        video: a video file or a folder of images.
        out: the edited video; its ending says the container.
    """

    video: Path
    out: Path
    fps: Fraction | None = option(None, Rate(_SLOWEST_FPS, 1000), "Frames a second of a folder of images")
    crf: int = option(DEFAULT_CRF, Whole(0, 51), "Quality of written videos, 0 (best) to 51")
    compare: Path | None = option(None, Name("a video file"), "Also write source and result side by side")
    preview: Path | None = option(
        None, Name("a .png or .jpg file"), "Write the edited anchors as one picture before the rest"
    )
    report: Path | None = option(None, Name("a .json file"), "Write a JSON report of the job")
    then: tuple[str, ...] | None = option(
        None, FollowUps(), "What the edited frames become before they are written: twice as large, twice as many"
    )
    codec: str | None = option(
        None,
        Choice((*CHOICES, *FOLDERS)),
        "How pictures are encoded; png and exr make OUT a folder",
        usual="the container's",
    )
    lossless: bool = option(False, Flag(), "Write every pixel as it is, for cutting and compositing")
    pixel_format: str | None = option(
        None, Text(), "Samples of the written video by FFmpeg's name, e.g. yuv444p", usual="what players show"
    )
    bit_depth: int = option(8, Whole(8, 10), "Bits a sample, 8 or 10; the edit itself has 8")

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
        then: str | Sequence[str] | None = None,
        codec: str | None = None,
        lossless: bool = False,
        pixel_format: str | None = None,
        bit_depth: int = 8,
        others: Sequence[str | Path | None] = (),
    ) -> "FileRequest":
        """The request with its paths made absolute; `others` are further inputs, which no output may replace.

        Raises:
            InputError: the input is missing, an output cannot be written, would meet another one or the input, or
                has an unknown ending, or a number is not possible.
        """
        source, target = user_path(video), user_path(out)
        beside, anchors, told = (None if path is None else user_path(path) for path in (compare, preview, report))
        next_stages = options_of(cls)["then"].check("then", then)
        encoding = check_encoding(codec, crf, lossless, pixel_format, bit_depth)
        how = (encoding.codec, encoding.lossless, encoding.pixel_format, encoding.bit_depth)
        request = cls(source, target, check_fps(fps), encoding.crf, beside, anchors, told, next_stages, *how)
        if not source.exists():
            raise InputError(f"{video} does not exist; check the path.")
        outputs = {"out": target, "compare": beside, "preview": anchors, "report": told}
        check_outputs(outputs, source, *(user_path(path) for path in others if path is not None))
        check_target(target, encoding)
        if beside is not None:
            output_format(beside)
        if codec not in FOLDERS or fps is not None:
            check_clock(has_clock=not source.is_dir(), fps=request.fps)
        return request

    @property
    def encoding(self) -> Encoding:
        """How the edited pictures are encoded."""
        return Encoding(self.codec, self.crf, self.lossless, self.pixel_format, self.bit_depth)


def check_fps(fps: Any) -> Fraction | None:
    """Frames per second as an exact fraction. Raises InputError unless it is from 0.001 to 1000."""
    rate: Fraction | None = options_of(FileRequest)["fps"].check("fps", fps)
    return rate


def check_crf(crf: Any) -> int:
    """The encoder's constant rate factor. Raises InputError unless it is a whole number from 0 to 51."""
    return int(options_of(FileRequest)["crf"].check("crf", crf))


def check_encoding(codec: Any, crf: Any, lossless: Any, pixel_format: Any, bit_depth: Any) -> Encoding:
    """How pictures are encoded. Raises InputError for values of the wrong kind; what goes together is not looked at."""
    known = options_of(FileRequest)
    given = {"codec": codec, "crf": crf, "lossless": lossless, "pixel_format": pixel_format, "bit_depth": bit_depth}
    encoding = Encoding(**{name: known[name].check(name, value) for name, value in given.items()})
    if encoding.bit_depth not in (8, 10):
        raise InputError("is not possible", name="bit_depth", value=bit_depth, remedy="give 8 or 10")
    return encoding


def check_target(path: Path, encoding: Encoding) -> None:
    """Refuse what a file or a folder of pictures cannot hold, whatever its size. Raises InputError."""
    if encoding.codec in FOLDERS:
        check_folder(encoding)
    else:
        encoding.settle(output_format(path), 2, 2)


def check_clock(*, has_clock: bool, fps: Fraction | None) -> None:
    """Frames need exactly one clock: the source's own time stamps, or a rate."""
    if not has_clock and fps is None:
        raise InputError("A folder of images or an array has no clock; say how many frames a second (fps, --fps).")
    if has_clock and fps is not None:
        problem = "cannot be used: the video has its own time stamps, which are kept"
        raise InputError(problem, name="fps", value=float(fps))
