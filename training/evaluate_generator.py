"""Whether generated clips show what their captions say: ``python -m training.evaluate_generator FOLDER --out DIR``.

*Composition accuracy* is the share of captions of which `training.composition` reads the colour, the shape, the way it
moves (or all three) from the frames, and the place where the caption names one; half of the captions name pairs of
colour and shape that no training clip shows. *Chance* is what a generator would reach that drew each at random.
*Steadiness* is the mean difference between successive frames beside the thing, in levels of 255, next to the rendered
clips' own. Writes ``figures.json``, ``figures.md`` and ``sheet.png`` (every third frame of some clips).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fairy.runtime.generation.generator import Generator
from fairy.runtime.generation.params import GenerateParams
from training.captioned_clips import DIRECTIONS, FRAMES, RATES, SIDE, Clip, random_clip, render_clip
from training.checkpoint import save_json
from training.composition import look, obeyed
from training.evaluate import write_sheet
from training.shapes import SHAPES
from training.textures import NAMED_COLOURS, Array

FIRST_SEED = 9_000_000_000_000  # beyond all that are drawn for training
CHANCE = {
    "colour": 1 / len(NAMED_COLOURS),
    "shape": 1 / len(SHAPES),
    "motion": 1 / len(DIRECTIONS),
    "all three": 1 / (len(NAMED_COLOURS) * len(SHAPES) * len(DIRECTIONS)),
}
SHOWN = 12  # clips on the sheet


def clips(count: int, fps: float) -> list[Clip]:
    """Held-out clips; every second one shows a pair of colour and shape that was never trained on."""
    return [random_clip(FIRST_SEED + i, fps=fps, unseen=i % 2 == 1) for i in range(count)]


def unsteadiness(frames_FHWC: Array) -> float:
    """Mean absolute difference of successive frames, in levels, where neither shows the thing."""
    ground = np.median(frames_FHWC, axis=(0, 2), keepdims=True)
    still = (np.abs(frames_FHWC - ground).max(axis=3) < 0.1)[:-1] & (np.abs(frames_FHWC - ground).max(axis=3) < 0.1)[1:]
    steps = np.abs(np.diff(frames_FHWC, axis=0)).mean(axis=3)
    return float(255 * steps[still].mean()) if still.any() else float("nan")


def measure(generator: Generator, wanted: list[Clip], fps: float) -> tuple[list[dict[str, bool]], list[Array]]:
    """What each caption's clip obeys, and its frames in 0 to 1."""
    told, made = [], []
    for seed, clip in enumerate(wanted):
        params = GenerateParams(clip.caption, num_frames=FRAMES, fps=fps, size=SIDE, seed=seed)
        frames = generator.generate(params).frames.astype(np.float32) / 255
        told.append(obeyed(clip, look(frames)))
        made.append(frames)
    return told, made


def shares(told: list[dict[str, bool]]) -> dict[str, float]:
    """Of the captions, in 0 to 1."""
    return {
        part: float(np.mean([t[part] for t in told if part in t]))
        for part in ("colour", "shape", "motion", "all three", "place")
    }


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_generator", description=__doc__)
    parser.add_argument("model", type=Path, help="a generator's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    fps = RATES[0]
    wanted = clips(options.clips, fps)
    with Generator.from_pretrained(options.model, threads=options.threads) as generator:
        told, made = measure(generator, wanted, fps)
    rendered = [render_clip(clip, fps=fps) for clip in wanted]
    exact = [obeyed(clip, look(frames)) for clip, frames in zip(wanted, rendered, strict=True)]
    figures = {
        "all": shares(told),
        "pairs seen in training": shares(told[::2]),
        "pairs never seen": shares(told[1::2]),
        "rendered clips": shares(exact),
        "chance": CHANCE,
    }
    steady = {
        "generated": np.nanmean([*map(unsteadiness, made)]),
        "rendered": np.nanmean([*map(unsteadiness, rendered)]),
    }
    save_json(options.out / "figures.json", figures | {"unsteadiness": {k: float(v) for k, v in steady.items()}})
    parts = ("colour", "shape", "motion", "all three", "place")
    lines = [f"| captions obeyed, % | {' | '.join(parts)} |", "|---|" + "---|" * len(parts)]
    for row, values in figures.items():
        lines.append(f"| {row} | " + " | ".join(f"{100 * values[p]:.0f}" if p in values else "" for p in parts) + " |")
    lines.append(
        f"\nUnsteadiness beside the thing: {steady['generated']:.2f} levels, rendered {steady['rendered']:.2f}."
    )
    text = "\n".join(lines) + "\n"
    (options.out / "figures.md").write_text(text, encoding="utf-8")
    write_sheet(options.out / "sheet.png", [list(frames[::3]) for frames in made[:SHOWN]])
    for clip, result in list(zip(wanted, told, strict=True))[:SHOWN]:
        print(clip.caption, result)
    print(text)


if __name__ == "__main__":
    main()
