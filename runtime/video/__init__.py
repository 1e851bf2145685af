"""Video files in and out: hostile bytes are decoded in helper processes, time stamps and sound survive."""

from fairy.runtime.video.images import ImageFolderInfo, probe_images, read_images
from fairy.runtime.video.info import MAX_PIXELS, Clock, ColorTags, VideoInfo
from fairy.runtime.video.reader import probe, read_frames
from fairy.runtime.video.writer import VideoWriter

__all__ = [
    "MAX_PIXELS",
    "Clock",
    "ColorTags",
    "ImageFolderInfo",
    "VideoInfo",
    "VideoWriter",
    "probe",
    "probe_images",
    "read_frames",
    "read_images",
]
