"""Filters of FFmpeg between decoding and conversion: whole pictures out of fields, BT.709 out of high dynamic range."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph
from av.video.frame import VideoFrame

from fairy.runtime.video.helper import Refusal
from fairy.runtime.video.info import Reading

_TONEMAP = (
    "scale",
    "out_transfer=bt709:out_primaries=bt709:out_color_matrix=bt709:out_range=tv:intent=perceptual:flags=bitexact",
)
"""swscale's perceptual intent: tones along a curve from the mastering peak (10 000 cd/m² where none is told) to white,
gamut with them. Nothing of the grey scale is cut off; it is darker than BT.2390's: docs/files.md has both."""


def filtered(frames: Iterator[tuple[VideoFrame, int]], reading: Reading) -> Iterator[tuple[VideoFrame, int]]:
    """The same number of frames with the same time stamps."""
    if not (reading.deinterlace or reading.tonemap):
        yield from frames
        return
    graph: Graph | None = None
    waiting: list[int] = []
    for frame, at in frames:
        graph = graph or _graph(frame, reading)
        waiting.append(at)
        frame.pts = len(waiting)
        graph.push(frame)
        yield from _ready(graph, waiting)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph, waiting)


def _ready(graph: Graph, waiting: list[int]) -> Iterator[tuple[VideoFrame, int]]:
    while waiting:
        try:
            frame: Any = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield frame, waiting.pop(0)


def _graph(frame: VideoFrame, reading: Reading) -> Graph:
    which = "interlaced" if frame.interlaced_frame else "all"
    steps = [("bwdif", f"mode=send_frame:deint={which}")] if reading.deinterlace else []
    steps += [_TONEMAP] if reading.tonemap else []
    graph = Graph()
    try:
        last: Any = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        for name, how in [*steps, ("buffersink", None)]:
            step = graph.add(name, how)
            last.link_to(step)
            last = step
        graph.configure()
    except (av.FFmpegError, ValueError) as error:
        raise Refusal(f"The video's {frame.format.name} frames cannot be filtered ({error}).") from None
    return graph
