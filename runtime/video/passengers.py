"""What travels along with the edited pictures: sound, subtitles, data, covers, chapters and titles.

Each is copied undecoded where the container gives it back as what it was, which is tried beforehand; else it is
converted, as faithfully as can be, or left out with a note.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from typing import Any, cast

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from fairy.runtime.video import formats
from fairy.runtime.video.carriage import Carriage, Way, ways
from fairy.runtime.video.helper import Refusal
from fairy.runtime.video.opened import JUMP_S, OpenedVideo, codec_name, is_cover, open_container
from fairy.runtime.video.trial import Outcome, attempt, first_packets

_BELONGS_TO_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "timecode", "duration"}
_WITHOUT_CHAPTERS = ("avi", "mpegts")
_LOOK_AHEAD_PACKETS = 50
_LATE_SOUND_S = 30
"""No player copes with sound that is stored farther behind its pictures."""
_LEAD_IN_S = 1
"""Sound that is converted is decoded from so long before the part that is kept."""


class Passengers:
    """The streams of `source` beside the edited video, brought into `output` in step with the pictures.

    With a `span` (start and stop in seconds of the source) packets that begin inside it are kept, and
    start becomes 0. `zero_s` is the file's own time that is 0 of the video.
    """

    def __init__(
        self,
        source: OpenedVideo,
        output: OutputContainer,
        video: VideoStream,
        into: formats.Output,
        span: tuple[Fraction, Fraction] | None,
        zero_s: Fraction = Fraction(0),
    ) -> None:
        self.notes: list[str] = []
        self._video, self._output, self._into, self._span = source.stream, output, into, span
        self._zero_s = zero_s + (span[0] if span else 0)
        self._name(source.container)
        self._aboard: dict[int, Carriage] = {}
        self._failed: dict[int, tuple[int, float, str]] = {}  # packets, when the first begins, why
        self._board(source, video)
        self._packets = self._look_ahead(source.container.demux())
        self._ends: dict[int, int] = {}  # of the last packet of each stream, in its ticks
        self._stamps: dict[int, int] = {}  # of the last packet of each stream, as the source has it
        self._later: dict[int, int] = {}  # ticks by which a stream's packets are moved since its time went back

    def open(self) -> None:
        """Writes what comes before all pictures."""
        for carriage in self._aboard.values():
            self._mux(carriage, iter(carriage.opening()))

    def copy_until(self, time_s: Fraction) -> None:
        """Copies on until the source's own pictures have passed `time_s`: as well interleaved as the source was."""
        for packet in self._packets:
            if packet.stream_index in self._aboard:
                self._copy(packet)
            elif (
                packet.stream_index == self._video.index
                and packet.dts is not None
                and packet.dts * packet.time_base - self._zero_s > time_s
            ):
                return

    def finish(self) -> list[str]:
        """Copies all that is left, up to the end of the span; says what could not be copied."""
        self.copy_until((self._span[1] - self._span[0] if self._span else Fraction(10**9)) + _LATE_SOUND_S)
        for carriage in self._aboard.values():
            self._mux(carriage, carriage.finish())
        return [
            f"{self._title(self._aboard[index].stream)}: {count} packet{'s' * (count != 1)} could not be written into "
            f"{self._into.title}, the first at {start_s:.2f} s ({why})."
            for index, (count, start_s, why) in self._failed.items()
        ]

    def _board(self, source: OpenedVideo, video: VideoStream) -> None:
        streams = [s for s in source.container.streams if s.index != self._video.index]
        if not streams:
            return
        with open_container(source.path, source.max_pixels) as again:
            found = first_packets(again, [again.streams[s.index] for s in streams])
            chosen = {s.index: self._choose(again.streams[s.index], found[s.index]) for s in streams}
            sounds = [s for s in streams if s.type == "audio"]
            if sounds and all(chosen[s.index] is None for s in sounds):
                self._refuse(again.streams[sounds[0].index], found[sounds[0].index])
        for stream in streams:
            if chosen[stream.index] is None:
                self._leave(stream, video)
        for stream in streams:
            way = chosen[stream.index]
            if way is not None:
                self._aboard[stream.index] = self._add(way(stream))

    def _choose(self, stream: Stream, packets: "list[Packet[Any]]") -> Way | None:
        """The most faithful way that the container gives back; what it refuses outright is converted without loss."""
        muxer, picture = self._into.muxer, bytes(packets[0]) if packets and is_cover(stream) else b""
        if is_cover(stream) and not picture:
            return None
        if stream.type == "data" and muxer not in stream.container.format.name:
            return None  # what another kind of file calls data has no meaning here
        faithful, lossy = ways(stream, muxer, picture)
        outcomes = []
        for way in faithful:
            outcomes.append(attempt(way, stream, packets, muxer))
            if outcomes[-1] is Outcome.KEPT:
                return way
        if len(faithful) > 1 or Outcome.MISREAD in outcomes:
            return next((way for way in lossy if attempt(way, stream, packets, muxer) is Outcome.KEPT), None)
        return None

    def _add(self, carriage: Carriage) -> Carriage:
        stream = carriage.stream
        carriage.board(self._output)
        if stream.type != "attachment":
            kept = {k: v for k, v in stream.metadata.items() if k not in _BELONGS_TO_THE_FILE}
            carriage.copy.metadata.update(kept)
            disposition = cast(Disposition, stream.disposition.value)  # PyAV 17 takes the number only
            if carriage.copy.type != "attachment":
                carriage.copy.disposition = disposition
        if carriage.note:
            self.notes.append(f"{self._title(stream)} {carriage.note}, because {self._into.title} does not hold it.")
        return carriage

    def _refuse(self, stream: Stream, packets: "list[Packet[Any]]") -> None:
        """No sound at all would be left."""
        into = {ending: formats.OUTPUTS[ending].muxer for ending in (".mkv", ".mp4", ".mov")}
        homes = [e for e, muxer in into.items() if attempt(Carriage, stream, packets, muxer) is Outcome.KEPT]
        remedy = f"; write {' or '.join(homes[:2])} instead" if homes else "; remove the sound first"
        raise Refusal(f"{self._title(stream)} cannot be kept in {self._into.title}{remedy}.")

    def _leave(self, stream: Stream, video: VideoStream) -> None:
        if stream.type == "data" and self._output.chapters():
            return  # MP4's own track of chapter titles, which the muxer writes anew
        timecode = stream.metadata.get("timecode")
        if timecode and self._span is None and self._into.muxer in ("mp4", "mov"):
            video.metadata["timecode"] = timecode  # the muxer makes a track of it
            return
        self.notes.append(f"{self._title(stream)} cannot be kept in {self._into.title} and is left out.")

    def _title(self, stream: Stream) -> str:
        kind = {"audio": "sound", "video": "cover art" if is_cover(stream) else "second video"}
        return f"{kind.get(stream.type, stream.type).capitalize()} stream {stream.index} ({codec_name(stream)})"

    def _copy(self, packet: "Packet[Stream]") -> None:
        if packet.dts is None and packet.pts is None:  # the empty packets that end each stream
            return
        carriage = self._aboard[packet.stream_index]
        if self._is_near(packet):
            self._mux(carriage, carriage.carry(packet))

    def _mux(self, carriage: Carriage, packets: "Iterator[Packet[Any]]") -> None:
        """Writes what becomes of one packet; what the container or a decoder does not take is counted, not fatal."""
        index, time_s = carriage.stream.index, 0.0
        try:
            for packet in packets:
                at = packet.pts if packet.pts is not None else packet.dts
                time_s = float(0 if at is None else at * packet.time_base)
                if not is_cover(carriage.stream):
                    if not self._shift(packet):
                        continue
                    self._go_on(packet, index)
                packet.stream = carriage.copy
                self._output.mux(packet)
        except (av.ArgumentError, av.InvalidDataError) as error:
            count, first_s, why = self._failed.get(index, (0, time_s, error.strerror or "refused"))
            self._failed[index] = count + 1, first_s, why

    def _go_on(self, packet: "Packet[Stream]", index: int) -> None:
        """Where the source's time goes back, as in joined MPEG-TS files, the stream goes on from where it was."""
        if packet.dts is None:
            return
        dts = packet.dts + self._later.get(index, 0)
        self._last_long_enough(packet, index)
        end = self._ends.get(index)
        if end is not None and dts < end - JUMP_S / packet.time_base:
            self._later[index] = self._later.get(index, 0) + end - dts
            dts = end
        if self._later.get(index):
            packet.pts = None if packet.pts is None else packet.pts + dts - packet.dts
            packet.dts = dts
        self._ends[index] = max(dts + (packet.duration or 1), end or 0)

    def _last_long_enough(self, packet: "Packet[Stream]", index: int) -> None:
        """MP4 ends a stream where its last packet ends, and shows nothing of one whose length is unsaid."""
        assert packet.dts is not None
        before, self._stamps[index] = self._stamps.get(index), packet.dts
        is_sound = self._aboard[index].stream.type == "audio"
        if is_sound and not packet.duration and before is not None and self._into.muxer in ("mp4", "mov"):
            packet.duration = max(packet.dts - before, 0)

    def _is_near(self, packet: "Packet[Stream]") -> bool:
        """Whether a packet lies in the span or so near before it that decoding should begin with it."""
        if self._span is None:
            return True
        at = packet.pts if packet.pts is not None else packet.dts
        assert at is not None
        after_s = at * packet.time_base - self._zero_s
        return -_LEAD_IN_S <= after_s < self._span[1] - self._span[0]

    def _shift(self, packet: "Packet[Stream]") -> bool:
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return False
        if self._span is not None and not 0 <= at * packet.time_base - self._zero_s < self._span[1] - self._span[0]:
            return False
        ticks = round(self._zero_s / packet.time_base)
        packet.pts = packet.pts - ticks if packet.pts is not None else None
        packet.dts = packet.dts - ticks if packet.dts is not None else None
        return True

    def _look_ahead(self, packets: "Iterator[Packet[Stream]]") -> "Iterator[Packet[Stream]]":
        """The same packets; says so where the first ones are earlier than MPEG-TS can count."""
        if self._into.muxer != "mpegts" or self._span is not None:
            return packets
        first = list(islice(packets, _LOOK_AHEAD_PACKETS))
        starts = [p.dts * p.time_base for p in first if p.stream_index in self._aboard and p.dts is not None]
        start_s = min(starts, default=Fraction(0)) - self._zero_s
        if start_s < 0:
            self.notes.append(f"MPEG-TS has no time before 0; all streams start {float(-start_s * 1000):.0f} ms later.")
        return chain(first, packets)

    def _name(self, source: InputContainer) -> None:
        titles = {k: v for k, v in source.metadata.items() if k.lower() not in _BELONGS_TO_THE_FILE}
        self._output.metadata.update(titles)
        if titles and self._into.muxer == "mpegts":
            self.notes.append(f"MPEG-TS keeps no titles; {', '.join(sorted(titles))} is left out.")
        if source.chapters() and self._into.muxer in _WITHOUT_CHAPTERS:
            self.notes.append(f"Chapters cannot be kept in {self._into.title} and are left out.")
        elif source.chapters():
            self._output.set_chapters([c for chapter in source.chapters() if (c := self._cut_chapter(chapter))])

    def _cut_chapter(self, chapter: Any) -> Any:
        """The chapter in the time of the video; None where nothing of it is kept."""
        base = chapter["time_base"]
        first, last = (int(chapter[edge]) - round(self._zero_s / base) for edge in ("start", "end"))
        stop = last if self._span is None else min(last, round((self._span[1] - self._span[0]) / base))
        if self._span is not None and (stop <= 0 or first >= stop):
            return None
        return chapter | {"start": max(first, 0) if self._span else first, "end": stop}
