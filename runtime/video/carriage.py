"""How one stream travels beside the edited pictures: copied as it is, or converted where the container cannot hold it.

A way is a function that makes a `Carriage` of a stream; `ways` lists those of a stream, the most faithful first.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import av
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream

from fairy.runtime.video.opened import codec_name, is_cover

_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_LOSSLESS = ("pcm_", "flac", "alac", "wavpack", "tta", "truehd", "mlp")
_EXACT = {
    "u8": ("pcm_s16le", "flac", "alac"),
    "s16": ("pcm_s16le", "pcm_s16be", "flac", "alac"),
    "s24": ("pcm_s24le", "pcm_s24be", "flac", "alac"),
    "s32": ("pcm_s32le", "pcm_s32be"),
    "flt": ("pcm_f32le", "pcm_f32be"),
    "dbl": ("pcm_f64le", "pcm_f64be"),
}
"""What holds every sample of decoded sound exactly."""
_LOSSY = {"avi": ("ac3", "libmp3lame"), "webm": ("libopus",)}
_KBIT_PER_S = {"ac3": 640, "libmp3lame": 320, "libopus": 510, "aac": 512}
"""At most; 160 a channel otherwise."""
_TEXT = ("mov_text", "subrip", "webvtt")
_COVER_NAMES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png"), "bmp": ("c.bmp", "image/bmp")}


class Carriage:
    """A stream that is copied undecoded."""

    note = ""
    """What is worth knowing about the way it travels."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.reads_as = kind_of(stream)
        self.copy: Any = None

    def board(self, output: OutputContainer) -> None:
        """Adds the stream to a file that is not begun yet."""
        self.copy = output.add_stream_from_template(self.stream)

    def opening(self) -> "list[Packet[Any]]":
        """What is written before all else."""
        return []

    def carry(self, packet: "Packet[Any]") -> "Iterator[Packet[Any]]":
        """What becomes of one packet."""
        yield packet

    def finish(self) -> "Iterator[Packet[Any]]":
        """What is left at the end."""
        yield from ()


class WithLayout(Carriage):
    """Sound that does not say where its channels sound: as usual for their number."""

    def board(self, output: OutputContainer) -> None:
        super().board(output)
        self.copy.codec_context.layout = _layout(self.stream.codec_context)


class Recoded(Carriage):
    """Sound in another codec."""

    def __init__(self, stream: Any, codec: str, *, exact: bool) -> None:
        super().__init__(stream)
        self._codec = av.Codec(codec, "w")
        self.reads_as = "audio", self._codec.canonical_name
        self._exact = exact
        channels = min(stream.codec_context.layout.nb_channels, 2 if codec == "libmp3lame" else 8)
        self._layout = _layout(stream.codec_context) if channels > 2 else _USUAL_LAYOUTS[channels]
        self._bits_per_s = min(_KBIT_PER_S.get(codec, 512), 160 * channels) * 1000
        how = "without loss" if exact else f"at {self._bits_per_s // 1000} kbit/s"
        self.note = f"is written as {self.reads_as[1]} {how}"

    def board(self, output: OutputContainer) -> None:
        rate, rates = self.stream.codec_context.sample_rate, self._codec.audio_rates
        rate = rate if not rates or rate in rates else 48000
        self.copy = output.add_stream(self._codec.name, rate=rate)
        context = self.copy.codec_context
        context.layout, context.time_base = self._layout, Fraction(1, rate)
        if not self._exact:
            context.bit_rate = self._bits_per_s
        elif depth_of(self.stream) == "s24":
            context.format = next(f.name for f in self._codec.audio_formats or () if f.name.startswith("s32"))

    def carry(self, packet: "Packet[Any]") -> "Iterator[Packet[Any]]":
        for frame in self.stream.decode(packet):
            yield from self.copy.encode(frame)

    def finish(self) -> "Iterator[Packet[Any]]":
        for frame in self.stream.decode(None):
            yield from self.copy.encode(frame)
        yield from self.copy.encode(None)
        self.stream.codec_context.flush_buffers()


