"""What is to be edited: the clips of a folder as independent pieces of work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.plan.file_request import DEFAULT_CRF, check_encoding, check_target
from fairy.runtime.plan.params import EditParams
from fairy.runtime.video.codecs import FOLDERS, Encoding
from fairy.runtime.video.formats import OUTPUTS, output_format

_WRITTEN_AS = {".mts": ".ts", ".m2ts": ".ts"}
VIDEO_ENDINGS = (*(end for end, output in OUTPUTS.items() if not output.pictures_only), *_WRITTEN_AS)
"""Names that a video in a folder is known by."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One clip, or a part of one (`params.start` and `params.end`), and where its edit goes.

    Attributes:
        video, out: absolute paths of the source and of the file, or the folder of pictures, to be written.
        params: what to do.
        crf: quality of the encoder, 0 (best) to 51.
        codec, lossless, pixel_format, bit_depth: as in `Editor.edit_file`.
    """

    video: Path
    out: Path
    params: EditParams
    crf: int = DEFAULT_CRF
    codec: str | None = None
    lossless: bool = False
    pixel_format: str | None = None
    bit_depth: int = 8

    @property
    def encoding(self) -> dict[str, Any]:
        """How the result is encoded, by the names of `Editor.edit_file`."""
        names = ("crf", "codec", "lossless", "pixel_format", "bit_depth")
        return {name: getattr(self, name) for name in names}


def items_of_folder(
    folder: str | Path,
    out_folder: str | Path,
    params: EditParams,
    *,
    ending: str | None = None,
    crf: int = DEFAULT_CRF,
    codec: str | None = None,
    lossless: bool = False,
    pixel_format: str | None = None,
    bit_depth: int = 8,
) -> tuple[WorkItem, ...]:
    """The video files of a folder in the order of their names, each to be written under its name in another folder.

    Hidden files, folders inside and files whose ending is none of `VIDEO_ENDINGS` are left out.

    Args:
        ending: container of all results, such as ".mp4"; None = that of the clip.
        codec, lossless, pixel_format, bit_depth: as in `Editor.edit_file`; with codec = "png" or "exr" every result is
            a folder.

    Raises:
        InputError: the folder is missing or has no video, the other folder is the same one, the ending is unknown, a
            result cannot hold what is asked of it, or two clips would be written to one file.
    """
    source, target = user_path(folder), user_path(out_folder)
    encoding = check_encoding(codec, crf, lossless, pixel_format, bit_depth)
    if not source.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder that holds the clips.")
    if target.resolve() == source.resolve():
        raise InputError(f"{out_folder} is the folder of the clips itself; name another one for the results.")
    if ending is not None:
        output_format(Path(f"clip{ending}"))
    if ending is not None and encoding.codec in FOLDERS:
        problem = f"does not go with codec = {encoding.codec}, which makes every result a folder"
        raise InputError(problem, name="ending", value=ending, remedy="leave one of them out")
    videos = sorted(p for p in source.iterdir() if p.suffix.lower() in VIDEO_ENDINGS and _is_clip(p))
    if not videos:
        raise InputError(f"{folder} has no videos; files named {', '.join(VIDEO_ENDINGS)} are edited.")
    how: dict[str, Any] = {"codec": encoding.codec, "lossless": encoding.lossless}
    how |= {"pixel_format": encoding.pixel_format, "bit_depth": encoding.bit_depth}
    items = tuple(
        WorkItem(video, target / _name_of(video, ending, encoding), params, encoding.crf, **how) for video in videos
    )
    for item in items:
        check_target(item.out, encoding)
    check_distinct(items)
    return items


def check_distinct(items: Sequence[WorkItem]) -> None:
    """Raise InputError where two items would be written to one file."""
    seen: dict[Path, Path] = {}
    for item in items:
        if item.out in seen:
            raise InputError(
                f"{seen[item.out].name} and {item.video.name} would both be written to {item.out}; "
                "rename one, or keep the endings of the clips."
            )
        seen[item.out] = item.video


def _is_clip(path: Path) -> bool:
    return not path.name.startswith(".") and not path.is_dir()


def _name_of(video: Path, ending: str | None, encoding: Encoding) -> str:
    if encoding.codec in FOLDERS:
        return video.stem
    own = video.suffix.lower()
    return video.stem + (ending or _WRITTEN_AS.get(own) or video.suffix)
