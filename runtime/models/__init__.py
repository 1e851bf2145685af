"""The models that ship with the package."""

from importlib.resources import files
from pathlib import Path


def embedded_model() -> Path:
    """Folder, in diffusers' format, of the small InstructPix2Pix model that is used where no other is named."""
    return Path(str(files("fairy.runtime.models"))) / "embedded"


def embedded_generator() -> Path:
    """Folder of the small generator, a cascade of stages, that is used where no other is named."""
    return Path(str(files("fairy.runtime.models"))) / "generator"
