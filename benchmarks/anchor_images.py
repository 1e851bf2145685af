"""How close the other frames come to a look that is given: ``python -m benchmarks.anchor_images --out DIR``.

Of procedural clips the exact target of every frame is known. An edit is told the instruction alone, or also the target
of one or of three anchors (`anchor_images`), or these with an instruction that tells nothing. Written is the PSNR to
the target of all frames that are no anchor in any row; beside it that of the source, of the target through the
autoencoder, which no edit can be better than, and of the middle frame's target held still. Writes anchor_images.json
and anchor_images.md.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.clips import Clip, make_clip
from benchmarks.measures import Frames, estimate, psnr
from fairy.runtime import Editor, EditParams
from fairy.runtime.files import write_atomically

INSTRUCTIONS = ("sepia", "night", "snow")
NEUTRAL = "edit the picture"  # it tells nothing of the target
FRAMES, SIZE = 9, 256
ONE, THREE = (4,), (1, 4, 7)


def edited(editor: Editor, clip: Clip, looks: tuple[int, ...], **changes: object) -> Frames:
    """The clip edited with the targets of these frames as given looks."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {frame: Path(folder) / f"{frame}.png" for frame in looks}
        for frame, path in paths.items():
            Image.fromarray(clip.target[frame]).save(path)
        return editor.edit(clip.source, EditParams(clip.prompt, anchor_images=paths, **changes)).frames  # type: ignore[arg-type]


def through_the_autoencoder(editor: Editor, clip: Clip) -> Frames:
    """The target, encoded and decoded."""
    return editor.edit(clip.target, EditParams(clip.prompt, strength=0.0, anchors=0)).frames


ROWS: dict[str, Callable[[Editor, Clip], Frames]] = {
    "the source": lambda editor, clip: clip.source,
    "the middle frame's target, held still": lambda editor, clip: np.repeat(clip.target[4:5], FRAMES, axis=0),
    "instruction alone, 3 anchors": lambda editor, clip: edited(editor, clip, (), anchors=list(THREE)),
    "instruction and one look": lambda editor, clip: edited(editor, clip, ONE),
    "instruction and three looks": lambda editor, clip: edited(editor, clip, THREE),
    "no instruction, 3 anchors": lambda editor, clip: edited(
        editor, replace(clip, prompt=NEUTRAL), (), anchors=list(THREE)
    ),
    "no instruction, three looks": lambda editor, clip: edited(editor, replace(clip, prompt=NEUTRAL), THREE),
    "the target through the autoencoder": through_the_autoencoder,
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=2, help="procedural scenes for each instruction")
    parser.add_argument("--model", help="a folder in diffusers' format instead of the embedded model")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    started, others = time.monotonic(), [i for i in range(FRAMES) if i not in THREE]
    found: dict[str, dict[str, list[float]]] = {name: {row: [] for row in ROWS} for name in INSTRUCTIONS}
    with Editor.from_pretrained(given.model, device="cpu") as editor:
        for name in INSTRUCTIONS:
            for index in range(1, 2 * given.clips, 2):  # odd numbers show procedural scenes
                clip = make_clip(index, name, num_frames=FRAMES, size=SIZE)
                where = clip.mask[others] if clip.kind == "local" and clip.mask[others].any() else None
                for row, frames_of in ROWS.items():
                    found[name][row].append(psnr(frames_of(editor, clip)[others], clip.target[others], where))
                print(clip.name, {row: round(values[-1], 2) for row, values in found[name].items()}, flush=True)
    write_atomically(given.out / "anchor_images.json", (json.dumps(found, indent=1) + "\n").encode())
    page = markdown(found) + f"\n{given.clips} clips each, {FRAMES} frames; {time.monotonic() - started:.0f} s.\n"
    write_atomically(given.out / "anchor_images.md", page.encode())
    print(page)


def markdown(found: dict[str, dict[str, list[float]]]) -> str:
    """The table, in dB."""
    lines = [["PSNR to the target, dB", *INSTRUCTIONS, "all"], ["---", *["---:"] * (len(INSTRUCTIONS) + 1)]]
    for row in ROWS:
        values = [found[name][row] for name in INSTRUCTIONS]
        every = estimate(np.concatenate(values))
        lines.append(
            [row, *(f"{np.mean(v):.1f}" for v in values), f"{every.mean:.1f} ({every.low:.1f} to {every.high:.1f})"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
