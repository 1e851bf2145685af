"""The helper process that demuxes and decodes a user's video: `python -m fairy.runtime.video.decoder`.

It imports av and numpy, never a deep-learning library, and answers one request: "probe" or "read".
"""

import time
from array import array
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.video.frame import VideoFrame

from fairy.runtime.video import formats, helper, wire
from fairy.runtime.video.boxes import is_cut_off
from fairy.runtime.video.info import ColorTags
from fairy.runtime.video.look import look_at
from fairy.runtime.video.source import FFmpegLog, decode, is_cover, open_source, pick_video, rgb, tick

_REPORT_EVERY_S = 0.2
_BYTES_PER_PIXEL = 160
"""Room for a decoder's 16 reference pictures and its threads' own, 16 bit 4:2:2."""


def main() -> None:
    helper.run(serve)


def serve(inbox: wire.Inbox, out: int) -> None:
    request, payload = inbox.receive(1 << 30)
    max_pixels = int(request["max_pixels"])
    helper.confine(helper.BASE_BYTES + max_pixels * _BYTES_PER_PIXEL, writes_files=False)
    helper.exit_when_closed(0)
    path, log = Path(request["path"]), FFmpegLog()
    check_file(path)
    with open_source(path, max_pixels, log) as container:
        if request["do"] == "probe":
            _probe(container, path, max_pixels, log, out)
        else:
            _read(container, path, max_pixels, log, out, request, array("q", bytes(payload)))


class _Progress:
    """Says now and then how far decoding is, so that the parent sees it alive."""

    def __init__(self, out: int) -> None:
        self._out, self._next = out, 0.0

    def tell(self, done: int) -> None:
        if time.monotonic() >= self._next:
            wire.send(self._out, {"at": done})
            self._next = time.monotonic() + _REPORT_EVERY_S


def _probe(container: InputContainer, path: Path, max_pixels: int, log: FFmpegLog, out: int) -> None:
    stream = pick_video(container, path, max_pixels)
    streams = _describe(container, stream.index)
    pts, look, progress, duration = array("q"), None, _Progress(out), 0
    for frame, at in decode(container, stream, path, max_pixels, log):
        if look is None:
            look = look_at(frame, stream, path)
        pts.append(at)
        duration = frame.duration
        progress.tell(len(pts))
    if look is None:
        raise helper.Refusal(f"{path} has 0 frames of video.")
    if "ended prematurely" in log.text():  # a live recording, which announces no length
        end_s = float((pts[-1] + duration) * tick(stream))
        raise helper.Refusal(f"{path} is cut off after {end_s:.2f} s of video; copy or download it again.")
    found = streams | look.to_wire() | _rates(stream.average_rate, stream.guessed_rate)
    found |= {"time_base": str(stream.time_base), "last_duration": duration}
    wire.send(out, {"found": found}, pts)


def _rates(*rates: Fraction | None) -> wire.Message:
    return {"rates": [str(rate) for rate in rates if rate]}


def _describe(container: InputContainer, video: int) -> wire.Message:
    """The container and its streams but the video; read while it is open, for later they are garbage."""
    audio, other = [], []
    for stream in container.streams:
        name = stream.codec_context.codec.name if stream.codec_context is not None else "unknown"
        if stream.type == "audio":
            audio.append(name)
        elif stream.index != video:
            other.append("cover" if stream.type == "video" and is_cover(stream) else f"{stream.type}:{name}")
    codec = formats.VIDEO_CODECS[container.streams[video].codec_context.codec.name]
    return {"container": container.format.name, "codec": codec, "audio": audio, "other": other}


def _read(
    container: InputContainer,
    path: Path,
    max_pixels: int,
    log: FFmpegLog,
    out: int,
    request: wire.Message,
    wanted: "array[int]",
) -> None:
    stream = pick_video(container, path, max_pixels)
    color, progress, left = ColorTags(**request["color"]), _Progress(out), iter(wanted)
    goal = next(left, None)
    for index, (frame, at) in enumerate(decode(container, stream, path, max_pixels, log)):
        if goal is None:
            return
        if index != goal:
            progress.tell(index)
            continue
        _send_picture(out, frame, index, at, color, request)
        goal = next(left, None)


def _send_picture(out: int, frame: VideoFrame, index: int, at: int, color: ColorTags, request: wire.Message) -> None:
    picture = rgb(frame, color, request["rotation"], request["flipped"])
    wire.send(out, {"frame": index, "pts": at, "shape": picture.shape}, picture)


if __name__ == "__main__":
    main()
