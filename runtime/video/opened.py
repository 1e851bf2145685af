"""Opens a user's file with everything shut that a hostile one could use. Runs in helper processes only."""

import os
import re
import shlex
import stat
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fairy.runtime.video import formats
from fairy.runtime.video.boxes import is_cut_off
from fairy.runtime.video.helper import Refusal
from fairy.runtime.video.info import AS_IT_IS, ColorTags, Reading
from fairy.runtime.video.log import FFmpegLog

DECODER_THREADS = 4
_ALIGNED = 128
"""FFmpeg holds its max_pixels against sizes that it has rounded up, by at most this much."""
JUMP_S = Fraction(1, 2)
"""A stream whose time goes back by more begins anew, as where files were joined; by less it is jitter."""
_FAR_S = 10
"""Sound that begins farther from the pictures belongs to another time, as after a change of clocks."""
_MOST_SLOTS = 1024
_ROUNDING_S, _MARGIN_S = 1e-9, 1.0
"""Pictures are stored at most so long before or after they are shown."""
CUT_OFF = "{} is cut off: its end is missing; copy or download it again."
_BEGIN_ANYWHERE = ("mpegts", "mpeg", "flv")
"""Containers whose clock may begin at any time."""
_METADATA: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""What becomes of text that is no UTF-8; PyAV 19 keeps it by itself."""
_FOREIGN = {b"OggS": "an Ogg file", b".RMF": "a RealMedia file", b"\x06\x0e\x2b\x34": "an MXF file"}
_BROKEN = re.compile("EBML number|exceeds containing master element|exceeds max length")
"""What the Matroska demuxer says before it silently leaves out what it cannot follow."""


class Damaged(Refusal):
    """Something is lost or broken, which one thread mends in the same way every time and several by chance."""


class OpenedVideo:
    """A user's video file; a context manager. Nothing that the file names is opened."""

    def __init__(
        self, path: Path, max_pixels: int, reading: Reading = AS_IT_IS, threads: int = DECODER_THREADS
    ) -> None:
        """With more than one of the `threads` the first damage is raised as `Damaged`."""
        check_file(path)
        self._threads = threads
        self.path, self.max_pixels, self.reading, self.log = path, max_pixels, reading, FFmpegLog()
        self.gap_s: float | None = None
        """When the first packet begins that its transport marks as incomplete: usual where recordings were joined."""
        self.damaged_s: list[float] = []
        """When frames are shown that the decoder had to conceal, or left out, in a file that is used all the same."""
        self.is_mended = False
        """Whether anything was damaged, also where it does not matter."""
        self.ends_early = False
        self._slots: deque[int] = deque(maxlen=_MOST_SLOTS)  # of the packets that wait for their frames
        self._first_slot: int | None = None
        self._start_s: float | None = None
        self.container = open_container(path, max_pixels)
        self.stream = self._pick()
        self.crop = self._crop()
        self.has_alpha = any(k.lower() == "alpha_mode" and v == "1" for k, v in self.stream.metadata.items())
        self._decoder = self._alpha_decoder() or self.stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    def decode(self, begin: int | None = None) -> Iterator[tuple[VideoFrame, int]]:
        """Every frame in the order shown with its time stamp, made strictly increasing.

        Where time goes back far, as in joined MPEG-TS files, it goes on from there. Raises at the first damage that
        matters; ends with the first frame after the part that is wanted. `begin`: when the file's first frame is shown,
        where decoding does not begin with it.
        """
        size, last, step, later, first = (0, 0), None, 1, 0, 0
        if begin is not None:
            self._start_s = float(begin * tick(self.stream))
        jump = int(JUMP_S / tick(self.stream))
        for frame in self._frames():
            pts = self._stamp(frame)
            pts = None if pts is None else pts + later
            if last is not None and pts is not None and pts < last - jump:
                later += last + step - pts
                pts = last + step
            if last is not None and (pts is None or pts <= last):
                pts = last + max(frame.duration, 1)
            step = max((pts or 0) - last, 1) if last is not None else max(frame.duration, 1)
            if last is None:
                first = (pts or 0) if begin is None else begin
            last = pts or 0
            time_s = float((last - first) * tick(self.stream))
            self._start_s = float(first * tick(self.stream))
            past = self.reading.end_s is not None and time_s >= self.reading.end_s - _ROUNDING_S
            if past and size not in ((0, 0), (frame.width, frame.height)):
                self.ends_early = True
                return
            size = self._check_frame(frame, size, time_s)
            if frame.is_corrupt:
                self._bear(time_s)
            yield frame, last
            if past:
                self.ends_early = True
                return

    def stamps(self, until_s: float) -> list[tuple[int, bool]] | None:
        """When the pictures of the beginning are shown and which can be decoded by themselves, from the packets alone.

        Returns them in the order shown, those of the packets up to `until_s` of the file's clock; None where packets do
        not tell.
        """
        found: list[tuple[int, bool]] = []
        try:
            for packet in self.container.demux(self.stream):
                if not packet.size and packet.pts is None:  # the end
                    break
                if packet.pts is None or packet.is_corrupt or packet.is_discard:
                    return None
                stored = packet.pts if packet.dts is None else packet.dts
                if float(stored * self.tick) > until_s:
                    break
                found.append((packet.pts, packet.is_keyframe))
        except av.FFmpegError:
            return None
        found.sort()
        alike = any(first[0] == second[0] for first, second in pairwise(found))
        broken = _BROKEN.search(self.log.text()) is not None
        self.log.forget(_BROKEN)  # decoding meets it again, where it is
        return None if alike or broken else found

    def restart(self, pts: int | None = None) -> None:
        """Begins anew at the last picture that can be decoded by itself at or before `pts`, or at the beginning."""
        self.damaged_s.clear()
        self.is_mended, self.ends_early, self.gap_s = False, False, None
        if pts is None:
            self.container.close()
            self.container = open_container(self.path, self.max_pixels)
            self.stream = self._pick()
            self._decoder = self._alpha_decoder() or self.stream
        else:
            self.container.seek(pts, stream=self.stream)

    @property
    def tick(self) -> Fraction:
        """Seconds per unit of the time stamps."""
        return tick(self.stream)

    def describe(self) -> dict[str, Any]:
        """The container and its streams; read while it is open, for later they are garbage."""
        audio, other = [], []
        for stream in self.container.streams:
            if stream.type == "audio":
                audio.append(codec_name(stream))
            elif stream.index != self.stream.index:
                other.append("cover" if is_cover(stream) else f"{stream.type}:{codec_name(stream)}")
        rates = [self.stream.average_rate, self.stream.guessed_rate]
        return {
            "container": self.container.format.name,
            "codec": formats.VIDEO_CODECS[self.stream.codec_context.codec.name],
            "rates": [str(rate) for rate in rates if rate],
            "audio": audio,
            "other": other,
        }

    def zero(self, first: int) -> int:
        """The time of the file that is 0 of the video, in ticks; `first`: when the first frame is shown.

        A clock of MPEG-TS begins anywhere, with whichever of pictures and sound is first. Others mean what they say,
        but that nothing is shown before 0.
        """
        if self.container.format.name not in _BEGIN_ANYWHERE:
            return min(first, 0)
        sounds = [s for s in self.container.streams.audio if s.start_time is not None]
        starts = [first * tick(self.stream), *(s.start_time * tick(s) for s in sounds if s.start_time is not None)]
        near = [start for start in starts if abs(start - starts[0]) < _FAR_S]
        return int(min(near) / tick(self.stream))

    def _stamp(self, frame: VideoFrame) -> int | None:
        """When a frame is shown, in ticks.

        AVI stores no time stamps but the order of its packets and empty places among them: the first frame shown is
        due with the first packet, and so on. What FFmpeg makes up skips a place where a picture is stored early.
        """
        if self.container.format.name == "avi" and self._slots:
            slot = self._slots.popleft()
            self._first_slot = slot if self._first_slot is None else self._first_slot
            return slot - self._first_slot
        return frame.pts if frame.pts is not None else frame.dts

    def _pick(self) -> VideoStream:
        """The video stream that players show, ready to be decoded within the limits."""
        real = [s for s in self.container.streams.video if not is_cover(s)]
        if not real:
            raise Refusal(f"{self.path} has no video stream, so 0 frames to edit.")
        stream = next((s for s in real if s.disposition & Disposition.default), real[0])
        context = stream.codec_context
        name = context.codec.name if context is not None else "an unknown codec"
        if name not in formats.VIDEO_CODECS:
            raise Refusal(f"{self.path} is coded in {name}, which is not decoded; {conversion(self.path)}.")
        self._check_size(stream.width, stream.height)
        # The limit of the open call does not reach this second decoder.
        room = self.max_pixels + _ALIGNED * (stream.width + stream.height + _ALIGNED)
        context.options = {"max_pixels": str(room)}
        context.thread_type, context.thread_count = "AUTO", self._threads
        return stream

    def _frames(self) -> Iterator[VideoFrame]:
        time_s = 0.0
        try:
            for packet in self.container.demux():
                if packet.stream is self.stream:
                    if packet.pts is not None:
                        time_s = float(packet.pts * packet.time_base) - (self._start_s or 0)
                    if packet.dts is not None and packet.size:
                        self._slots.append(packet.dts)
                    if packet.is_corrupt and self.gap_s is None:
                        self.gap_s = time_s
                    if _BROKEN.search(self.log.text()):
                        self.log.forget(_BROKEN)
                        self._bear(time_s)
                    yield from self._decoded(cast("Packet[VideoStream]", packet), time_s)
                    if self._is_long_past(time_s):
                        yield from self._decoded(None, time_s)
                        return
        except MemoryError:
            raise
        except av.FFmpegError:
            raise self._damaged(time_s) from None

    def _decoded(self, packet: "Packet[VideoStream] | None", time_s: float) -> list[VideoFrame]:
        """The frames that come with a packet; none where it is damaged and that does not matter much."""
        try:
            return list(self._decoder.decode(packet))
        except MemoryError:
            raise
        except av.FFmpegError:
            if "specified max pixel count" in self.log.text():
                raise self._too_large("more pixels") from None
            if packet is not None:
                self._bear(time_s)
                if packet.dts is not None and self._slots:
                    self._slots.pop()
            return []

    def _matters(self, time_s: float) -> bool:
        """Whether damage there concerns what is edited."""
        end_s = self.reading.end_s
        return time_s > self.reading.start_s - _MARGIN_S and (end_s is None or time_s < end_s)

    def _is_long_past(self, time_s: float) -> bool:
        """Whether all frames that are wanted are inside the decoder, however they are reordered."""
        return self.reading.end_s is not None and time_s > self.reading.end_s + _MARGIN_S

    def _bear(self, time_s: float) -> None:
        """Remembers a damaged frame, or refuses it."""
        if self._threads > 1:
            raise Damaged(str(self._damaged(time_s)))
        self.is_mended = True
        if not self._matters(time_s):
            return
        if self.reading.strict:
            raise self._damaged(time_s)
        self.damaged_s.append(time_s)

    def _crop(self) -> tuple[int, int, int, int]:
        """Left, right, top and bottom, as Matroska's PixelCrop and MP4's clean aperture say."""
        said = self.log.said_by(self.container)
        part = re.split(rf"Stream #0:{self.stream.index}\b", said)[-1]
        part = re.split(r"Stream #0:", part)[0]
        found = re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", part)
        left, right, top, bottom = map(int, found.groups()) if found else (0, 0, 0, 0)
        fits = left + right < self.stream.width and top + bottom < self.stream.height
        return (left, right, top, bottom) if fits else (0, 0, 0, 0)

    def _alpha_decoder(self) -> Any:
        name = formats.WITH_ALPHA.get(self.stream.codec_context.codec.canonical_name)
        if not self.has_alpha or name is None:
            return None
        decoder = av.CodecContext.create(name, "r")
        decoder.extradata = self.stream.codec_context.extradata
        decoder.options = self.stream.codec_context.options
        return decoder

    def _check_frame(self, frame: VideoFrame, before: tuple[int, int], time_s: float) -> tuple[int, int]:
        size = frame.width, frame.height
        self._check_size(*size)
        if before not in ((0, 0), size):
            raise Refusal(
                f"{self.path} changes its size from {before[0]}×{before[1]} to {size[0]}×{size[1]} "
                f"at {time_s:.2f} s; cut it there into two files, or edit up to there (--end {time_s:.2f})."
            )
        return size

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise self._too_large(f"{width}×{height} pixels, more")

    def _too_large(self, count: str) -> Refusal:
        return Refusal(
            f"{self.path} has {count} than max_pixels = {self.max_pixels:,} allows; "
            "make it smaller or raise max_pixels."
        )

    def _damaged(self, time_s: float | None) -> Refusal:
        where = f"at {time_s or 0:.2f} s of the video"
        return Refusal(f"{self.path} is damaged {where}; copy or download it again, or repair it.")


