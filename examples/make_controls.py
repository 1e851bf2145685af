"""Render the pictures of docs/controls.md with the embedded model, on frames of the demo's clip.

    python -m training.small_controls --out WEIGHTS
    python -m examples.make_controls OUT_FOLDER --weights WEIGHTS

The photograph is one of those that ship inside scikit-image (chelsea, the cat; public domain, CC0), and so are the
pictures that are styles. Without `--weights` the pictures of controls that need some are left out.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairy.runtime import Editor, EditParams

WIDTH, HEIGHT, FRAMES = 256, 192, 8
SHOWN = (0, 2, 4, 7)
INSTRUCTION = "turn it into a thermal image"
Frames = NDArray[np.uint8]


def main() -> None:
    """Read the options and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help="folder that training.small_controls wrote")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in render(options.weights):
        sheet = np.concatenate([np.concatenate([row[i] for i in SHOWN], axis=1) for row in rows])
        Image.fromarray(sheet).save(options.out / f"controls-{name}.jpg", quality=85, optimize=True)
        print(options.out / f"controls-{name}.jpg", flush=True)


def render(weights: Path | None) -> Iterator[tuple[str, list[Frames]]]:
    """Every picture's name and rows, each uint8 [FRAMES, HEIGHT, WIDTH, 3]."""
    from examples import make_clip

    frames = np.stack(list(make_clip.render(FRAMES, WIDTH, HEIGHT)))
    with tempfile.TemporaryDirectory() as folder:
        with Editor.from_pretrained() as editor:
            yield "mask", masked(editor, frames, Path(folder))
            yield "strength", weaker(editor, frames)
            yield "anchor-image", with_a_look(editor, frames, Path(folder))
            night, mosaic = (
                editor.edit(frames, EditParams(f"make it {look}")).frames for look in ("night", "a mosaic")
            )
        if weights is not None:
            with Editor.from_pretrained(controlnet=[weights / "controlnet"]) as editor:
                params = EditParams("make it night", control=("canny",), controlnet_conditioning_scale=0.6)
                yield "controlnet", [edges_of(frames), night, editor.edit(frames, params).frames]
            with Editor.from_pretrained(ip_adapter=weights / "ip_adapter") as editor:
                yield "style", styled(editor, frames, Path(folder))
            with Editor.from_pretrained(lora=[weights / "lora.safetensors"]) as editor:
                yield "lora", [frames, mosaic, editor.edit(frames, EditParams("make it a mosaic")).frames]


def masked(editor: Editor, frames: Frames, folder: Path) -> list[Frames]:
    """Source, mask and edit."""
    masks = [moving_mask(i / (FRAMES - 1)) for i in range(FRAMES)]
    (folder / "masks").mkdir()
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    params = EditParams(INSTRUCTION, anchors=3, mask=folder / "masks", mask_feather=6)
    return [frames, np.repeat(np.stack(masks)[..., None], 3, axis=3), editor.edit(frames, params).frames]


def weaker(editor: Editor, frames: Frames) -> list[Frames]:
    """Source, and an edit that comes in gradually."""
    story = [(0, INSTRUCTION, (0.0, 1.0))]
    params = EditParams(INSTRUCTION, anchors=3, num_inference_steps=4, sampler="lcm", prompts=story)
    return [frames, editor.edit(frames, params).frames]


def with_a_look(editor: Editor, frames: Frames, folder: Path) -> list[Frames]:
    """Edit by the instruction alone; the look that is given of one frame; the edit with it."""
    params, number = EditParams("make it sepia", anchors=(1, 6)), SHOWN[2]
    alone = editor.edit(frames, params).frames
    look = np.array(alone[number])
    look[20:60, 20:60] = (235, 200, 60)  # what somebody painted into it
    Image.fromarray(look).save(folder / "look.png")
    shown = np.zeros_like(frames)
    shown[number] = look
    return [alone, shown, editor.edit(frames, replace(params, anchor_images={number: folder / "look.png"})).frames]


def edges_of(frames: Frames) -> Frames:
    """What `--control canny` sees."""
    import torch

    from fairy.runtime.inputs.conditions import edges

    levels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    found = [edges(picture)[0].permute(1, 2, 0).numpy().astype(np.uint8) for picture in levels.split(1)]
    return np.stack(found)


def styled(editor: Editor, frames: Frames, folder: Path) -> list[Frames]:
    """Pictures, and one frame with each of them as its style, in the places that are shown."""
    from skimage import data

    pictures, edited = np.zeros_like(frames), np.zeros_like(frames)
    for number, name in zip(SHOWN, ("coffee", "rocket", "astronaut", "immunohistochemistry"), strict=True):
        picture = Image.fromarray(getattr(data, name)())
        picture.save(folder / f"{name}.png")
        pictures[number] = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        params = EditParams("a painting", style=folder / f"{name}.png")
        edited[number] = editor.edit(frames[SHOWN[1] :][:1], params).frames[0]
    return [pictures, edited]


def moving_mask(phase: float) -> Frames:
    """A disc that goes from the left to the right: white on black, uint8 [HEIGHT, WIDTH]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    away = np.hypot(rows - 0.5 * HEIGHT, columns - (0.25 + 0.5 * phase) * WIDTH)
    return np.where(away < 0.3 * HEIGHT, np.uint8(255), np.uint8(0))


if __name__ == "__main__":
    main()
