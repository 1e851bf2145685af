"""The helper process that encodes pictures and copies the source's sound: `python -m fairy.runtime.video.encoder`.

The first message says everything that can be refused; then one message per picture; then {"finish": true}.
The file is written under a temporary name, which the parent renames; whoever survives removes it after a failure.
"""

import contextlib
import errno
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from fairy.runtime.video import formats, helper, wire
from fairy.runtime.video.info import ColorTags
from fairy.runtime.video.passengers import Passengers
from fairy.runtime.video.source import FFmpegLog, open_source, pick_video

ENCODER_THREADS = 2
"""A constant: x264's pictures depend on its number of threads, and the same frames shall give the same bytes."""
_BYTES_PER_PIXEL = 600
"""Room for 60 pictures of look-ahead with what the encoder derives from each."""
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT
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
        self._request, self._color = request, ColorTags(**request["color"])
        self._into = formats.output_format(Path(request["path"]))
        self._output = _open_output(request, self._into)
        self._stream = _add_video(self._output, request, self._color, self._into)
        self._passengers = self._board(stack)
        self._durations: dict[int, int] = {}  # of the pictures that are inside the encoder, by time stamp
        self._output.start_encoding()

    def serve(self, inbox: wire.Inbox, out: int) -> None:
        width, height = self._request["width"], self._request["height"]
        wire.send(out, {"ready": self._passengers.notes if self._passengers else []})
        count = 0
        while True:
            message, payload = inbox.receive(width * height * 3)
            if "finish" in message:
                break
            picture = np.frombuffer(payload, dtype=np.uint8).reshape(height, width, 3)
            self._encode(self._frame(picture, message["pts"], message["duration"]))
            count += 1
        self._encode(None)
        if self._passengers:
            self._passengers.finish()
        self._output.close()
        wire.send(out, {"done": count})

    def _board(self, stack: contextlib.ExitStack) -> Passengers | None:
        if self._request["source"] is None:
            return None
        path, log = Path(self._request["source"]), FFmpegLog()
        source: InputContainer = stack.enter_context(open_source(path, self._request["max_pixels"], log))
        video = pick_video(source, path, self._request["max_pixels"])
        span = self._request["span"]
        cut = (Fraction(span[0]), Fraction(span[1])) if span else None
        return Passengers(source, video, self._output, self._into, cut)

    def _frame(self, picture: np.ndarray, pts: int, duration: int) -> VideoFrame:
        frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format=self._stream.codec_context.pix_fmt,
            dst_colorspace=formats.MATRICES[self._color.matrix],
            dst_color_range=2 if self._color.full else 1,
            interpolation=int(_EXACT),
        )
        frame.colorspace, frame.color_range = self._color.matrix, 2 if self._color.full else 1
        frame.color_primaries, frame.color_trc = self._color.primaries, self._color.transfer
        frame.pts, frame.time_base, frame.duration = pts, self._stream.codec_context.time_base, duration
        self._durations[pts] = duration
        return frame

    def _encode(self, frame: VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            assert packet.pts is not None
            assert packet.dts is not None
            packet.duration = self._durations.pop(packet.pts)
            time_s = packet.dts * packet.time_base
            self._output.mux(packet)
            if self._passengers:
                self._passengers.copy_until(time_s)


def _open_output(request: wire.Message, into: formats.Output) -> OutputContainer:
    # Sound that starts a little before 0 (its encoder's lead-in) must not push the pictures' time stamps.
    options = {"fflags": "+bitexact", "avoid_negative_ts": "auto" if into.muxer == "mpegts" else "disabled"}
    if into.muxer in ("mp4", "mov"):
        # The movie's own clock places every stream's start: it must hold all their ticks.
        options |= {"movflags": "+faststart", "movie_timescale": str(_movie_timescale(request))}
    elif into.muxer == "mpegts":
        options |= {"mpegts_copyts": "1", "muxdelay": "0"}
    return av.open(f"file:{request['part']}", "w", format=into.muxer, options=options)


def _movie_timescale(request: wire.Message) -> int:
    scale = Fraction(request["time_base"]).denominator
    for rate in (48000, 44100):
        together = math.lcm(scale, rate)
        scale = together if together < 1 << 31 else scale
    return max(scale, 1000)


def _add_video(output: OutputContainer, request: wire.Message, color: ColorTags, into: formats.Output) -> VideoStream:
    stream = output.add_stream(request["encoder"], rate=Fraction(request["rate"]))
    context, time_base = stream.codec_context, Fraction(request["time_base"])
    stream.time_base = context.time_base = time_base
    context.width, context.height = request["width"], request["height"]
    odd = request["width"] % 2 or request["height"] % 2
    context.pix_fmt = "yuv444p" if odd else "yuv420p"
    context.colorspace, context.color_range = color.matrix, 2 if color.full else 1
    context.color_primaries, context.color_trc = color.primaries, color.transfer
    context.sample_aspect_ratio = Fraction(request["sample_aspect_ratio"])
    context.thread_count = ENCODER_THREADS
    context.flags |= av.codec.context.Flags.bitexact
    context.options = _encoder_options(request["encoder"], request["crf"], into)
    return stream


def _encoder_options(encoder: str, crf: int, into: formats.Output) -> dict[str, str]:
    if encoder == "libvpx-vp9":  # its scale runs to 63, x264's to 51
        return {"crf": str(round(crf * 63 / 51)), "b": "0", "deadline": "good", "cpu-used": "4"}
    # AVI has no presentation times, so pictures must be stored in the order shown.
    return {"crf": str(crf), "preset": "medium"} | ({"bf": "0"} if into.clock in ("rate", "90kHz") else {})


if __name__ == "__main__":
    main()