class Retyped(Carriage):
    """Subtitles of text in another codec."""

    def __init__(self, stream: Any, codec: str) -> None:
        super().__init__(stream)
        self._codec = codec
        self.reads_as = "subtitle", codec
        plainer = ", in plainer type" if codec_name(stream) in ("ass", "ssa") else ""
        self.note = f"is written as {codec}{plainer}"

    def board(self, output: OutputContainer) -> None:
        context = self.stream.codec_context
        context.open(strict=False)
        self.copy = output.add_stream(self._codec)
        self.copy.codec_context.subtitle_header = context.subtitle_header
        self.copy.time_base = self.copy.codec_context.time_base = self.stream.time_base

    def carry(self, packet: "Packet[Any]") -> "Iterator[Packet[Any]]":
        lines = self.stream.codec_context.decode2(packet)
        if lines is not None and lines.rects:
            text = self.copy.codec_context.encode_subtitle(lines)
            text.pts = text.dts = packet.pts
            text.duration, text.time_base = packet.duration, packet.time_base
            yield text


class Cover(Carriage):
    """Cover art as a stream of one picture, as MP4 has it."""

    def __init__(self, stream: Any, picture: bytes) -> None:
        super().__init__(stream)
        self._picture = picture

    def board(self, output: OutputContainer) -> None:
        self.copy = output.add_stream_from_template(self.stream, opaque=True)

    def opening(self) -> "list[Packet[Any]]":
        packet: Packet[Any] = Packet(self._picture)
        packet.pts = packet.dts = 0
        packet.is_keyframe, packet.time_base = True, self.copy.time_base
        return [packet]

    def carry(self, packet: "Packet[Any]") -> "Iterator[Packet[Any]]":
        yield from ()


class AttachedCover(Cover):
    """Cover art as an attachment, as Matroska has it."""

    def board(self, output: OutputContainer) -> None:
        usual, mimetype = _COVER_NAMES.get(codec_name(self.stream), ("cover", "application/octet-stream"))
        name = self.stream.metadata.get("filename", usual)
        self.copy = output.add_attachment(name, self.stream.metadata.get("mimetype", mimetype), self._picture)

    def opening(self) -> "list[Packet[Any]]":
        return []


Way = Callable[[Any], Carriage]


def ways(stream: Stream, muxer: str, picture: bytes) -> tuple[list[Way], list[Way]]:
    """The ways in which nothing is lost, and those in which something is; `picture`: of cover art."""
    if is_cover(stream):
        return [partial(AttachedCover if muxer == "matroska" else Cover, picture=picture)], []
    if stream.type == "audio":
        copies: list[Way] = [Carriage]
        if stream.codec_context is None:
            return copies, []
        depth = depth_of(stream)
        if depth is not None:
            copies += [WithLayout, *(partial(Recoded, codec=codec, exact=True) for codec in _EXACT[depth])]
        return copies, [partial(Recoded, codec=codec, exact=False) for codec in _LOSSY.get(muxer, ("aac", "libopus"))]
    if stream.type == "subtitle":
        text = [partial(Retyped, codec=codec) for codec in _TEXT] if _is_text(stream) else []
        return [Carriage, *text], []
    return ([Carriage] if stream.type in ("data", "attachment") else []), []


def kind_of(stream: Stream) -> tuple[str, str]:
    """Type and codec."""
    return stream.type, codec_name(stream)


def depth_of(stream: Any) -> str | None:
    """How many bits each sample of lossless sound has; None for sound that is not lossless."""
    name = codec_name(stream)
    if not name.startswith(_LOSSLESS):
        return None
    decoded = str(stream.codec_context.format.name).removesuffix("p")
    narrow = decoded == "s32" and not name.startswith("pcm_s32")
    return "s24" if narrow else decoded


def _is_text(stream: Stream) -> bool:
    return codec_name(stream) in ("ass", "ssa", "subrip", "text", "webvtt", "mov_text")


def _layout(context: Any) -> str:
    name, count = str(context.layout.name), int(context.layout.nb_channels)
    return _USUAL_LAYOUTS.get(count, name) if name.endswith(" channels") else name
