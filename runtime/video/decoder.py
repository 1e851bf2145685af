"""The helper process that demuxes and decodes a user's video: `python -m fairy.runtime.video.decoder`.

It imports av and numpy, never a deep-learning library, and answers one request: "probe" or "read".
"""

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Self

import av
from av.video.frame import VideoFrame

from fairy.runtime.video import helper, wire
from fairy.runtime.video.animated import AnimatedWebp, is_webp
from fairy.runtime.video.boxes import is_cut_off, lacks_index
from fairy.runtime.video.filters import filtered
from fairy.runtime.video.info import ColorTags, Reading
from fairy.runtime.video.look import Look, look_at
from fairy.runtime.video.opened import CUT_OFF, DECODER_THREADS, Damaged, OpenedVideo, alpha, check_file, rgb

_FEW, _MOST_DAMAGE = 3, 0.5
"""Frames, and the share of all, that may be damaged."""
_NEAR_S, _MOST_PLACES = 0.5, 4
"""Damage so near to the one before is told with it; so many places are told."""
_MOST_MISSING_S = 1.0
"""More of its end is not lost without a refusal; a container's duration is that of its longest stream."""
_WORTH_S = 10.0
"""A part that begins earlier is found by decoding."""
_REPORT_EVERY_S = 0.2
_BYTES_PER_PIXEL = 160
"""Room for a decoder's 16 reference pictures and its threads' own, 16 bit 4:2:2."""


def main() -> None:
    helper.run(serve)


def serve(inbox: wire.Inbox, out: int) -> None:
    """Answer the one request: what `reader.probe` and `reader.read_frames` send, and read. Raises `helper.Refusal`."""
    request, wanted = inbox.receive(1 << 30)
    max_pixels, path = int(request["max_pixels"]), Path(request["path"])
    helper.confine(helper.BASE_BYTES + max_pixels * _BYTES_PER_PIXEL, writes_files=False)
    helper.exit_when_closed(0)
    check_file(path)
    reading = Reading(**request["reading"])
    if reading.end_s is None and is_cut_off(path):
        raise helper.Refusal(CUT_OFF.format(path))
    if lacks_index(path):
        raise helper.Refusal(
            f"{path} lacks its index (moov): the recording was never finished; a tool that rebuilds it from another "
            "recording of the same camera, such as untrunc, may help."
        )
    if request["do"] == "read":
        with open_source(path, max_pixels, reading, 1 if request["mended"] else DECODER_THREADS) as source:
            _read(source, out, request, array("q", bytes(wanted)))
        return
    try:
        with open_source(path, max_pixels, reading) as source:
            _probe(source, out)
    except Damaged:
        with open_source(path, max_pixels, reading, 1) as source:
            _probe(source, out)


class _Counted:
    """Says now and then how far decoding is, so that the parent sees it alive."""

    def __init__(self, out: int) -> None:
        self._out, self._next = out, 0.0

    def tell(self, done: int) -> None:
        if time.monotonic() >= self._next:
            wire.send(self._out, {"at": done})
            self._next = time.monotonic() + _REPORT_EVERY_S


def open_source(
    path: Path, max_pixels: int, reading: Reading, threads: int = DECODER_THREADS
) -> OpenedVideo | AnimatedWebp:
    """Whatever decodes the file."""
    return AnimatedWebp(path, max_pixels) if is_webp(path) else OpenedVideo(path, max_pixels, reading, threads)


@dataclass(slots=True)
class _Frames:
    """What decoding finds: the time stamps, which frames can be decoded by themselves, the first one's look."""

    pts: "array[int]"
    keys: "array[int]"
    look: Look | None = None
    last_duration: int = 0

    def take(
        self, frames: Iterator[tuple[VideoFrame, int]], source: OpenedVideo | AnimatedWebp, progress: _Counted
    ) -> Self:
        """All of `frames`, which go on where this ends."""
        for frame, at in frames:
            self.look = self.look or look_at(frame, source)
            if frame.key_frame:
                self.keys.append(len(self.pts))
            self.pts.append(at)
            self.last_duration = frame.duration
            progress.tell(len(self.pts))
        return self


