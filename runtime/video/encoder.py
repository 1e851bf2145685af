"""The helper process that encodes pictures and copies the source's sound: `python -m fairy.runtime.video.encoder`.

The first message says everything that can be refused; then one message per picture; then {"finish": true}.
The file is written under a temporary name, which the parent renames; whoever survives removes it after a failure.
"""

import contextlib
import errno
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from fairy.runtime.video import formats, helper, wire
from fairy.runtime.video.opened import OpenedVideo
from fairy.runtime.video.passengers import Passengers
from fairy.runtime.video.track import VideoTrack

_BYTES_PER_PIXEL = 600
"""Room for 60 pictures of look-ahead with what the encoder derives from each."""
_FULL_DISK = {
    errno.ENOSPC: "no space is left on the disk.",
    errno.EFBIG: "the file is larger than this machine allows.",
}
_FULL_DISK[errno.EDQUOT] = "the disk quota is used up."


def main() -> None:
    helper.run(serve)


def serve(inbox: wire.Inbox, out: int) -> None:
    request, _ = inbox.receive(0)
    pixels = request["width"] * request["height"]
    helper.confine(helper.BASE_BYTES + pixels * _BYTES_PER_PIXEL, writes_files=True)
    part = Path(request["part"])
    try:
        with contextlib.ExitStack() as stack:
            _Job(request, stack).serve(inbox, out)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, av.FFmpegError) and error.errno in _FULL_DISK:
            raise helper.Refusal(_FULL_DISK[error.errno], "machine") from None
        raise


class _Job:
    """One output file, from its header to its trailer."""

    def __init__(self, request: wire.Message, stack: contextlib.ExitStack) -> None:
        self._request = request
        self._into = formats.output_format(Path(request["path"]))
        source = self._open_source(stack)
        self._output = _open_output(request, self._into, source)
        self._track = VideoTrack(self._output, request, self._into)
        self._passengers = self._board(source)
        self._output.start_encoding()
        if self._passengers:
            self._passengers.open()

    def serve(self, inbox: wire.Inbox, out: int) -> None:
        shape = self._request["height"], self._request["width"], self._request["channels"]
        wire.send(out, {"ready": self._passengers.notes if self._passengers else []})
        for count in itertools.count():
            message, payload = inbox.receive(math.prod(shape))
            if "finish" in message:
                wire.send(out, {"done": count, "notes": self._finish()})
                return
            picture = np.frombuffer(payload, dtype=np.uint8).reshape(shape)
            self._mux(self._track.encode(picture, message["pts"], message["duration"]))

    def _open_source(self, stack: contextlib.ExitStack) -> OpenedVideo | None:
        if self._request["source"] is None:
            return None
        return stack.enter_context(OpenedVideo(Path(self._request["source"]), self._request["max_pixels"]))

    def _board(self, source: OpenedVideo | None) -> Passengers | None:
        if source is None:
            return None
        span = self._request["span"]
        cut = (Fraction(span[0]), Fraction(span[1])) if span else None
        return Passengers(source, self._output, self._track.stream, self._into, cut, Fraction(self._request["zero_s"]))

    def _mux(self, packets: "Iterator[Packet[VideoStream]]") -> None:
        for packet in packets:
            assert packet.dts is not None
            time_s = packet.dts * packet.time_base
            self._output.mux(packet)
            if self._passengers:
                self._passengers.copy_until(time_s)

    def _finish(self) -> list[str]:
        self._mux(self._track.finish())
        notes = self._passengers.finish() if self._passengers else []
        self._output.close()
        return notes


def _open_output(request: wire.Message, into: formats.Output, source: OpenedVideo | None) -> OutputContainer:
    # Sound that starts a little before 0 (its encoder's lead-in) must not push the pictures' time stamps.
    options = {"fflags": "+bitexact", "avoid_negative_ts": "auto" if into.muxer == "mpegts" else "disabled"}
    if into.muxer in ("mp4", "mov"):
        # The movie's own clock places every stream's start: it must hold all their ticks.
        flags = "+faststart+use_metadata_tags" if source is not None and _has_keys(source) else "+faststart"
        options |= {"movflags": flags, "movie_timescale": str(_movie_timescale(request))}
    elif into.muxer == "mpegts":
        options |= {"mpegts_copyts": "1", "muxdelay": "0"}
    return av.open(f"file:{request['part']}", "w", format=into.muxer, options=options)


def _has_keys(source: OpenedVideo) -> bool:
    """Whether the file says by QuickTime's own keys where and with which camera it was made."""
    keys = {key.lower() for key in source.container.metadata}
    return bool(keys & {"make", "model"}) or any(key.startswith("com.apple.quicktime.") for key in keys)


def _movie_timescale(request: wire.Message) -> int:
    scale = Fraction(request["time_base"]).denominator
    for rate in (48000, 44100):
        together = math.lcm(scale, rate)
        scale = together if together < 1 << 31 else scale
    return max(scale, 1000)


if __name__ == "__main__":
    main()
