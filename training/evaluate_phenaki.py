"""Whether stories show what their scenes say: ``python -m training.evaluate_phenaki FOLDER --out DIR``.

Of held-out stories of an opening scene and two changes, read from the frames alone (training.composition, after flakes
of snow are taken away): the share of opening scenes whose colour, shape, motion and place are as said; of changes that
happened, by kind; of changes after which what their words do not name (colour, shape) is as it was seen before. Half of
the stories have a pair of colour and shape that no training clip shows. The same of the rendered stories says what the
reading is worth, and of these through the video tokenizer what its codes can show at best. ``--drift STORIES`` makes
one scene of 500 frames each instead: colour and shape in every hundred frames.
Writes figures.json, figures.md and sheet.png (every fourth frame of some stories).
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage.measure import label

from fairy.runtime.generation.params import StoryParams
from fairy.runtime.generation.phenaki_networks import PhenakiNetworks
from fairy.runtime.generation.storyteller import Storyteller
from training.checkpoint import save_json
from training.composition import STANDS_OUT, Seen, look, obeyed
from training.evaluate import write_sheet
from training.story_clips import OPENING, TURNING, Scene, Story, as_clip, random_story, render_story
from training.textures import Array

FIRST_SEED = 9_500_000_000_000  # beyond all that are drawn for training
SCENES = (17, 16, 16)  # frames
HUNDREDS, HUNDRED = 5, 100
FLAKE = 5  # pixels of the square whose median has no flakes
BRIGHTER, SNOW = 0.1, 0.012  # a flake than that median; share of the picture that flakes cover where it snows
SHOWN = 12  # stories on the sheet

Make = Callable[[Story, int], Array]


@dataclass(slots=True)
class Tally:
    """Shares of what was asked, by name."""

    counts: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def add(self, told: dict[str, bool]) -> None:
        """One more of each."""
        for name, right in told.items():
            self.counts[name].append(bool(right))

    def shares(self) -> dict[str, float]:
        """Of each, in 0 to 1."""
        return {name: float(np.mean(right)) for name, right in sorted(self.counts.items())}


def only_thing(frames_FHWC: Array) -> Array:
    """The frames with nothing but the largest thing that stands out from the background, so without flakes."""
    ground_H1C = np.median(frames_FHWC, axis=(0, 2), keepdims=True)[0]
    made = []
    for frame in frames_FHWC:
        parts = label(np.abs(frame - ground_H1C).max(axis=2) > STANDS_OUT)
        sizes = np.bincount(parts.ravel())[1:]
        largest = parts == 1 + sizes.argmax() if sizes.size else parts > 0
        made.append(np.where(largest[..., None], frame, ground_H1C))
    return np.stack(made)


def does_snow(frames_FHWC: Array) -> bool:
    """Whether small spots that are brighter than all around cover much of the frames."""
    pictures = (Image.fromarray(frame) for frame in (255 * frames_FHWC).round().astype(np.uint8))
    smooth = [np.asarray(picture.filter(ImageFilter.MedianFilter(FLAKE)), np.float32) / 255 for picture in pictures]
    return bool(((frames_FHWC - np.stack(smooth)).max(axis=3) > BRIGHTER).mean() > SNOW)


def tally(story: Story, frames_FHWC: Array, counts: Tally) -> None:
    """Counts what of a story is to be seen."""
    first, before = 0, None
    for scene in story.scenes:
        part = frames_FHWC[first : first + scene.frames]
        whole, settled = look(only_thing(part)), look(only_thing(part[TURNING:]))
        if scene.kind == OPENING:
            told = obeyed(as_clip(story, scene), whole)
            counts.add({f"opening: {name}": right for name, right in told.items()})
            counts.add({"opening: colour and shape": told["colour"] and told["shape"]})
        else:
            happened = _happened(scene, part, whole, settled)
            counts.add({f"change: {scene.kind}": happened, "change": happened})
        if before is not None:
            is_same = settled.shape == before.shape and (scene.kind == "colour" or settled.colour == before.colour)
            counts.add({"kept": settled.shape is not None and is_same})
        first, before = first + scene.frames, settled


def _happened(scene: Scene, part: Array, whole: Seen, settled: Seen) -> bool:
    """Whether what a scene's words say is to be seen in it."""
    if scene.kind == "colour":
        return settled.colour == scene.colour
    if scene.kind in ("snow", "clear"):
        return does_snow(part[TURNING:]) == scene.snows
    return whole.direction == scene.direction