def _probe(source: OpenedVideo | AnimatedWebp, out: int) -> None:
    streams, progress = source.describe(), _Counted(out)
    # Where containers cannot seek exactly, or time stamps are made up, decoding begins at the beginning.
    exact = streams["container"].startswith(("mov", "matroska"))
    frames = _late_frames(source, progress) if exact and isinstance(source, OpenedVideo) else None
    frames = frames or _Frames(array("q"), array("q")).take(source.decode(), source, progress)
    pts, keys, look, duration = frames.pts, frames.keys, frames.look, frames.last_duration
    if look is None:
        raise helper.Refusal(f"{source.path} has 0 frames of video.")
    zero: int = source.zero(pts[0])
    clock: wire.Message = {"time_base": str(source.tick)}
    if isinstance(source, OpenedVideo):
        _check_whole(source, pts, duration)
        look.notes.extend(_damage_notes(source, len(pts)))
        duration = _last_duration(source, pts[-1], duration)
        clock["mended"] = source.is_mended
    found = streams | look.to_wire() | clock | {"last_duration": duration, "zero": zero, "crop": source.crop}
    found |= {"ends_early": source.ends_early, "keys": len(keys) if exact else 0}
    shifted = array("q", (at - zero for at in pts))
    wire.send(out, {"found": found}, (shifted + keys) if exact else shifted)


def _late_frames(source: OpenedVideo, progress: _Counted) -> _Frames | None:
    """The frames of a file of which a late part is wanted: what lies before it is told by packets, not decoded.

    None where that gains little, where packets and frames do not agree, and where anything at all is wrong: then
    decoding everything says what.
    """
    skipped = _skipped(source)
    if skipped is None:
        return None
    before, (pts, _) = skipped.stamps[: skipped.number], skipped.stamps[skipped.number]
    frames = _Frames(
        array("q", (at for at, _ in before)), array("q", (i for i, (_, key) in enumerate(before) if key)), skipped.look
    )
    try:
        source.restart(pts)
        frames.take(_from(source.decode(skipped.stamps[0][0]), pts), source, progress)
        agree = not source.is_mended and _agree(skipped, frames.pts, source)
    except (helper.Refusal, av.FFmpegError):
        agree = False
    if not agree:
        source.restart()
    return frames if agree else None


@dataclass(frozen=True, slots=True)
class _Skipped:
    """The beginning of a file, of which only the first frame was decoded.

    Attributes:
        stamps: of all its pictures and some after them; which of them can be decoded by themselves.
        number: of the picture from which on decoding goes.
        look: of the first frame.
    """

    stamps: list[tuple[int, bool]]
    number: int
    look: Look


def _skipped(source: OpenedVideo) -> _Skipped | None:
    """What need not be decoded before the part that is wanted; None where that is little, or packets do not tell."""
    if source.reading.start_s < _WORTH_S:
        return None
    frame, first = next(source.decode(), (None, 0))
    look = None if frame is None else look_at(frame, source)
    source.restart()
    if look is None:
        return None
    start_s = float(first * source.tick) + source.reading.start_s
    stamps = source.stamps(start_s + _WORTH_S)
    source.restart()
    if not stamps or stamps[0][0] != first:
        return None
    before = [i for i, (pts, key) in enumerate(stamps) if key and float(pts * source.tick) < start_s - _NEAR_S]
    return _Skipped(stamps, before[-2], look) if len(before) > 1 else None


def _agree(skipped: _Skipped, pts: "array[int]", source: OpenedVideo) -> bool:
    """Whether the pictures from where decoding began to the part that is wanted are those that packets promised."""
    sure = skipped.stamps[0][0] + int(source.reading.start_s / source.tick)
    promised = [at for at, _ in skipped.stamps if at <= sure]
    return list(pts[: len(promised)]) == promised


def _check_whole(source: OpenedVideo, pts: "array[int]", duration: int) -> None:
    """Refuses a file that ends before it should."""
    if not source.ends_early and is_cut_off(source.path):
        raise helper.Refusal(CUT_OFF.format(source.path))
    # A live Matroska recording announces no length; AVI counts its frames and loses damaged ones silently.
    promised = (source.stream.duration or 0) if source.container.format.name == "avi" else 0
    cut_off = "ended prematurely" in source.log.text() or (promised and pts[-1] + 2 < promised)
    if cut_off and not source.ends_early:
        end_s = float((pts[-1] - pts[0] + duration) * source.tick)
        raise helper.Refusal(
            f"{source.path} is cut off or damaged after {end_s:.2f} s of video; copy or download it again."
        )
    missing_s = (source.container.duration or 0) / 1e6 - float((pts[-1] - source.zero(pts[0])) * source.tick)
    if source.damaged_s and missing_s > _MOST_MISSING_S and not source.ends_early:
        raise helper.Refusal(
            f"{source.path} is damaged: its last {missing_s:.2f} s cannot be read; copy or download it again, "
            "repair it, or say with end (--end) where to stop before."
        )