def open_container(path: Path, max_pixels: int) -> InputContainer:
    """A user's file with its streams known, and nothing of it decoded but what that takes."""
    try:
        options = formats.whitelist(2 * max_pixels + _ALIGNED**2)
        container: InputContainer = av.open(f"file:{path.absolute()}", options=options, **_METADATA)
        return container
    except MemoryError:
        raise
    except av.EOFError:
        raise Refusal(f"{path} has 0 frames of video.") from None
    except (av.FFmpegError, ValueError):
        raise Refusal(_unreadable(path)) from None


def conversion(path: Path) -> str:
    """What to do about a file of a kind that is not read."""
    into = shlex.quote(f"{path.stem}-h264.mkv")
    return f"convert it first: ffmpeg -i {shlex.quote(path.name)} -c:v libx264 -crf 12 -c:a copy {into}"


def _unreadable(path: Path) -> str:
    if is_cut_off(path):
        return CUT_OFF.format(path)
    with path.open("rb") as file:
        head = file.read(16)
    kind = next((title for magic, title in _FOREIGN.items() if head.startswith(magic)), None)
    if kind is not None:
        return f"{path} is {kind}, which is not read; {conversion(path)}."
    return f"{path} is not a video that can be read; {formats.READS} files are."


def check_file(path: Path) -> None:
    """Refuses what is not a readable regular file."""
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