def measure(make: Make, stories: list[Story]) -> tuple[dict[str, dict[str, float]], list[Array]]:
    """Shares of all stories, of those with pairs seen in training and of the others; and the frames."""
    every, known, unseen, made = Tally(), Tally(), Tally(), []
    for number, story in enumerate(stories):
        frames = make(story, number)
        for counts in (every, (known, unseen)[number % 2]):
            tally(story, frames, counts)
        made.append(frames)
    return {"all": every.shares(), "pairs seen": known.shares(), "pairs never seen": unseen.shares()}, made


def drift(make: Make, stories: list[Story]) -> dict[str, float]:
    """Share of stories whose colour and shape are as said in each hundred frames."""
    right = np.zeros((len(stories), HUNDREDS))
    for number, story in enumerate(stories):
        frames, scene = make(story, number), story.scenes[0]
        for part in range(HUNDREDS):
            seen = look(frames[HUNDRED * part : HUNDRED * (part + 1)])
            right[number, part] = (seen.colour, seen.shape) == (scene.colour, scene.shape)
    return {f"frames {HUNDRED * i} on": float(share) for i, share in enumerate(right.mean(axis=0))}


def teller_of(teller: Storyteller) -> Make:
    """Stories by a model, frames [F, H, W, 3] in 0 to 1."""

    def make(story: Story, seed: int) -> Array:
        scenes = [(scene.caption, scene.frames) for scene in story.scenes]
        return np.asarray(teller.generate(StoryParams(scenes, seed=seed)).frames, np.float32) / 255

    return make


def through_codes(folder: Path) -> Make:
    """Rendered stories as a model's video tokenizer brings them back."""
    networks = PhenakiNetworks(folder, torch.device("cpu"), torch.float32)

    def make(story: Story, _: int) -> Array:
        frames = torch.from_numpy(render_story(story)).permute(0, 3, 1, 2)
        made, _state = networks.decode(networks.encode(frames), None)
        return made.permute(0, 2, 3, 1).numpy()

    return make


def table(figures: dict[str, dict[str, float]]) -> str:
    """As Markdown, in percent."""
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    lines = [f"| % of stories | {' | '.join(figures)} |", "|---|" + "---|" * len(figures)]
    for name in names:
        cells = (f"{100 * row[name]:.0f}" if name in row else "" for row in figures.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_phenaki", description=__doc__)
    parser.add_argument("model", type=Path, help="a storyteller's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=60)
    parser.add_argument("--drift", type=int, metavar="STORIES", help="measure drift instead, on so many")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with Storyteller.from_pretrained(options.model, threads=options.threads) as teller:
        make = teller_of(teller)
        if options.drift:
            long = [random_story(FIRST_SEED + i, [HUNDREDS * HUNDRED]) for i in range(options.drift)]
            figures = {"drift": drift(make, long)}
            save_json(options.out / "drift.json", figures)
            print(table(figures))
            return
        stories = [random_story(FIRST_SEED + i, SCENES, unseen=i % 2 == 1) for i in range(options.stories)]
        figures, made = measure(make, stories)
    figures["through the codes"] = measure(through_codes(options.model), stories)[0]["all"]
    figures["rendered"] = measure(lambda story, _: render_story(story), stories)[0]["all"]
    save_json(options.out / "figures.json", figures)
    (options.out / "figures.md").write_text(table(figures), encoding="utf-8")
    write_sheet(options.out / "sheet.png", [list(frames[::4]) for frames in made[:SHOWN]])
    for number, story in enumerate(stories[:SHOWN]):
        print(number, " · ".join(scene.caption for scene in story.scenes))
    print(table(figures))


if __name__ == "__main__":
    main()
