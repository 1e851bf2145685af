"""Render the pictures of the looks that the page of `fairy serve` offers, with the embedded model.

    python examples/make_looks.py OUT_FOLDER

Writes a JPEG a look and looks.json. The photograph is one of those that ship inside scikit-image (chelsea, the cat;
public domain, CC0), which the model was not trained on. Of its looks, those that are plain to see are offered.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 256, 192
LOOKS = {
    "Pencil sketch": "make it a pencil sketch",
    "Poster": "make it a comic",
    "Sepia": "make it sepia",
    "Snow": "make it snow",
    "Sunset": "make it sunset",
    "Underwater": "put it underwater",
    "Thermal image": "make it a thermal image",
    "Negative": "make it a negative",
    "Black and white": "make it black and white",
    "Night": "make it night",
    "Fog": "make it foggy",
    "Watercolour": "make it a watercolour painting",
}


def main() -> None:
    """Read the options and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    looks = [{"name": name, "prompt": prompt, "picture": _file_name(name)} for name, prompt in LOOKS.items()]
    for look, picture in zip(looks, render(list(LOOKS.values())), strict=True):
        Image.fromarray(picture).save(out / look["picture"], quality=88, optimize=True)
    (out / "looks.json").write_text(json.dumps(looks, indent=1) + "\n")
    print(out)


def render(prompts: list[str]) -> list[NDArray[np.uint8]]:
    """The photograph edited by each instruction: uint8 [HEIGHT, WIDTH, 3]."""
    from fairy.runtime import Editor, EditParams

    frames = np.stack([photograph()])
    with Editor.from_pretrained() as editor:
        return [np.asarray(editor.edit(frames, EditParams(prompt, anchors=1)).frames)[0] for prompt in prompts]


def photograph() -> NDArray[np.uint8]:
    """The cat's face: uint8 [HEIGHT, WIDTH, 3]."""
    from skimage.data import chelsea

    whole = Image.fromarray(chelsea())
    height = whole.height
    width = height * WIDTH // HEIGHT
    left = (whole.width - width) // 2
    return np.asarray(whole.crop((left, 0, left + width, height)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def _file_name(name: str) -> str:
    return f"{name.lower().replace(' ', '-')}.jpg"


if __name__ == "__main__":
    main()
