"""The instruction's features for every frame of a segment: one for all, or encoded with what a frame shows.

A model whose text is encoded together with a picture (DreamLite's) is asked, as `text_picture` says, once for a shot
with its middle anchor ("shot"), once for every anchor ("anchor": the other frames have the nearest one's), or for every
frame with itself ("frame", what the model's own pipeline does). Without anchors it is always the last.
"""

from collections.abc import Sequence

from torch import Tensor

from fairy.runtime.denoise.networks import Networks
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.inputs.masks import colours
from fairy.runtime.plan.segments import Segment
from fairy.runtime.record.run import Run


class SegmentTexts:
    """See this file's head.

    Attributes:
        shared: the features of all frames [branches, …, tokens, channels]; None where every frame has its own.
    """

    def __init__(
        self, networks: Networks, run: Run, segment: Segment, anchor_pictures: Sequence[Frames], given: Tensor | None
    ) -> None:
        """Encode what is shared; `given`: features that are known. `anchor_pictures`: of the segment's anchors."""
        self._networks, self._run, self._segment = networks, run, segment
        self._pictures = dict(zip(segment.anchors, anchor_pictures, strict=False))
        self._of_anchor: dict[int, Tensor] = {}
        self.shared = given
        if given is not None or self._of == "frame":
            return
        if self._of == "nothing":
            self.shared = networks.encode_text(run, segment.prompt)
        elif self._of == "shot":
            middle = segment.anchors[len(segment.anchors) // 2]
            self.shared = self._encode(self._pictures[middle])

    @property
    def _of(self) -> str:
        """What is encoded beside the instruction."""
        return self._run.plan.text_of(self._segment)

    def own(self, frame: int, picture: Frames) -> Tensor | None:
        """A frame's own features; None = those that all share."""
        if self.shared is not None:
            return None
        if self._of == "frame":
            return self._encode(picture)
        nearest = min(self._segment.anchors, key=lambda anchor: (abs(anchor - frame), anchor))
        if nearest not in self._of_anchor:
            self._of_anchor[nearest] = self._encode(self._pictures[nearest])
        return self._of_anchor[nearest]

    def _encode(self, picture: Frames) -> Tensor:
        return self._networks.encode_text(self._run, self._segment.prompt, colours(picture))
