"""Render the pictures of docs/controls.md with the embedded model, on frames of the demo's clip.

    python -m examples.make_controls OUT_FOLDER

The photograph is one of those that ship inside scikit-image (chelsea, the cat; public domain, CC0).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT, FRAMES = 256, 192, 8
SHOWN = (0, 2, 4, 7)
INSTRUCTION = "turn it into a thermal image"


def main() -> None:
    """Read the options and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in render().items():
        sheet = np.concatenate([np.concatenate([row[i] for i in SHOWN], axis=1) for row in rows])
        Image.fromarray(sheet).save(out / f"controls-{name}.jpg", quality=88, optimize=True)
        print(out / f"controls-{name}.jpg")


def render() -> dict[str, list[NDArray[np.uint8]]]:
    """For every picture its rows, each uint8 [FRAMES, HEIGHT, WIDTH, 3]."""
    from examples import make_clip
    from fairy.runtime import Editor, EditParams

    frames = np.stack(list(make_clip.render(FRAMES, WIDTH, HEIGHT)))
    masks = [moving_mask(i / (FRAMES - 1)) for i in range(FRAMES)]
    with Editor.from_pretrained() as editor, tempfile.TemporaryDirectory() as folder:
        for i, mask in enumerate(masks):
            Image.fromarray(mask).save(Path(folder) / f"{i}.png")
        masked = EditParams(INSTRUCTION, anchors=3, mask=folder, mask_feather=6)
        story = [(0, INSTRUCTION, (0.0, 1.0))]
        ramp = EditParams(INSTRUCTION, anchors=3, num_inference_steps=4, sampler="lcm", prompts=story)
        shown = np.repeat(np.stack(masks)[..., None], 3, axis=3)
        return {
            "mask": [frames, shown, editor.edit(frames, masked).frames],
            "strength": [frames, editor.edit(frames, ramp).frames],
        }


def moving_mask(phase: float) -> NDArray[np.uint8]:
    """A disc that goes from the left to the right: white on black, uint8 [HEIGHT, WIDTH]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    away = np.hypot(rows - 0.5 * HEIGHT, columns - (0.25 + 0.5 * phase) * WIDTH)
    return np.where(away < 0.3 * HEIGHT, np.uint8(255), np.uint8(0))


if __name__ == "__main__":
    main()
