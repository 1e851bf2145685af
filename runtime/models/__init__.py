"""The model that ships with the package."""

from importlib.resources import files
from pathlib import Path


def embedded_model() -> Path:
    """Folder, in diffusers' format, of the small InstructPix2Pix model that is used where no other is named."""
    return Path(str(files("fairy.runtime.models"))) / "embedded"
