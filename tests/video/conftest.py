"""Clips made on the spot by PyAV; no binaries in the repository."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fairy.runtime.video import VideoInfo, VideoWriter, probe

RED = (200, 60, 40)
"""The colour of the lower half of every picture; YUV (109, 92, 186) in BT.601, (92, 105, 190) in BT.709."""


def picture(index: int, width: int, height: int) -> np.ndarray:
    """Plain red below, noise and a moving bar above: compressible, every frame another one."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = RED
    frame[: height // 4] = np.random.default_rng(index).integers(0, 255, (height // 4, width, 3))
    frame[height // 4 : height // 2, (3 * index) % width :] = 255
    return frame


@dataclass(frozen=True)
class Clip:
    """How a test clip is made; the defaults are the plainest one."""

    codec: str = "libx264"
    audio: tuple[str, ...] = ()
    pts: tuple[int, ...] = tuple(range(0, 24 * 512, 512))
    time_base: Fraction = Fraction(1, 15360)
    rate: Fraction = Fraction(30)
    size: tuple[int, int] = (96, 64)
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    """Of the encoder."""
    muxer: dict[str, str] = field(default_factory=dict)
    tags: tuple[int, int, int, int] | None = None
    """matrix, primaries, transfer, range as FFmpeg numbers them; None: none written."""
    matrix: int = 5
    """swscale's number of the matrix that is really used."""
    aspect: Fraction | None = None
    audio_start_s: Fraction = Fraction(0)
    metadata: dict[str, str] = field(default_factory=dict)
    chapters: tuple[tuple[int, int, str], ...] = ()
    """(start, end in milliseconds, title)."""

    def write(self, path: Path) -> Path:
        with av.open(str(path), "w", options=self.muxer) as output:
            output.metadata.update(self.metadata)
            output.set_chapters([self._chapter(*chapter) for chapter in self.chapters])
            video = self._add_video(output)
            sound = [output.add_stream(name, rate=48000) for name in self.audio]
            output.start_encoding()
            for packet in self._pictures(video):
                output.mux(packet)
            for number, stream in enumerate(sound):
                self._sing(output, stream, 220 * (number + 1))
        return path

    @staticmethod
    def _chapter(start: int, end: int, title: str) -> dict[str, Any]:
        time_base = Fraction(1, 1000)
        return {"id": start + 1, "start": start, "end": end, "time_base": time_base, "metadata": {"title": title}}

    def _add_video(self, output: Any) -> Any:
        stream = output.add_stream(self.codec, rate=self.rate, options=self.options)
        stream.width, stream.height, stream.pix_fmt = *self.size, self.pix_fmt
        stream.time_base = stream.codec_context.time_base = self.time_base
        if self.aspect:
            stream.codec_context.sample_aspect_ratio = self.aspect
        if self.tags:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = self.tags
        return stream

    def _pictures(self, stream: Any) -> Iterator[Any]:
        steps = [*np.diff(self.pts).tolist(), int(1 / (self.rate * self.time_base))]
        full = 2 if (self.tags and self.tags[3] == 2) or self.pix_fmt.startswith("yuvj") else 1
        for index, (pts, step) in enumerate(zip(self.pts, steps, strict=True)):
            frame = av.VideoFrame.from_ndarray(picture(index, *self.size), format="rgb24").reformat(
                format=self.pix_fmt, dst_colorspace=self.matrix, dst_color_range=full
            )
            if self.tags:
                frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = self.tags
            frame.pts, frame.time_base, frame.duration = pts, self.time_base, step
            yield from stream.encode(frame)
        yield from stream.encode()

    def _sing(self, output: Any, stream: Any, hertz: int) -> None:
        context, rate = stream.codec_context, 48000
        length_s = float((self.pts[-1] - self.pts[0]) * self.time_base) + 0.05
        shift = int(self.audio_start_s * rate)
        resampler = av.AudioResampler(format=context.format, layout="stereo", rate=rate)
        for at in range(0, int(length_s * rate), 1024):
            wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(at, at + 1024) / rate)
            sound = av.AudioFrame.from_ndarray(
                np.stack([wave, wave]).astype(np.float32), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts, sound.time_base = rate, at + shift, Fraction(1, rate)
            for part in resampler.resample(sound):
                for packet in stream.encode(part):
                    output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make("name.mp4", codec=…, …): a clip, made once per session and never to be changed."""
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def _make(name: str, **how: Any) -> Path:
        key = (name, repr(sorted(how.items(), key=lambda item: item[0])))
        if key not in made:
            made[key] = Clip(**how).write(folder / f"{len(made)}_{name}")
        return made[key]

    return _make


@pytest.fixture(scope="session")
def seconds() -> Callable[[Any], list[Fraction]]:
    """The exact time of every frame of a VideoInfo or Clock."""
    return lambda clock: [int(pts) * clock.time_base for pts in clock.pts]


@pytest.fixture(scope="session")
def copy_video() -> Callable[..., VideoWriter]:
    """Writes other pictures with everything else of `source`, a path or VideoInfo; returns the finished writer."""

    def _copy(source: Path | VideoInfo, target: Path, span: tuple[int, int] | None = None, **how: Any) -> VideoWriter:
        info = source if isinstance(source, VideoInfo) else probe(source)
        start, stop = span or (0, info.num_frames)
        size = {"width": info.width, "height": info.height}
        with VideoWriter(target, **size, source=info, source_range=span, **how) as writer:
            for index in range(start, stop):
                writer.write(picture(index, info.width, info.height))
        return writer

    return _copy


@pytest.fixture(scope="session")
def packets() -> Callable[..., list[list[tuple[Fraction, bytes]]]]:
    """(start in seconds, bytes) of every packet of every stream of a type, in the order of the streams."""

    def _packets(path: Path, kind: str = "audio") -> list[list[tuple[Fraction, bytes]]]:
        with av.open(str(path)) as container:
            found: dict[int, list[tuple[Fraction, bytes]]] = {s.index: [] for s in container.streams if s.type == kind}
            for packet in container.demux():
                if packet.stream_index in found and packet.pts is not None:
                    found[packet.stream_index].append((packet.pts * packet.time_base, bytes(packet)))
        return list(found.values())

    return _packets
