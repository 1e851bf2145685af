"""The helper process that demuxes and decodes a user's video: `python -m fairy.runtime.video.decoder`.

It imports av and numpy, never a deep-learning library, and answers one request: "probe" or "read".
"""

import time
from array import array
from pathlib import Path

from av.video.frame import VideoFrame

from fairy.runtime.video import formats, helper, wire
from fairy.runtime.video.boxes import is_cut_off
from fairy.runtime.video.info import ColorTags
from fairy.runtime.video.look import look_at
from fairy.runtime.video.source import Source, check_file, codec_name, is_cover, rgb, tick

_REPORT_EVERY_S = 0.2
_BYTES_PER_PIXEL = 160
"""Room for a decoder's 16 reference pictures and its threads' own, 16 bit 4:2:2."""


def main() -> None:
    helper.run(serve)


def serve(inbox: wire.Inbox, out: int) -> None:
    request, wanted = inbox.receive(1 << 30)
    max_pixels, path = int(request["max_pixels"]), Path(request["path"])
    helper.confine(helper.BASE_BYTES + max_pixels * _BYTES_PER_PIXEL, writes_files=False)
    helper.exit_when_closed(0)
    check_file(path)
    if is_cut_off(path):
        raise helper.Refusal(f"{path} is cut off: its end is missing; copy or download it again.")
    with Source(path, max_pixels) as source:
        if request["do"] == "probe":
            _probe(source, out)
        else:
            _read(source, out, request, array("q", bytes(wanted)))


class _Progress:
    """Says now and then how far decoding is, so that the parent sees it alive."""

    def __init__(self, out: int) -> None:
        self._out, self._next = out, 0.0

    def tell(self, done: int) -> None:
        if time.monotonic() >= self._next:
            wire.send(self._out, {"at": done})
            self._next = time.monotonic() + _REPORT_EVERY_S


def _probe(source: Source, out: int) -> None:
    streams = _describe(source)
    pts, look, progress, duration = array("q"), None, _Progress(out), 0
    for frame, at in source.decode():
        look = look or look_at(frame, source)
        pts.append(at)
        duration = frame.duration
        progress.tell(len(pts))
    if look is None:
        raise helper.Refusal(f"{source.path} has 0 frames of video.")
    # A live Matroska recording announces no length; AVI counts its frames and loses damaged ones silently.
    promised = (source.stream.duration or 0) if source.container.format.name == "avi" else 0
    if "ended prematurely" in source.log.text() or (promised and pts[-1] + 2 < promised):
        end_s = float((pts[-1] + duration) * tick(source.stream))
        raise helper.Refusal(
            f"{source.path} is cut off or damaged after {end_s:.2f} s of video; copy or download it again."
        )
    if source.gap_s is not None:
        look.notes.append(f"The source has a gap at {source.gap_s:.2f} s; what could be decoded is used.")
    last = _last_duration(source, pts[-1], duration)
    zero = source.zero(pts[0])
    clock = {"time_base": str(tick(source.stream)), "last_duration": last, "zero": zero}
    wire.send(out, {"found": streams | look.to_wire() | clock}, array("q", (at - zero for at in pts)))


def _last_duration(source: Source, last_pts: int, said: int) -> int:
    """How long the last frame stays; MP4 says it of the frame stored last only, and where the stream ends."""
    start, length = source.stream.start_time, source.stream.duration
    if not source.container.format.name.startswith("mov") or start is None or length is None:
        return said
    return start + length - last_pts if start + length > last_pts else said


def _describe(source: Source) -> wire.Message:
    """The container and its streams; read while it is open, for later they are garbage."""
    audio, other = [], []
    for stream in source.container.streams:
        if stream.type == "audio":
            audio.append(codec_name(stream))
        elif stream.index != source.stream.index:
            other.append("cover" if is_cover(stream) else f"{stream.type}:{codec_name(stream)}")
    rates = [source.stream.average_rate, source.stream.guessed_rate]
    return {
        "container": source.container.format.name,
        "codec": formats.VIDEO_CODECS[source.stream.codec_context.codec.name],
        "rates": [str(rate) for rate in rates if rate],
        "audio": audio,
        "other": other,
    }


def _read(source: Source, out: int, request: wire.Message, wanted: "array[int]") -> None:
    progress, left = _Progress(out), iter(wanted)
    goal = next(left, None)
    for index, (frame, at) in enumerate(source.decode()):
        if index == goal:
            _send_picture(out, frame, index, at - request["zero"], request)
            goal = next(left, None)
            if goal is None:
                return
        else:
            progress.tell(index)


def _send_picture(out: int, frame: VideoFrame, index: int, at: int, request: wire.Message) -> None:
    picture = rgb(frame, ColorTags(**request["color"]), request["rotation"], request["flipped"])
    wire.send(out, {"frame": index, "pts": at, "shape": picture.shape}, picture)


if __name__ == "__main__":
    main()
