"""What a generator, an interpolator or an upscaler gives back: frames, and a report of how they came about."""

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fairy.runtime.files import check_outputs, user_path, write_atomically
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.plan.file_request import DEFAULT_CRF, check_crf
from fairy.runtime.video import Clock, VideoWriter


@dataclass(frozen=True, slots=True)
class ClipReport:
    """How a clip was made.

    Attributes:
        params: every parameter as it was really used.
        model, backend, device, precision, threads: what ran, where and how.
        engines: digests of the stored engines that ran in this process, by graph.
        workers: how many processes computed; lost_workers: those that ended before the job did, in sentences.
        resumed_frames: frames that an interrupted job had finished.
        stages: of each stage its name and what it made: frames, height, width, fps, windows.
        num_frames, width, height: of the result, in pixels; fps: frames a second, None where they have a clock.
        times_ms: wall time of the base stage, by its name, and "total": all of it.
        source: what the input was found to be; empty for clips from text.
        notes: what else the user should know, in sentences.
        frames_sha256: of the frames' bytes, in order.
        versions: of fairy and the libraries that decide the result.
    """

    params: dict[str, Any]
    model: str
    backend: str
    engines: dict[str, str]
    device: str
    precision: str
    threads: int
    workers: int
    lost_workers: tuple[str, ...]
    resumed_frames: int
    stages: tuple[dict[str, Any], ...]
    num_frames: int
    width: int
    height: int
    fps: str | None
    times_ms: dict[str, float]
    source: dict[str, Any]
    notes: tuple[str, ...]
    frames_sha256: str
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as a JSON file, whole or not at all."""
        write_atomically(user_path(path), (json.dumps(self.to_json(), indent=2, default=str) + "\n").encode())


@dataclass(frozen=True, slots=True)
class ClipResult:
    """A whole clip in memory.

    Attributes:
        frames: uint8 [T, height, width, 3], RGB.
        report: how it was made.
        fps: frames a second.
    """

    frames: Frames
    report: ClipReport
    fps: Fraction

    def save(self, path: str | Path, *, crf: int = DEFAULT_CRF) -> Path:
        """Write a video file; its ending says the container. Raises InputError or MachineError, and leaves no part."""
        target = user_path(path)
        check_outputs({"out": target}, None)
        with clip_writer(target, self.frames.shape[1:3], len(self.frames), self.fps, crf) as writer:
            for start in range(0, len(self.frames), 16):
                writer.write(np.ascontiguousarray(self.frames[start : start + 16]))
        return target


def clip_writer(path: Path, size: tuple[int, ...], frames: int, fps: Fraction, crf: int) -> VideoWriter:
    """A writer for a clip of a constant rate; refuses what cannot be written before anything is computed."""
    return VideoWriter(
        path, width=size[1], height=size[0], clock=Clock.constant(frames, fps), crf=check_crf(crf)
    )  # fmt: skip
