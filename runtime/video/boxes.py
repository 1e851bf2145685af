"""Whether a file is shorter than its own structure says: exact where a container's duration is vague."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PAYLOAD_BOXES = (b"mdat", b"moov", b"moof", b"ftyp")
_SEGMENT_ID = 0x18538067
_EBML_ID = 0x1A45DFA3
_MOST_BOXES, _MOST_ELEMENTS = 1 << 20, 64
_SKIP_LIMIT_BYTES = 1 << 40
"""Farther than any file reaches: a made-up length must not overflow the seek."""


def is_cut_off(path: Path) -> bool:
    """True for MP4/MOV, Matroska/WebM, AVI and WebP files that end before the structure they announce."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == struct.pack(">I", _EBML_ID):
            return _matroska_end(file) > size_bytes
        if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
            return 8 + int.from_bytes(head[4:8], "little") > size_bytes
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _mp4_end(file, size_bytes) > size_bytes
    return False


def lacks_index(path: Path) -> bool:
    """True for an MP4/MOV file with pictures or sound but nothing that says where they are: it was never finished."""
    with path.open("rb") as file:
        kinds = {kind for kind, _ in _boxes(file, path.stat().st_size)}
    return b"mdat" in kinds and bool(kinds & {b"ftyp", b"wide", b"free"}) and not kinds & {b"moov", b"moof"}


def _mp4_end(file: BinaryIO, size_bytes: int) -> int:
    """The end of the last top-level box that carries pictures, sound or the index."""
    return max((end for kind, end in _boxes(file, size_bytes) if kind in _PAYLOAD_BOXES), default=0)


def _boxes(file: BinaryIO, size_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of every top-level box; the last one may reach to the end of the file unsaid."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > size_bytes:
            break
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:  # 0: to the end of the file; 1…7: no box
            if length == 0:
                yield kind, size_bytes
            break
        at += length
        yield kind, at


def _matroska_end(file: BinaryIO) -> int:
    """The end of the first segment; 0 where its size is unknown, as in a live recording."""
    for _ in range(_MOST_ELEMENTS):
        identity, length = _vint(file, keep_marker=True), _vint(file, keep_marker=False)
        if identity is None or length is None:
            break
        if identity == _SEGMENT_ID:
            return file.tell() + length
        file.seek(min(length, _SKIP_LIMIT_BYTES), 1)
    return 0


def _vint(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """One EBML number; None for "unknown" (all ones) and at the end of the file."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big")
    mask = (1 << (7 * width)) - 1
    if keep_marker:
        return value
    return None if value & mask == mask else value & mask
