"""What travels along with the edited pictures: sound, subtitles, data, chapters and titles, copied undecoded."""

import io
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from typing import cast

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream

from fairy.runtime.video import formats
from fairy.runtime.video.helper import Refusal
from fairy.runtime.video.source import JUMP_S, Source, codec_name

_BELONGS_TO_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "timecode", "duration"}
_LOOK_AHEAD_PACKETS = 50
_LATE_SOUND_S = 30
"""No player copes with sound that is stored farther behind its pictures."""


class Passengers:
    """The streams of `source` beside the edited video, copied into `output` in step with the pictures.

    With a `span` (start and stop in seconds of the source) packets that begin inside it are kept, and
    start becomes 0.
    """

    def __init__(
        self,
        source: Source,
        output: OutputContainer,
        into: formats.Output,
        span: tuple[Fraction, Fraction] | None,
    ) -> None:
        self.notes: list[str] = []
        self._video, self._output, self._into, self._span = source.stream, output, into, span
        self._name(source.container)
        self._copies = {s.index: copy for s in source.container.streams if (copy := self._add(s)) is not None}
        self._packets = self._look_ahead(source.container.demux())
        self._ends: dict[int, int] = {}  # of the last packet of each stream, in its ticks
        self._later: dict[int, int] = {}  # ticks by which a stream's packets are moved since its time went back

    def copy_until(self, time_s: Fraction) -> None:
        """Copies on until the source's own pictures have passed `time_s`: as well interleaved as the source was."""
        start_s = self._span[0] if self._span else Fraction(0)
        for packet in self._packets:
            if packet.stream_index in self._copies:
                self._copy(packet)
            elif (
                packet.stream_index == self._video.index
                and packet.dts is not None
                and packet.dts * packet.time_base - start_s > time_s
            ):
                return

    def finish(self) -> None:
        """Copies all that is left, up to the end of the span."""
        self.copy_until((self._span[1] - self._span[0] if self._span else Fraction(10**9)) + _LATE_SOUND_S)

    def _add(self, stream: Stream) -> Stream | None:
        if stream.index == self._video.index:
            return None
        if not _fits(stream, self._into.muxer):
            self._leave(stream)
            return None
        copy = self._output.add_stream_from_template(stream)
        copy.metadata.update({k: v for k, v in stream.metadata.items() if k not in _BELONGS_TO_THE_FILE})
        copy.disposition = cast(Disposition, stream.disposition.value)  # PyAV 17 takes the number only
        return copy

    def _leave(self, stream: Stream) -> None:
        name = codec_name(stream)
        if stream.type == "audio":
            homes = [e for e in (".mkv", ".mp4", ".mov") if _fits(stream, formats.OUTPUTS[e].muxer)]
            remedy = f"; write {' or '.join(homes[:2])} instead" if homes else "; remove the sound first"
            raise Refusal(f"Sound stream {stream.index} ({name}) cannot be kept in {self._into.title}{remedy}.")
        if stream.type == "data" and self._output.chapters():
            return  # MP4's own track of chapter titles, which the muxer writes anew
        kind = "second video" if stream.type == "video" else stream.type
        self.notes.append(
            f"{kind.capitalize()} stream {stream.index} ({name}) cannot be kept in {self._into.title} and is left out."
        )

    def _copy(self, packet: "Packet[Stream]") -> None:
        if packet.dts is None and packet.pts is None:  # the empty packets that end each stream
            return
        if self._span is not None and not self._shift(packet, *self._span):
            return
        index, stream = packet.stream_index, packet.stream
        self._go_on(packet, index)
        packet.stream = self._copies[index]
        try:
            self._output.mux(packet)
        except av.ArgumentError as error:
            kind = "sound" if stream.type == "audio" else stream.type
            raise Refusal(
                f"{kind.capitalize()} stream {index} ({codec_name(stream)}) cannot be copied into {self._into.title} "
                f"at {float((packet.dts or 0) * packet.time_base):.2f} s ({error.strerror}); remove it from the source."
            ) from None

    def _go_on(self, packet: "Packet[Stream]", index: int) -> None:
        """Where the source's time goes back, as in joined MPEG-TS files, the stream goes on from where it was."""
        if packet.dts is None:
            return
        dts = packet.dts + self._later.get(index, 0)
        end = self._ends.get(index)
        if end is not None and dts < end - JUMP_S / packet.time_base:
            self._later[index] = self._later.get(index, 0) + end - dts
            dts = end
        if self._later.get(index):
            packet.pts = None if packet.pts is None else packet.pts + dts - packet.dts
            packet.dts = dts
        self._ends[index] = max(dts + (packet.duration or 1), end or 0)

    def _shift(self, packet: "Packet[Stream]", start_s: Fraction, stop_s: Fraction) -> bool:
        at = packet.pts if packet.pts is not None else packet.dts
        assert at is not None
        if not start_s <= at * packet.time_base < stop_s:
            return False
        ticks = round(start_s / packet.time_base)
        packet.pts = packet.pts - ticks if packet.pts is not None else None
        packet.dts = packet.dts - ticks if packet.dts is not None else None
        return True

    def _look_ahead(self, packets: "Iterator[Packet[Stream]]") -> "Iterator[Packet[Stream]]":
        """The same packets; says so where the first ones are earlier than MPEG-TS can count."""
        if self._into.muxer != "mpegts" or self._span is not None:
            return packets
        first = list(islice(packets, _LOOK_AHEAD_PACKETS))
        starts = [p.dts * p.time_base for p in first if p.stream_index in self._copies and p.dts is not None]
        if min(starts, default=Fraction(0)) < 0:
            later_ms = float(-min(starts) * 1000)
            self.notes.append(f"MPEG-TS has no time before 0; all streams start {later_ms:.0f} ms later.")
        return chain(first, packets)

    def _name(self, source: InputContainer) -> None:
        titles = {k: v for k, v in source.metadata.items() if k.lower() not in _BELONGS_TO_THE_FILE}
        self._output.metadata.update(titles)
        if self._span is None and source.chapters():
            self._output.set_chapters(source.chapters())


def _fits(stream: Stream, muxer: str) -> bool:
    """Whether the container takes the stream: tried, because FFmpeg's own table does not know every rule."""
    if stream.type not in ("audio", "subtitle", "data", "attachment"):
        return False
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True
