"""Whether a container gives a stream back as what it was: written with its first packets and read again.

FFmpeg's own tables do not know every rule; some are checked when the file is ended, and some streams become "data".
"""

import io
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from fairy.runtime.video import formats
from fairy.runtime.video.carriage import Carriage, Way, kind_of
from fairy.runtime.video.opened import codec_name, is_cover

_SOUND_PACKETS, _OTHER_PACKETS = 8, 1
_MOST_PACKETS, _MOST_BYTES = 4000, 64 << 20
_LINES = {"ass": b"0,0,Default,,0,0,0,,a", "mov_text": b"\0\1a", "subrip": b"a", "text": b"a", "webvtt": b"a"}


_MISLABELLED = {("avi", "audio", "eac3")}
"""What FFmpeg itself sees through and others do not: AVI calls it AC-3."""


class Outcome(Enum):
    """What a container does with a stream."""

    KEPT = "kept"
    MISREAD = "misread"
    REFUSED = "refused"


def first_packets(container: InputContainer, wanted: Sequence[Stream]) -> "dict[int, list[Packet[Any]]]":
    """The first packets of each stream by its index; of rare ones, as subtitles, perhaps none."""
    found: dict[int, list[Packet[Any]]] = {stream.index: [] for stream in wanted}
    left = {s.index: _SOUND_PACKETS if s.type == "audio" else _OTHER_PACKETS for s in wanted if s.type != "attachment"}
    size_bytes = 0
    for count, packet in enumerate(container.demux()):
        index = packet.stream_index
        if left.get(index, 0) and packet.size:
            found[index].append(packet)
            left[index] -= 1
        size_bytes += packet.size
        if not any(left.values()) or count > _MOST_PACKETS or size_bytes > _MOST_BYTES:
            break
    return found


def attempt(way: Way, stream: Any, packets: "Sequence[Packet[Any]]", muxer: str) -> Outcome:
    """Writes and reads a small file with nothing but a picture and these packets."""
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=muxer) as output:
            carriage = way(stream)
            count = _write(output, carriage, _copies(stream, packets), muxer)
        buffer.seek(0)
        if (muxer, *carriage.reads_as) in _MISLABELLED:
            return Outcome.MISREAD
        with av.open(buffer, "r", options=formats.whitelist()) as back:
            return Outcome.KEPT if _is_there(back, carriage, count) else Outcome.MISREAD
    except (av.FFmpegError, ValueError, TypeError, KeyError, StopIteration):
        return Outcome.REFUSED


def _write(output: OutputContainer, carriage: Carriage, packets: "Sequence[Packet[Any]]", muxer: str) -> int:
    video: Any = output.add_stream("libvpx" if muxer == "webm" else "mpeg4", rate=25)
    video.width = video.height = 16
    carriage.board(output)
    carriage.copy.disposition = carriage.stream.disposition.value
    output.start_encoding()
    picture = av.VideoFrame(16, 16, "yuv420p")
    picture.pts = 0
    for packet in [*video.encode(picture), *video.encode()]:
        output.mux(packet)
    count = 0
    for packet in _carried(carriage, packets):
        packet.stream = carriage.copy
        output.mux(packet)
        count += 1
    return count


def _carried(carriage: Carriage, packets: "Sequence[Packet[Any]]") -> "Iterator[Packet[Any]]":
    yield from carriage.opening()
    for packet in packets:
        yield from carriage.carry(packet)
    yield from carriage.finish()


def _is_there(back: InputContainer, carriage: Carriage, count: int) -> bool:
    same = {s.index for s in back.streams if kind_of(s) == carriage.reads_as and s.index > 0}
    if is_cover(carriage.stream):
        same = {s.index for s in back.streams if is_cover(s)}
    if not same or not count:
        return bool(same)
    return any(packet.size and packet.stream_index in same for packet in back.demux())


def _copies(stream: Any, packets: "Sequence[Packet[Any]]") -> "list[Packet[Any]]":
    """Of their own, beginning at 0, because writing changes them; a line of text where there is none yet."""
    stamps = [at for p in packets for at in (p.dts, p.pts) if at is not None]
    first, found = min(stamps, default=0), []
    if not packets and stream.type == "subtitle" and codec_name(stream) in _LINES:
        line: Packet[Any] = Packet(_LINES[codec_name(stream)])
        line.pts = line.dts = 0
        line.duration, line.time_base = 1, stream.time_base
        return [line]
    for packet in packets:
        twin: Packet[Any] = Packet(bytes(packet))
        twin.pts = None if packet.pts is None else packet.pts - first
        twin.dts = None if packet.dts is None else packet.dts - first
        twin.duration, twin.time_base, twin.is_keyframe = packet.duration, packet.time_base, packet.is_keyframe
        found.append(twin)
    return found
