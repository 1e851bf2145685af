"""Where a transformer reads its anchors, and what of them: ``python -m benchmarks.anchor_choices --out DIR``.

Clips with exactly known flow, edited without anchors and in the four ways of `anchor_positions` and `anchor_tokens`.
Steady is a small warp error; PSNR to the exact target says what it costs.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairy.benchmarks.clips import make_clip
from fairy.benchmarks.measures import Estimate, estimate, psnr, warp_error
from fairy.runtime import Editor, EditParams
from fairy.runtime.files import write_atomically

WAYS: dict[str, dict[str, Any]] = {
    "each frame alone": {"anchors": 0},
    **{
        f"{positions} positions, {tokens}": {"anchor_positions": positions, "anchor_tokens": tokens}
        for positions in ("shared", "own")
        for tokens in ("target", "both")
    },
}
INSTRUCTIONS = ("sepia", "night", "snow", "recolour")


def main(arguments: list[str] | None = None) -> None:
    """Parse the options, measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchor_choices", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="embedded-dit", help="a folder, or a hub id")
    parser.add_argument("--clips", type=int, default=8, help="each with one instruction")
    parser.add_argument("--frames", type=int, default=6, help="of every clip")
    parser.add_argument("--size", type=int, default=128, help="side of the square frames, pixels")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with Editor.from_pretrained(options.model, device="cpu") as editor:
        found = list(measure(editor, options.clips, options.frames, options.size))
    write_atomically(options.out / "anchor_choices.json", (json.dumps(found, indent=1) + "\n").encode())
    text = table(found)
    write_atomically(options.out / "anchor_choices.md", text.encode())
    print(text)


def measure(editor: Editor, clips: int, frames: int, size: int) -> Iterator[dict[str, Any]]:
    """Every way on every clip."""
    for index in range(clips):
        clip = make_clip(index, INSTRUCTIONS[index % len(INSTRUCTIONS)], num_frames=frames, size=size)
        for way, how in WAYS.items():
            edited = editor.edit(clip.source, EditParams(clip.prompt, **how)).frames
            figures = {"warp_error": warp_error(edited, clip.flows, clip.visible), "psnr_db": psnr(edited, clip.target)}
            yield {"clip": clip.name, "way": way, **figures}


def table(found: list[dict[str, Any]]) -> str:
    """Means and 95 % intervals over the clips."""
    lines = ["| anchors | warp error | dB to the target |", "|---|---|---|"]
    for way in WAYS:
        mine = [row for row in found if row["way"] == way]
        cells = [_cell(estimate([row[name] for row in mine])) for name in ("warp_error", "psnr_db")]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Estimate) -> str:
    low, mean, high = (asdict(value)[name] for name in ("low", "mean", "high"))
    return f"{mean:.4g} ({low:.4g}–{high:.4g})"


if __name__ == "__main__":
    main()
