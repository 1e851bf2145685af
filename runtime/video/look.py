"""How the first frame says the video looks: colours, depth, rotation, shape of a pixel."""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fairy.runtime.video import formats
from fairy.runtime.video.animated import AnimatedWebp
from fairy.runtime.video.helper import Refusal
from fairy.runtime.video.info import BT601, BT709, ColorTags
from fairy.runtime.video.opened import OpenedVideo, is_rgb

_UNSAID = 2
_NAMES = {1: "BT.709", 6: "BT.601"}


@dataclass(frozen=True, slots=True)
class Look:
    width: int
    height: int
    pix_fmt: str
    bit_depth: int
    rotation: int
    flipped: bool
    color: ColorTags
    color_assumed: bool
    sample_aspect_ratio: str
    has_alpha: bool
    notes: list[str] = field(default_factory=list)

    def to_wire(self) -> dict[str, object]:
        return asdict(self)


def look_at(frame: VideoFrame, source: OpenedVideo | AnimatedWebp) -> Look:
    """All that reading needs to know; raises Refusal for HDR and matrices that cannot be converted."""
    notes: list[str] = []
    color, assumed = _color(frame, source, notes)
    rotation, flipped = _turn(frame, notes)
    depth = max(component.bits for component in frame.format.components)
    if depth > 8:
        notes.append(f"The source has {depth} bits per sample; the frames are read and written with 8.")
    if frame.interlaced_frame and not (isinstance(source, OpenedVideo) and source.reading.deinterlace):
        notes.append(
            "The source is interlaced; its fields are edited together as whole frames, and --deinterlace would make "
            "pictures of them first."
        )
    has_alpha = source.has_alpha or any(component.is_alpha for component in frame.format.components)
    if has_alpha:
        notes.append("The source has transparency: it is edited over black.")
    aside = rotation in (90, 270)
    left, right, top, bottom = source.crop
    width, height = frame.width - left - right, frame.height - top - bottom
    width, height = (height, width) if aside else (width, height)
    aspect = Fraction(1) if source.stream is None else _aspect(source.stream, inverted=aside)
    kind = frame.format.name
    return Look(width, height, kind, depth, rotation, flipped, color, assumed, str(aspect), has_alpha, notes)


def _color(frame: VideoFrame, source: OpenedVideo | AnimatedWebp, notes: list[str]) -> tuple[ColorTags, bool]:
    if not isinstance(source, OpenedVideo):
        return BT601 if frame.height < 720 else BT709, False
    context = source.stream.codec_context
    transfer = _said(frame.color_trc, context.color_trc)
    if transfer in formats.HDR_TRANSFERS:
        name = formats.HDR_TRANSFERS[transfer]
        if not source.reading.tonemap:
            raise Refusal(
                f"{source.path} is high dynamic range, {name}, which is not edited; let it be brought to standard "
                "dynamic range (BT.709) by --hdr tonemap."
            )
        notes.append(f"The source is high dynamic range, {name}; its tones were mapped to BT.709.")
        return BT709, False
    primaries = _said(frame.color_primaries, context.color_primaries)
    matrix = _said(frame.colorspace, context.colorspace)
    full = (int(frame.color_range) or context.color_range) == 2 or frame.format.name.startswith("yuvj")
    usual = BT709 if frame.height >= 720 else BT601
    if is_rgb(frame):
        return ColorTags(usual.matrix, _or(primaries, usual.primaries), _or(transfer, usual.transfer)), False
    assumed = matrix == _UNSAID
    if assumed:
        matrix = usual.matrix
        notes.append(f"The source does not say its colour matrix; {_NAMES[matrix]} was taken, as is usual at its size.")
    if matrix not in formats.MATRICES:
        raise Refusal(
            f"{source.path} uses colour matrix {matrix} of H.273, which cannot be converted; re-encode it as BT.709."
        )
    return ColorTags(matrix, _or(primaries, _partner(matrix)), _or(transfer, _partner(matrix)), full), assumed


def _said(*values: int) -> int:
    """The first value that is neither reserved nor unspecified."""
    return next((int(value) for value in values if int(value) not in (0, _UNSAID, 3)), _UNSAID)


def _or(value: int, fallback: int) -> int:
    return fallback if value == _UNSAID else value


def _partner(matrix: int) -> int:
    """The primaries and transfer function of the standard that a matrix belongs to."""
    return {1: 1, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9}[matrix]


def _turn(frame: VideoFrame, notes: list[str]) -> tuple[int, bool]:
    """Rotation in degrees (counter-clockwise, a multiple of 90) and whether it is mirrored left-right before.

    The display matrix sends (x, y) to (a·x + c·y, b·x + d·y), with y pointing down.
    """
    raw = cast("bytes | None", frame.side_data.get("DISPLAYMATRIX"))
    if raw is None:
        return 0, False
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(raw), dtype=np.int32)[:5])
    flipped = a * d - b * c < 0
    if flipped:
        a, b = -a, -b
    if not (b == c == 0 or a == d == 0):
        notes.append(f"The source asks to be turned by {frame.rotation} degrees, not a right angle; it is not turned.")
        return 0, False
    if b == c == 0:
        return (0 if a > 0 else 180), flipped
    return (90 if c > 0 else 270), flipped


def _aspect(stream: VideoStream, *, inverted: bool) -> Fraction:
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if not ratio or ratio <= 0:
        return Fraction(1)
    return 1 / ratio if inverted else Fraction(ratio)
