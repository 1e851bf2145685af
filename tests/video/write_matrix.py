"""The tables of docs/files.md that take minutes: which codec is read from which container, and what outputs keep."""

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fairy.kernels.errors import FairyError
from fairy.runtime.video import VideoWriter, probe, read_frames
from tests.video import matrix
from tests.video.conftest import RED, Clip

DOCS = Path(__file__).parents[2] / "docs" / "files.md"
INTO = ("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "3gp", "flv", "wmv", "dv", "gif", "apng", "y4m")
QUICK = {"preset": "ultrafast"}
CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264", "options": QUICK},
    "hevc": {"codec": "libx265", "options": QUICK | {"x265-params": "log-level=none"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8": {"codec": "libvpx", "options": {"cpu-used": "8", "deadline": "realtime", "b": "4000000"}},
    "mpeg4": {"codec": "mpeg4"},
    "mpeg2": {"codec": "mpeg2video"},
    "mpeg1": {"codec": "mpeg1video"},
    "h263": {"codec": "h263"},
    "flv1": {"codec": "flv"},
    "wmv1": {"codec": "wmv1"},
    "wmv2": {"codec": "wmv2"},
    "msmpeg4v2": {"codec": "msmpeg4v2"},
    "msmpeg4v3": {"codec": "msmpeg4"},
    "prores": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "dnxhd": {
        "codec": "dnxhd",
        "size": (256, 128),
        "pix_fmt": "yuv422p",
        "matrix": 1,
        "options": {"profile": "dnxhr_sq"},
    },
    "dv": {"codec": "dvvideo", "size": (720, 576)},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "ffv1": {"codec": "ffv1"},
    "huffyuv": {"codec": "huffyuv", "pix_fmt": "yuv422p"},
    "ffvhuff": {"codec": "ffvhuff"},
    "raw": {"codec": "rawvideo"},
    "v210": {"codec": "v210", "pix_fmt": "yuv422p10le"},
    "qtrle": {"codec": "qtrle", "pix_fmt": "rgb24"},
    "png": {"codec": "png", "pix_fmt": "rgb24"},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "apng": {"codec": "apng", "pix_fmt": "rgb24"},
}
FRAMES = 4


def is_read(codec: str, container: str, folder: Path) -> str:
    """`yes`; `no` where a file can be made and is not read; empty where FFmpeg makes none."""
    path = folder / f"{codec}.{container}"
    how: dict[str, Any] = {"size": (176, 144), "rate": Fraction(25), "time_base": Fraction(1, 25), **CODECS[codec]}
    if container == "y4m" and codec == "raw":
        how["codec"] = "wrapped_avframe"
    try:
        Clip(pts=tuple(range(FRAMES)), **how).write(path)
        with av.open(str(path)) as back:
            made = back.streams.video[0].codec_context is not None
    except Exception:
        return ""
    if not made:
        return ""
    try:
        info = probe(path)
        frames = list(read_frames(info))
    except FairyError:
        return "no"
    off = np.abs(frames[-1][info.height * 3 // 4 :].reshape(-1, 3).mean(0) - RED).max()
    return "yes" if info.codec == codec and len(frames) == FRAMES and off < 25 else "no"


def reading(folder: Path) -> str:
    rows = [[codec, *(is_read(codec, container, folder) for container in INTO)] for codec in CODECS]
    return table(["", *INTO], rows)


UNEVEN = (0, 40, 90, 130, 400, 440)
FEATURES: dict[str, Callable[[Any, Path], bool]] = {
    "every time stamp": lambda info, path: [int(p) * info.time_base * 1000 for p in info.pts] == list(UNEVEN),
    "colour tags": lambda info, path: (info.color.matrix, info.color.primaries, info.color_assumed) == (1, 1, False),
    "pixel shape": lambda info, path: info.sample_aspect_ratio == Fraction(4, 3),
    "title": lambda info, path: _about(path)[0].get("title") == "A title",
    "chapters": lambda info, path: _about(path)[1] == ["One", "Two"],
}


def features(folder: Path) -> str:
    how: dict[str, Any] = {
        "tags": (1, 1, 1, 1),
        "matrix": 1,
        "aspect": Fraction(4, 3),
        "metadata": {"title": "A title"},
    }
    chapters = ((0, 130, "One"), (130, 480, "Two"))
    clock: dict[str, Any] = {"time_base": Fraction(1, 1000), "rate": Fraction(25), "options": {"bf": "0"}}
    steady = Clip(pts=tuple(range(0, 240, 40)), chapters=chapters, **how, **clock).write(folder / "steady.mkv")
    uneven = Clip(pts=UNEVEN, chapters=chapters, **how, **clock).write(folder / "uneven.mkv")
    rows = []
    for name, holds in FEATURES.items():
        sources = [uneven] if name == "every time stamp" else [steady]
        rows.append([name, *(_kept(sources[0], folder / f"f.{c}", holds) for c in matrix.CONTAINERS)])
    return table(["", *matrix.CONTAINERS], rows)


def _kept(source: Path, target: Path, holds: Callable[[Any, Path], bool]) -> str:
    info = probe(source)
    try:
        with VideoWriter(target, width=info.width, height=info.height, source=info) as writer:
            for _ in range(info.num_frames):
                writer.write(np.zeros((info.height, info.width, 3), np.uint8))
    except FairyError:
        return "refused"
    return "kept" if holds(probe(target), target) else "told" if writer.notes else "lost"


def _about(path: Path) -> tuple[dict[str, str], list[str]]:
    with av.open(str(path)) as container:
        titles = [str(chapter["metadata"].get("title")) for chapter in container.chapters()]
        return {name.lower(): value for name, value in container.metadata.items()}, titles


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES = {"read": reading, "features": features}


def main() -> None:
    """Puts each table between its marks in docs/files.md."""
    text = DOCS.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in TABLES.items():
            text = replaced(text, name, make(Path(folder)))
    DOCS.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, new: str) -> str:
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    return f"{before}<!-- {name} -->\n{new}\n<!-- end -->" + rest.partition("<!-- end -->")[2]


if __name__ == "__main__":
    main()
