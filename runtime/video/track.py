"""The pictures of an output file: encoded with their colours, each packet with its exact time and duration."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fairy.runtime.video import codecs, formats, helper, wire
from fairy.runtime.video.info import ColorTags
from fairy.runtime.video.palette import with_palette

ENCODER_THREADS = 2
"""A constant: x264's pictures depend on its number of threads, and the same frames shall give the same bytes."""


class VideoTrack:
    """One video stream of `output`, as the writer's `request` describes it."""

    def __init__(self, output: OutputContainer, request: wire.Message, into: formats.Output) -> None:
        self._color = ColorTags(**request["color"])
        self._into = into
        self.stream = _add_stream(output, request, self._color, into)
        self._durations: dict[int, int] = {}  # of the pictures that are inside the encoder, by time stamp
        self._held: Packet[VideoStream] | None = None
        self._start = self._end = self._first_dts = 0

    def encode(self, picture: NDArray[np.uint8], pts: int, duration: int) -> "Iterator[Packet[VideoStream]]":
        """The packets that are ready once `picture` [H, W, 3 or, with transparency, 4] is known."""
        if not self._end:
            self._start = pts
        self._durations[pts], self._end = duration, pts + duration
        yield from self._packets(self._frame(picture, pts, duration))

    def finish(self) -> "Iterator[Packet[VideoStream]]":
        """All packets that are left."""
        yield from self._packets(None)
        if self._held is None:
            return
        if self._into.muxer in ("mp4", "mov"):
            # MP4 ends with the packet that is stored last, which need not be the picture shown last.
            assert self._held.dts is not None
            self._held.duration = max(1, self._end - self._start - (self._held.dts - self._first_dts))
        yield self._held

    def _packets(self, frame: VideoFrame | None) -> "Iterator[Packet[VideoStream]]":
        """One behind the encoder, so that `finish` has the last."""
        for packet in self.stream.encode(frame):
            assert packet.pts is not None
            assert packet.dts is not None
            packet.duration = self._durations.pop(packet.pts)
            if self._held is None:
                self._first_dts = packet.dts
            else:
                yield self._held
            self._held = packet

    def _frame(self, picture: NDArray[np.uint8], pts: int, duration: int) -> VideoFrame:
        color, context = self._color, self.stream.codec_context
        frame = with_palette(picture) if context.pix_fmt == "pal8" else self._converted(picture, str(context.pix_fmt))
        frame.colorspace, frame.color_range = _samples(color, str(context.pix_fmt))
        frame.color_primaries, frame.color_trc = color.primaries, color.transfer
        frame.pts, frame.time_base, frame.duration = pts, context.time_base, duration
        return frame

    def _converted(self, picture: NDArray[np.uint8], pixels: str) -> VideoFrame:
        return VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24").reformat(
            format=pixels,
            dst_colorspace=formats.MATRICES[self._color.matrix],
            dst_color_range=2 if self._color.full else 1,
            interpolation=formats.TO_YUV,
            threads=1,
        )


def _add_stream(output: OutputContainer, request: wire.Message, color: ColorTags, into: formats.Output) -> VideoStream:
    stream = output.add_stream(request["encoder"], rate=Fraction(request["rate"]))
    assert isinstance(stream, VideoStream)
    context = stream.codec_context
    stream.time_base = context.time_base = Fraction(request["time_base"])
    context.width, context.height = request["width"], request["height"]
    _check_pixels(context.codec, request["pixels"])
    context.pix_fmt = request["pixels"]
    context.colorspace, context.color_range = _samples(color, request["pixels"])
    context.color_primaries, context.color_trc = color.primaries, color.transfer
    if request["channels"] == 4 and request["encoder"] == "libvpx-vp9":
        stream.metadata["alpha_mode"] = "1"  # its transparency is a second picture, which players look for then
    context.sample_aspect_ratio = Fraction(request["sample_aspect_ratio"])
    if request["encoder"] == "libx265" and into.muxer in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # which QuickTime and Safari play
    context.thread_count = ENCODER_THREADS
    context.flags |= av.codec.context.Flags.bitexact
    context.options = _options(request, into)
    return stream


def _options(request: wire.Message, into: formats.Output) -> dict[str, str]:
    # Pictures are stored in the order shown where another order would cost time stamps: AVI has none but the
    # order, MPEG-TS none before 0, and MP4 says how long a picture stays by when the next one is decoded.
    in_order = into.clock in ("rate", "90kHz") or not request["steady"]
    lossless, crf = bool(request["lossless"]), int(request["crf"])
    return codecs.options_of(request["encoder"], request["pixels"], crf, lossless=lossless, in_order=in_order)


def _samples(color: ColorTags, pixels: str) -> tuple[int, int]:
    """Matrix and range of samples, as FFmpeg numbers them: red, green and blue have no matrix, and all levels."""
    return (0, 2) if codecs.is_rgb(pixels) else (color.matrix, 2 if color.full else 1)


def _check_pixels(codec: av.Codec, pixels: str) -> None:
    known = [kind.name for kind in codec.video_formats or ()]
    if pixels not in known:
        raise helper.Refusal(
            f"pixel_format = {pixels} is not written by {codec.name}; choose one of {', '.join(known)}."
        )
