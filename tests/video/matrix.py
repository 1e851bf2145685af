"""A file with one stream of every kind, what each container gives back of it, and the tables of docs/files.md."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fairy.runtime.video import VideoWriter, formats, probe

SOUNDS = {
    "aac": "aac",
    "mp3": "libmp3lame",
    "mp2": "mp2",
    "ac3": "ac3",
    "eac3": "eac3",
    "opus": "libopus",
    "vorbis": "vorbis",
    "flac": "flac",
    "alac": "alac",
    "pcm_s16le": "pcm_s16le",
    "pcm_s24le": "pcm_s24le",
    "pcm_f32le": "pcm_f32le",
}
"""Codec -> FFmpeg's encoder."""
TEXTS = ("subrip", "ass", "webvtt")
CONTAINERS = ("mp4", "mov", "mkv", "webm", "avi", "ts")
FONT, COVER = b"\0\1\0\0 not really a font", "cover.png"
SECONDS = 1


def everything(path: Path) -> Path:
    """A Matroska file: pictures, all sounds, all kinds of text, a font and a cover."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
        video.width, video.height, video.time_base = 64, 48, Fraction(1, 1000)
        strict = {"strict": "experimental"}
        sounds = [output.add_stream(name, rate=48000, layout="stereo", options=strict) for name in SOUNDS.values()]
        texts = [output.add_stream(codec) for codec in TEXTS]
        for text in texts:
            text.codec_context.subtitle_header = HEADER
            text.time_base = text.codec_context.time_base = Fraction(1, 1000)
        output.add_attachment("font.ttf", "application/x-truetype-font", FONT)
        output.add_attachment(COVER, "image/png", small_png())
        output.start_encoding()
        for index in range(25 * SECONDS):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * index % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 40 * index, Fraction(1, 1000)
            for packet in video.encode(frame):
                output.mux(packet)
        for packet in video.encode():
            output.mux(packet)
        for stream in sounds:
            for packet in sing(stream):
                output.mux(packet)
        for number, text in enumerate(texts):
            for packet in lines(text, f"line of {TEXTS[number]}"):
                output.mux(packet)
    return path


HEADER = (
    b"[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n"
    b"Style: Default,Arial,16\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, "
    b"Text\n"
)


def sing(stream: Any, rate: int = 48000) -> Iterator[Any]:
    """A second of a tone, as packets."""
    context = stream.codec_context
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate * SECONDS) / rate)
    resampler = av.AudioResampler(format=context.format, layout="stereo", rate=rate)
    for at in range(0, len(wave), 1024):
        block = wave[at : at + 1024].astype(np.float32)
        sound = av.AudioFrame.from_ndarray(np.stack([block, block]), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = rate, at, Fraction(1, rate)
        for part in resampler.resample(sound):
            yield from stream.encode(part)
    yield from stream.encode(None)


def lines(stream: Any, text: str) -> Iterator[Any]:
    """Two lines of subtitles."""
    for number, start_ms in enumerate((100, 500)):
        line = av.subtitles.subtitle.SubtitleSet.create(f"{number},0,Default,,0,0,0,,{text}".encode(), 0, 300)
        packet = stream.codec_context.encode_subtitle(line)
        packet.pts = packet.dts = start_ms
        packet.duration, packet.time_base, packet.stream = 300, Fraction(1, 1000), stream
        yield packet


def small_png() -> bytes:
    """A picture of 16 × 16 pixels."""
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width = encoder.height = 16
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 200, np.uint8), format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def streams_of(path: Path) -> dict[int, tuple[str, str, list[bytes]]]:
    """Index -> (type, codec, packets), all of it in memory."""
    with av.open(str(path)) as container:
        kinds = {s.index: (_type(s), _codec(s)) for s in container.streams}
        packets: dict[int, list[bytes]] = {index: [] for index in kinds}
        for packet in container.demux():
            if packet.size:
                packets[packet.stream_index].append(bytes(packet))
    return {index: (*kind, packets[index]) for index, kind in kinds.items()}


def copy_into(source: Path, target: Path) -> VideoWriter:
    """Black pictures with everything else of the source; returns the finished writer."""
    info = probe(source)
    with VideoWriter(target, width=info.width, height=info.height, source=info) as writer:
        for _ in range(info.num_frames):
            writer.write(np.zeros((info.height, info.width, 3), np.uint8))
    return writer


def outcomes(writer: VideoWriter, source: Path) -> dict[int, str]:
    """What the notes say of each stream beside the pictures: "as it is", "as alac" or "left out"."""
    told: dict[int, str] = {}
    for index in streams_of(source):
        said = [note for note in writer.notes if f"stream {index} (" in note]
        converted = [note.split(" is written as ")[1].split()[0].strip(",") for note in said if "written as" in note]
        left = any("left out" in note for note in said)
        told[index] = "left out" if left else f"as {converted[0]}" if converted else "as it is"
    return told


def tables(source: Path, writers: dict[str, VideoWriter]) -> str:
    """The tables of docs/files.md: what is decoded, and what becomes of every stream in every container."""
    codecs = ", ".join(sorted(set(formats.VIDEO_CODECS.values())))
    rows = [f"Decoded: {codecs}, webp.", "", "| stream | " + " | ".join(f".{c}" for c in writers) + " |"]
    rows.append("|---" * (len(writers) + 1) + "|")
    told = {container: outcomes(writer, source) for container, writer in writers.items()}
    for index, (kind, codec, _) in list(streams_of(source).items())[1:]:
        name = {"attachment": "font", "cover": "cover art"}.get(kind, f"{kind}: {codec}")
        rows.append(f"| {name} | " + " | ".join(told[container][index] for container in writers) + " |")
    return "\n".join(rows) + "\n"


def _type(stream: Any) -> str:
    return "cover" if stream.disposition & av.stream.Disposition.attached_pic else str(stream.type)


def _codec(stream: Any) -> str:
    return str(stream.codec_context.codec.canonical_name) if stream.codec_context else "unknown codec"


def main() -> None:
    """Writes the tables into docs/files.md: `python -m tests.video.matrix` from the top of the checkout."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        source = everything(Path(name) / "all.mkv")
        writers = {container: copy_into(source, Path(name) / f"o.{container}") for container in CONTAINERS}
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + tables(source, writers) + END + rest.split(END)[1])


PAGE = Path(__file__).parents[2] / "docs" / "files.md"
BEGIN, END = "<!-- tables: python -m tests.video.matrix -->\n", "<!-- end of tables -->\n"

if __name__ == "__main__":
    main()
