"""Pictures that go with a source's frames: one for all, a folder of them, or a video."""

from collections.abc import Collection, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.inputs.frames import Frames, Source, open_source
from fairy.runtime.record.progress import Monitor
from fairy.runtime.video.images import PICTURES, load_picture


@dataclass(frozen=True, slots=True)
class _AsItIs:
    """How they are read: all of them."""

    max_pixels: int
    start: None = None
    end: None = None
    deinterlace: bool = False
    hdr: str = "refuse"
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Companion:
    """The picture beside every edited frame, of whatever size it has.

    Attributes:
        still: that of all frames, uint8 [H, W, 3]; None where each has its own, in `moving` from number `first` on.
    """

    still: Frames | None
    moving: Source | None
    first: int = 0

    def read(self, indices: Collection[int] | None, num_frames: int) -> Generator[Frames, None, None]:
        """Pictures of all frames, or of those of the given numbers, in order. Close it when done."""
        if self.moving is None:
            for _ in range(num_frames) if indices is None else sorted(set(indices)):
                assert self.still is not None
                yield self.still
            return
        wanted = range(num_frames) if indices is None else indices
        with closing(self.moving.read([self.first + i for i in wanted])) as pictures:
            yield from pictures


def open_companion(name: str, given: str | Path, source: Source, monitor: Monitor) -> Companion:
    """The pictures beside a source that was looked at; `name` is the option's.

    Raises:
        InputError: they cannot be read, or are not as many as the source has frames.
    """
    path = user_path(given)
    if path.suffix.lower() in PICTURES and not path.is_dir():
        if not path.is_file():
            raise InputError("does not exist", name=name, value=str(given), remedy="check the path")
        return Companion(load_picture(path, source.max_pixels), None)
    moving = open_source(path, _AsItIs(source.max_pixels), monitor)
    whole = source.num_frames if source.video is None else source.video.num_frames
    if moving.num_frames not in (source.num_frames, whole):
        edited = f"{source.num_frames} frames" if whole == source.num_frames else f"{source.num_frames} edited frames"
        problem = f"has {moving.num_frames} pictures for {edited}"
        remedy = "it needs one for each, or one picture for all"
        raise InputError(problem, name=name, value=str(given), remedy=remedy)
    return Companion(None, moving, 0 if moving.num_frames == source.num_frames else source.first)
