"""Video files in and out: hostile bytes are decoded in helper processes, time stamps and sound survive.

The public names are loaded when they are first used, so that the helper processes start quickly and with little.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairy.runtime.video.images import ImageFolderInfo, probe_images, read_images
    from fairy.runtime.video.info import MAX_PIXELS, Clock, ColorTags, Reading, VideoInfo
    from fairy.runtime.video.reader import probe, read_frames
    from fairy.runtime.video.writer import VideoWriter

__all__ = [
    "MAX_PIXELS",
    "Clock",
    "ColorTags",
    "ImageFolderInfo",
    "Reading",
    "VideoInfo",
    "VideoWriter",
    "probe",
    "probe_images",
    "read_frames",
    "read_images",
]

_HOMES = {
    "MAX_PIXELS": "info",
    "Clock": "info",
    "ColorTags": "info",
    "ImageFolderInfo": "images",
    "Reading": "info",
    "VideoInfo": "info",
    "VideoWriter": "writer",
    "probe": "reader",
    "probe_images": "images",
    "read_frames": "reader",
    "read_images": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