def _damage_notes(source: OpenedVideo, num_frames: int) -> list[str]:
    """What was borne; too much of it is refused."""
    notes, hurt = [], source.damaged_s
    if source.gap_s is not None:
        notes.append(f"The source has a gap at {source.gap_s:.2f} s; what could be decoded is used.")
    if len(hurt) > max(_FEW, num_frames * _MOST_DAMAGE):
        raise helper.Refusal(
            f"{source.path} is damaged at {hurt[0]:.2f} s of the video and {len(hurt)} times in all; copy or download "
            "it again, or repair it."
        )
    if hurt:
        notes.append(
            f"The source is damaged in {len(hurt)} place{'s' * (len(hurt) > 1)} of its {num_frames} frames, "
            f"at {_places(hurt)}; what the decoder conceals is used, what it cannot decode left out; --strict refuses "
            "such a file."
        )
    return notes


def _places(times: list[float]) -> str:
    """0.40 to 0.52 s, 3.10 s and 2 more."""
    runs: list[list[float]] = []
    for time_s in times:
        if not runs or time_s - runs[-1][-1] > _NEAR_S:
            runs.append([])
        runs[-1].append(time_s)
    told = [f"{run[0]:.2f} to {run[-1]:.2f} s" if len(run) > 1 else f"{run[0]:.2f} s" for run in runs[:_MOST_PLACES]]
    return ", ".join(told) + (f" and {len(runs) - len(told)} more" if len(runs) > len(told) else "")


def _last_duration(source: OpenedVideo, last_pts: int, said: int) -> int:
    """How long the last frame stays; MP4 says it of the frame stored last only, and where the stream ends."""
    start, length = source.stream.start_time, source.stream.duration
    if not source.container.format.name.startswith("mov") or start is None or length is None:
        return said
    return start + length - last_pts if start + length > last_pts else said


def _read(source: OpenedVideo | AnimatedWebp, out: int, request: wire.Message, wanted: "array[int]") -> None:
    progress, left = _Counted(out), iter(wanted)
    goal = next(left, None)
    for index, (frame, at) in _numbered(source, request, wanted):
        if index == goal:
            _send_picture(out, frame, index, at - request["zero"], request)
            goal = next(left, None)
            if goal is None:
                return
        else:
            progress.tell(index)


def _numbered(
    source: OpenedVideo | AnimatedWebp, request: wire.Message, wanted: "array[int]"
) -> Iterator[tuple[int, tuple[VideoFrame, int]]]:
    """The frames with their numbers: from shortly before the first one that is wanted, where that can be found."""
    seek, reading = request["seek"], Reading(**request["reading"])
    if seek is not None and isinstance(source, OpenedVideo):
        number, pts, first_pts = seek
        source.restart(pts)
        frames = _from(source.decode(), pts)
        for index, (frame, at) in enumerate(filtered(frames, reading), number):
            if index == wanted[0] and at != first_pts:
                break
            yield index, (frame, at)
        else:
            return
        source.restart()
    yield from enumerate(filtered(source.decode(), reading))


def _from(frames: Iterator[tuple[VideoFrame, int]], pts: int) -> Iterator[tuple[VideoFrame, int]]:
    """From the frame that is shown at `pts` on: what comes before it may lack the pictures it refers to."""
    return dropwhile(lambda found: found[1] < pts, frames)


def _send_picture(out: int, frame: VideoFrame, index: int, at: int, request: wire.Message) -> None:
    turned = request["rotation"], request["flipped"], request["crop"]
    picture = alpha(frame, *turned) if request["alpha"] else rgb(frame, ColorTags(**request["color"]), *turned)
    wire.send(out, {"frame": index, "pts": at, "shape": picture.shape}, picture)


if __name__ == "__main__":
    main()
