"""Where a film cuts from one shot to another, found by PySceneDetect.

Its adaptive detector compares the change between two frames with that around them, so that fast motion is no cut.
"""

from contextlib import closing
from typing import Any

import torch

from fairy.kernels.errors import InputError
from fairy.runtime.inputs.frames import Frames, Source
from fairy.runtime.plan.geometry import scale_frames
from fairy.runtime.record.progress import Monitor

_LONG_SIDE = 128
"""Pixels that are looked at: what PySceneDetect reduces a video to, about, before it looks."""
_SHORTEST = 6
"""Frames of a shot at least; what is shorter belongs to the one before."""
_RATE = 25.0
"""The detector wants a clock but counts in frames."""


def find_cuts(source: Source, monitor: Monitor) -> tuple[int, ...]:
    """The first frame of every shot but the first, counted from the first edited frame, in order.

    Raises:
        InputError: PySceneDetect is not installed.
    """
    detector, timecode = _detector()
    cuts: list[int] = []
    with monitor.timed("shots"), closing(source.read()) as frames:
        for index, frame in enumerate(frames):
            monitor.tell("shots", index + 1, source.num_frames)
            cuts += [cut.frame_num for cut in detector.process_frame(timecode(index, _RATE), _small_bgr(frame))]
        cuts += [cut.frame_num for cut in detector.post_process(timecode(source.num_frames, _RATE))]
    return tuple(sorted(cut for cut in set(cuts) if 0 < cut < source.num_frames))


def check_detector() -> None:
    """Refuse `shots="auto"` early where nothing can find them. Raises InputError."""
    _detector()


def _detector() -> tuple[Any, Any]:
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        remedy = 'pip install "fairy-runtime[shots]", or name the first frame of every shot'
        raise InputError("needs PySceneDetect", name="shots", value="auto", remedy=remedy) from error
    return AdaptiveDetector(min_scene_len=_SHORTEST), FrameTimecode


def _small_bgr(frame: Frames) -> Frames:
    """A frame RGB [H, W, 3] shrunk to what shows a cut, in the detector's order of colours."""
    height, width = frame.shape[:2]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    size = max(8, round(height * scale)), max(8, round(width * scale))
    x_1CHW = torch.tensor(frame).permute(2, 0, 1).unsqueeze(0).float()
    small = scale_frames(x_1CHW, size).round().clamp(0, 255).to(torch.uint8)
    bgr: Frames = small[0].flip(0).permute(1, 2, 0).contiguous().numpy()
    return bgr
