"""A stage's frames in a file, to go on from later: exact, and of a format that holds nothing but numbers and text.

safetensors with one tensor `frames`, float32 [F, 3, H, W] in 0 to 1, and in its notes the stage's name and the rate.
"""

from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.files import write_atomically
from fairy.runtime.generation.cascade import ClipShape, Stage

_FORMAT = "fairy-stage-1"


def write_stage(path: Path, stage: Stage, shape: ClipShape, frames_FCHW: Tensor) -> None:
    """Write a stage's frames, whole or not at all."""
    notes = {"format": _FORMAT, "stage": stage.name, "fps": str(shape.fps)}
    write_atomically(path, save({"frames": frames_FCHW.float().contiguous()}, notes))


def read_stage(path: Path, stages: tuple[Stage, ...], shapes: tuple[ClipShape, ...]) -> tuple[int, Tensor]:
    """Which of these stages a file holds the frames of, and the frames.

    Raises:
        InputError: it cannot be read, is of no such stage, or of another shape than the clip needs.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
            frames = file.get_tensor("frames") if "frames" in file.keys() else None  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); name a file that --keep-stage wrote.") from error
    if frames is None or notes.get("format") != _FORMAT or frames.dim() != 4 or frames.dtype != torch.float32:
        raise InputError(f"{path} holds no stage's frames; name a file that --keep-stage wrote.")
    names = [stage.name for stage in stages]
    if notes.get("stage") not in names:
        raise InputError(f"{path} is of the stage {notes.get('stage')!r}, but the clip's are {', '.join(names)}.")
    index = names.index(notes["stage"])
    wanted = shapes[index]
    height, width = frames.shape[2:]
    found = ClipShape(len(frames), height, width, Fraction(notes["fps"]))
    if found != wanted or frames.shape[1] != 3:
        raise InputError(
            f"{path} holds {found}, but the clip needs {wanted} of the stage {notes['stage']}; ask for frames, fps and "
            "size that fit it."
        )
    return index, frames
