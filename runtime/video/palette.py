"""Pictures for GIF: each with the 256 colours that suit it best. Runs in helper processes only."""

from fractions import Fraction

from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame


class Palettes:
    """FFmpeg's palettegen and paletteuse, picture by picture."""

    def __init__(self, width: int, height: int) -> None:
        self._graph = graph = Graph()
        source = graph.add_buffer(
            width=width, height=height, format=VideoFormat("rgb24", width, height), time_base=Fraction(1, 1000)
        )
        split, made = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        used, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(used, 0, 0)
        split.link_to(made, 1, 0)
        made.link_to(used, 0, 1)
        used.link_to(sink)
        graph.configure()

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        """A picture rgb24 as pal8."""
        self._graph.vpush(frame)
        made = self._graph.vpull()
        assert isinstance(made, VideoFrame)
        return made
