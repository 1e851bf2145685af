"""The models that ship with the package."""

from importlib.resources import files
from pathlib import Path

EMBEDDED_GENERATOR = "embedded-generator"
"""What commands that take a model's name call the generator that ships with the package."""

EMBEDDED_DIT = "embedded-dit"
"""What `--model` calls the transformer that ships beside the editor that is used where none is named."""

IMAGEN_VIDEO = "imagen-video"
"""What commands call the description of Imagen Video's cascade."""


def embedded_model() -> Path:
    """Folder, in diffusers' format, of the small InstructPix2Pix model that is used where no other is named."""
    return Path(str(files("fairy.runtime.models"))) / "embedded"


def embedded_dit() -> Path:
    """Folder, in diffusers' format, of a small transformer of FLUX.2's class that edits."""
    return Path(str(files("fairy.runtime.models"))) / "dit"


def find_editor(model: str | Path | None) -> str | Path:
    """The embedded editor's folder for None, that of "embedded-dit"; other folders, files and hub ids as they are."""
    if model is None:
        return embedded_model()
    return embedded_dit() if model == EMBEDDED_DIT else model


def embedded_generator() -> Path:
    """Folder of the small generator, a cascade of stages, that is used where no other is named."""
    return Path(str(files("fairy.runtime.models"))) / "generator"


def find_generator(model: str | Path | None) -> Path:
    """Folder of the generator of that name; None = the one that ships with the package. It need not exist."""
    if model in (None, EMBEDDED_GENERATOR):
        return embedded_generator()
    return imagen_video() if model == IMAGEN_VIDEO else Path(str(model)).expanduser()


def imagen_video() -> Path:
    """Folder that describes the seven stages of Imagen Video at the paper's shapes, without weights."""
    return Path(str(files("fairy.runtime.models"))) / "imagen_video"
