"""A video is edited or made: editor, generator, samplers, noise, video files and the command line.

The public names are loaded when they are first used, so that a helper process that only reads video
(`python -m fairy.runtime.video.…`) does not pay for, or trust, a deep-learning library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairy.kernels.errors import (
        Cancelled,
        FairyError,
        InputError,
        MachineError,
        NumericalError,
    )
    from fairy.runtime.editor import Editor
    from fairy.runtime.generation.clip_report import ClipReport, ClipResult
    from fairy.runtime.generation.generator import Generator
    from fairy.runtime.generation.params import GenerateParams, InterpolateParams, StoryParams, UpscaleParams
    from fairy.runtime.generation.storyteller import Storyteller
    from fairy.runtime.generation.video_stages import Interpolator, Upscaler
    from fairy.runtime.models import embedded_generator, embedded_model
    from fairy.runtime.plan.params import EditParams
    from fairy.runtime.record.edit_report import EditPart, EditReport, EditResult
    from fairy.runtime.record.progress import Progress

__all__ = [
    "Cancelled",
    "ClipReport",
    "ClipResult",
    "EditParams",
    "EditPart",
    "EditReport",
    "EditResult",
    "Editor",
    "FairyError",
    "GenerateParams",
    "Generator",
    "InputError",
    "InterpolateParams",
    "Interpolator",
    "MachineError",
    "NumericalError",
    "Progress",
    "StoryParams",
    "Storyteller",
    "UpscaleParams",
    "Upscaler",
    "embedded_generator",
    "embedded_model",
]

_HOMES = {
    "Cancelled": "fairy.kernels.errors",
    "FairyError": "fairy.kernels.errors",
    "InputError": "fairy.kernels.errors",
    "MachineError": "fairy.kernels.errors",
    "NumericalError": "fairy.kernels.errors",
    "EditParams": "fairy.runtime.plan.params",
    "Progress": "fairy.runtime.record.progress",
    "EditPart": "fairy.runtime.record.edit_report",
    "EditReport": "fairy.runtime.record.edit_report",
    "EditResult": "fairy.runtime.record.edit_report",
    "Editor": "fairy.runtime.editor",
    "ClipReport": "fairy.runtime.generation.clip_report",
    "ClipResult": "fairy.runtime.generation.clip_report",
    "GenerateParams": "fairy.runtime.generation.params",
    "Generator": "fairy.runtime.generation.generator",
    "InterpolateParams": "fairy.runtime.generation.params",
    "Interpolator": "fairy.runtime.generation.video_stages",
    "StoryParams": "fairy.runtime.generation.params",
    "Storyteller": "fairy.runtime.generation.storyteller",
    "UpscaleParams": "fairy.runtime.generation.params",
    "Upscaler": "fairy.runtime.generation.video_stages",
    "embedded_generator": "fairy.runtime.models",
    "embedded_model": "fairy.runtime.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
