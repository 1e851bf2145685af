"""Opens a user's file with everything shut that a hostile one could use. Runs in helper processes only."""

import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fairy.runtime.video import formats
from fairy.runtime.video.helper import Refusal
from fairy.runtime.video.info import ColorTags

DECODER_THREADS = 4
_ALIGNED = 128
"""FFmpeg holds its max_pixels against sizes that it has rounded up, by at most this much."""
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


class FFmpegLog:
    """FFmpeg's error lines, in a pipe that is read now and then and never blocks the writer."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        for fd in (self._read, write):
            os.set_blocking(fd, False)
        os.dup2(write, 2)
        av.logging.restore_default_callback()
        av.logging.set_libav_level(av.logging.ERROR)
        self._lines = ""

    def text(self) -> str:
        """The last 64 KiB of what was said so far."""
        try:
            while chunk := os.read(self._read, 1 << 16):
                self._lines = (self._lines + chunk.decode(errors="replace"))[-(1 << 16) :]
        except BlockingIOError:
            pass
        return self._lines


def open_source(path: Path, max_pixels: int, log: FFmpegLog) -> InputContainer:
    """The file, demuxed by one of the listed demuxers; nothing it names is opened."""
    _check_file(path)
    whitelist = {
        "format_whitelist": ",".join(formats.DEMUXERS),
        "protocol_whitelist": "file,pipe",
        "codec_whitelist": ",".join([*formats.VIDEO_CODECS, formats.AUDIO_DECODERS, formats.OTHER_DECODERS]),
        "max_pixels": str(2 * max_pixels + _ALIGNED**2),
    }
    try:
        return av.open(f"file:{path.absolute()}", options=whitelist, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError):
        said = log.text()
        if "moov atom not found" in said:
            raise Refusal(f"{path} is cut off: the index at its end is missing; copy or download it again.") from None
        raise Refusal(f"{path} is not a video that can be read; {formats.READS} files are.") from None


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {(error.strerror or 'unknown reason').lower()}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise Refusal(f"{path} is a folder, not a video file.")
    if not stat.S_ISREG(status.st_mode):
        raise Refusal(f"{path} is not a regular file.")
    if not os.access(path, os.R_OK):
        raise Refusal(f"{path} cannot be read: permission denied.")
    if not status.st_size:
        raise Refusal(f"{path} is empty.")


def pick_video(container: InputContainer, path: Path, max_pixels: int) -> VideoStream:
    """The first real video stream, ready to be decoded within `max_pixels`."""
    real = [s for s in container.streams.video if not is_cover(s)]
    if not real:
        raise Refusal(f"{path} has no video stream, so 0 frames to edit.")
    stream = real[0]
    context = stream.codec_context
    name = context.codec.name if context is not None else "an unknown codec"
    if name not in formats.VIDEO_CODECS:
        known = ", ".join(sorted(set(formats.VIDEO_CODECS.values())))
        raise Refusal(f"{path} is coded in {name}, which is not decoded; {known} are.")
    check_size(path, stream.width, stream.height, max_pixels)
    # The limit of the open call does not reach this second decoder.
    room = max_pixels + _ALIGNED * (stream.width + stream.height + _ALIGNED)
    context.options = {"max_pixels": str(room)}
    context.thread_type = "AUTO"
    context.thread_count = DECODER_THREADS
    return stream


def tick(stream: Stream) -> Fraction:
    """Seconds per unit of the stream's time stamps."""
    assert stream.time_base is not None
    return stream.time_base


def is_cover(stream: Stream) -> bool:
    """An album picture rather than a moving one."""
    return bool(stream.disposition & Disposition.attached_pic)


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refusal(
            f"{path} has {width}×{height} pixels, more than max_pixels = {max_pixels:,} allows; "
            "make it smaller or raise max_pixels."
        )


def decode(
    container: InputContainer, stream: VideoStream, path: Path, max_pixels: int, log: FFmpegLog
) -> Iterator[tuple[VideoFrame, int]]:
    """Every frame in the order shown with its time stamp, made strictly increasing; raises at the first damage."""
    size, last = (0, 0), None
    zero: int | None = None if container.format.name == "avi" else 0
    for frame in _frames(container, stream, path, max_pixels, log):
        if frame.is_corrupt:
            raise damaged(path, frame.time)
        if size not in ((0, 0), (frame.width, frame.height)):
            raise Refusal(
                f"{path} changes its size from {size[0]}×{size[1]} to {frame.width}×{frame.height} "
                f"at {frame.time or 0:.2f} s; cut it there into two files."
            )
        size = frame.width, frame.height
        check_size(path, *size, max_pixels)
        pts = frame.pts if frame.pts is not None else frame.dts
        pts = pts if last is None or (pts is not None and pts > last) else last + max(frame.duration, 1)
        # AVI stores no time stamps: what FFmpeg makes up begins at the decoder's delay instead of 0.
        zero = (pts or 0) if zero is None else zero
        last = pts or 0
        yield frame, last - zero


def _frames(
    container: InputContainer, stream: VideoStream, path: Path, max_pixels: int, log: FFmpegLog
) -> Iterator[VideoFrame]:
    time = 0.0
    try:
        for packet in container.demux():
            if packet.stream is not stream:
                continue
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
            yield from stream.decode(packet)
    except MemoryError:
        raise
    except av.FFmpegError:
        said = log.text()
        if "specified max pixel count" in said:
            raise Refusal(
                f"{path} has more pixels than max_pixels = {max_pixels:,} allows; make it smaller or raise max_pixels."
            ) from None
        raise damaged(path, time) from None


def damaged(path: Path, time_s: float | None) -> Refusal:
    return Refusal(f"{path} is damaged at {time_s or 0:.2f} s of the video; copy or download it again, or repair it.")


def rgb(frame: VideoFrame, color: ColorTags, rotation: int, flipped: bool) -> NDArray[np.uint8]:
    """The frame as shown: uint8 [H, W, 3]."""
    if not frame.format.is_rgb:
        frame.colorspace = color.matrix
        frame.color_range = 2 if color.full else 1
    picture = frame.reformat(format="rgb24", interpolation=int(_EXACT)).to_ndarray()
    picture = picture[:, ::-1] if flipped else picture
    return np.ascontiguousarray(np.rot90(picture, k=rotation // 90))