def tick(stream: Stream) -> Fraction:
    """Seconds per unit of the stream's time stamps."""
    assert stream.time_base is not None
    return stream.time_base


def codec_name(stream: Stream) -> str:
    """The name of the stream's codec, whichever decoder FFmpeg would take."""
    return stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown codec"


def is_cover(stream: Stream) -> bool:
    """An album picture rather than a moving one."""
    return bool(stream.disposition & Disposition.attached_pic)


def is_rgb(frame: VideoFrame) -> bool:
    """Whether its samples, or the entries of its palette, are RGB."""
    return frame.format.is_rgb or frame.format.name == "pal8"


def rgb(
    frame: VideoFrame, color: ColorTags, rotation: int, flipped: bool, crop: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> NDArray[np.uint8]:
    """The frame as shown, over black where it is transparent: uint8 [H, W, 3]."""
    if not is_rgb(frame):
        frame.colorspace = color.matrix
        frame.color_range = 2 if color.full else 1
    picture = frame.reformat(format="rgb24", interpolation=formats.TO_RGB, threads=1).to_ndarray()
    if any(component.is_alpha for component in frame.format.components):
        alpha = frame.reformat(format="rgba", threads=1).to_ndarray()[..., 3:].astype(np.uint16)
        picture = ((picture * alpha + 127) // 255).astype(np.uint8)
    return _upright(picture, rotation, flipped, crop)


def alpha(frame: VideoFrame, rotation: int, flipped: bool, crop: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """How opaque the frame is, as shown: uint8 [H, W, 1]."""
    if not any(component.is_alpha for component in frame.format.components):
        return _upright(np.full((frame.height, frame.width, 1), 255, dtype=np.uint8), rotation, flipped, crop)
    return _upright(frame.reformat(format="rgba", threads=1).to_ndarray()[..., 3:], rotation, flipped, crop)


def _upright(picture: Any, rotation: int, flipped: bool, crop: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Decoded samples [H, W, channels], cut, mirrored and turned as the file asks."""
    left, right, top, bottom = crop
    picture = picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]
    picture = picture[:, ::-1] if flipped else picture
    return np.ascontiguousarray(np.rot90(picture, k=rotation // 90))
