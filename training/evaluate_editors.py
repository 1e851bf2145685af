"""Editors side by side on scenes and photographs none of them saw.

``python -m training.evaluate_editors MODEL --out DIR [--beside OTHER/figures.json]`` writes ``figures.json``,
``figures.md`` and ``sheet.png`` (source, exact target, edit).

PSNR is to the exact target, in dB, peak 1, once in the whole picture and once where the target differs from the source.
An edit is *obeyed* where that region's mean squared error to the target is at most half of that to the source (3 dB);
where nothing should change, if at most 5 % of the picture does. *Strayed* is the share of pixels more than a latent
(8 pixels) outside that region that differ by more than 8 of 255 levels in some channel from the source as the model's
own autoencoder restores it (with ``--keep-details`` from the source); *strayed from source* the same from the source
itself, which holds the autoencoder's error.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from training import evaluate
from training.changes import plural
from training.checkpoint import read_json, save_json
from training.edits import ALL_LOOKS, EDITS, NamedEdit, look_edit, name_things
from training.evaluate import held_out_picture, psnr, run_edits, sampler_settings, through_autoencoder, write_sheet
from training.looks import LOOKS
from training.named_scenes import named_scene
from training.package import load_pipeline
from training.photo_files import HELD_OUT_FILES
from training.pictures import to_bytes
from training.scenes import Scene, Still, render
from training.textures import Array

HELD_OUT_SEED = 910_000_000
STREAM = 44  # of random numbers
SIDE = 256
LEVELS, MARGIN, SETTLED = 8 / 255, 2.0, 0.05
GROWN = 8  # pixels around what should change that may change with it
WEATHER = ("snow", "fog", "night")
OLD_COUNTS = {**dict.fromkeys(LOOKS, 2), "recolour": 8, "reshape": 8, "background": 4, "black": 4}
COUNTS = {"recolour": 12, "reshape": 12, "remove": 8, "add": 8, "background": 6, "part": 8, "absent": 12, "keep": 2}
LOOK_COUNT = 2  # of each look
BATCH = 4
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class EditCase:
    """One edit: the row of the table it counts in, its words, its source and exact target [H, W, 3]."""

    row: str
    text: str
    source: Array
    target: Array

    @property
    def region(self) -> Mask:
        """Where the target differs from the source, [H, W]."""
        return np.asarray(np.abs(self.target - self.source).max(axis=2) > 0.02)


def old_cases() -> Iterator[EditCase]:
    """The former embedded model's instructions and scenes: things of 10-22 % of the side, six shapes, its wordings."""
    for name, count in OLD_COUNTS.items():
        row = "old looks" if name in LOOKS else f"old {name}"
        for case in evaluate.cases(name, count):
            yield EditCase(row, case.edit.text, case.source, case.target)


def new_cases() -> Iterator[EditCase]:
    """The wider task: more words, shapes, sizes, surroundings, looks; every second over a held-out photograph."""
    for look in ALL_LOOKS:
        row = "weather" if look in WEATHER else "looks" if look in LOOKS else "new looks"
        for index in range(LOOK_COUNT):
            rng = np.random.default_rng((STREAM, ALL_LOOKS.index(look), index))
            scene = photograph_scene(rng) if index % 2 == 0 else things_scene(1000 + 10 * ALL_LOOKS.index(look))
            yield _case(row, scene, look_edit(scene, rng, look))
    for kind, count in COUNTS.items():
        yield from _drawn_cases(kind, count)
    yield from hard_pairs(12)


def _drawn_cases(kind: str, count: int) -> Iterator[EditCase]:
    found = index = 0
    while found < count:
        index += 1
        rng = np.random.default_rng((STREAM, 100 + list(COUNTS).index(kind), index))
        scene = things_scene(100_000 * list(COUNTS).index(kind) + index, over_photograph=found % 2 == 0)
        edit = EDITS[kind](scene, render(scene), rng)
        if edit is not None:
            found += 1
            yield _case("absent, keep" if edit.kind in ("absent", "keep") else kind, scene, edit)


def hard_pairs(count: int) -> Iterator[EditCase]:
    """One of several things of a shape is recoloured, named by its colour."""
    found = index = 0
    while found < count:
        index += 1
        rng = np.random.default_rng((STREAM, 200, index))
        scene = things_scene(2_000_000 + index, over_photograph=found % 2 == 0)
        frame = render(scene)
        named = name_things(scene, frame, np.random.default_rng((STREAM, 200, index)))
        if named is None or not any(_is_by_colour(named.phrase, scene.sprites[i].shape) for i in named.indices):
            continue
        shape = scene.sprites[named.indices[0]].shape
        edit = EDITS["recolour"](scene, frame, rng)
        if edit is not None and sum(s.shape == shape for s in scene.sprites) > len(named.indices):
            found += 1
            yield _case("recolour one of a kind", scene, edit)


def _is_by_colour(phrase: str, shape: str) -> bool:
    words = phrase.removeprefix("the ").removeprefix("all ").removeprefix("the ").split()
    return len(words) == 2 and words[1] in (shape, plural(shape))


def _case(row: str, scene: Scene, edit: NamedEdit | None) -> EditCase:
    assert edit is not None
    return EditCase(row, edit.text, render(scene).image, edit.target())


def things_scene(number: int, *, over_photograph: bool = False) -> Scene:
    """The first scene with things from that held-out seed on, over a held-out photograph if asked for."""
    seed = HELD_OUT_SEED + 7919 * number
    while not (scene := named_scene(seed)).sprites:
        seed += 1
    if not over_photograph:
        return scene
    background = photograph_scene(np.random.default_rng((STREAM, number))).background
    return Scene(scene.height, scene.width, background, scene.sprites)


def photograph_scene(rng: np.random.Generator) -> Scene:
    """A square part of a held-out photograph."""
    picture = held_out_picture(str(rng.choice(list(HELD_OUT_FILES))), int(rng.choice((416, 512))))
    top, left = (int(rng.integers(n - SIDE + 1)) for n in picture.shape[:2])
    return Scene(SIDE, SIDE, Still(to_bytes(picture[top : top + SIDE, left : left + SIDE])), ())


def judge(case: EditCase, edited: Array, restored: Array) -> dict[str, float]:
    """The case's figures; those that do not apply are missing. ``restored``: the source through the autoencoder."""
    region = case.region
    outside = ~grown(region)
    figures = {"psnr": psnr(edited, case.target)}
    if outside.mean() > 0.02:
        figures["strayed"] = _changed(edited, restored, outside)
        figures["strayed_from_source"] = _changed(edited, case.source, outside)
    if region.any():
        figures["psnr_region"] = psnr(edited, case.target, region)
        to_target, to_source = (
            float(((edited - other)[region] ** 2).mean()) for other in (case.target, case.source)
        )  # fmt: skip
        figures["obeyed"] = float(to_target * MARGIN <= to_source)
    else:
        figures["obeyed"] = float(figures["strayed"] <= SETTLED)
    return figures


def grown(region: Mask, by: int = GROWN) -> Mask:
    """The region and what lies within a square of so many pixels around it."""
    planes = torch.from_numpy(region)[None, None].float()
    return np.asarray(F.max_pool2d(planes, 2 * by + 1, stride=1, padding=by)[0, 0].numpy() > 0)


def _changed(first: Array, second: Array, where: Mask) -> float:
    return float((np.abs(first - second).max(axis=2)[where] > LEVELS).mean())


RunEdits = Callable[[list[str], list[Array]], list[Array]]
"""Instructions and pictures of one size to edits, all from the same noise."""


def load_model(directory: Path, guidance: float | None) -> tuple[RunEdits, Any]:
    """What runs a model's edits, and its autoencoder: diffusers' pipeline, or the runtime for other families."""
    if read_json(directory / "model_index.json")["_class_name"] == "StableDiffusionInstructPix2PixPipeline":
        pipeline, settings = load_pipeline(directory), sampler_settings(directory)
        settings["guidance_scale"] = guidance or settings["guidance_scale"]
        return partial(run_edits, pipeline, **settings), pipeline.vae
    from fairy.runtime import Editor, EditParams

    editor = Editor.from_pretrained(directory, device="cpu")

    def run(texts: list[str], images: list[Array]) -> list[Array]:
        pairs = zip(texts, images, strict=True)
        edited = [editor.edit(to_bytes(image)[None], EditParams(text, anchors=0)).frames[0] for text, image in pairs]
        return [np.asarray(frame, np.float32) / 255 for frame in edited]

    return run, editor._networks.checkpoint.network("vae")


def measure(
    run: RunEdits, vae: Any, cases: list[EditCase], *, keep_details: bool = False
) -> tuple[list[dict[str, float]], list[Array]]:
    """Every case's figures and edits; ``keep_details``: as the runtime's option of that name leaves them."""
    edits: list[Array] = []
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        edits += run([c.text for c in part], [c.source for c in part])
    restored = [through_autoencoder(vae, case.source) for case in cases]
    if keep_details:
        triples = zip(cases, edits, restored, strict=True)
        edits = [with_details(case.source, edited, source) for case, edited, source in triples]
        restored = [case.source for case in cases]
    return [judge(*triple) for triple in zip(cases, edits, restored, strict=True)], edits


def with_details(source: Array, edited: Array, restored: Array) -> Array:
    """What the runtime's ``keep_details`` makes of an edit, in its 256 levels."""
    from fairy.runtime.denoise.details import kept_details

    levels = [torch.from_numpy(x).permute(2, 0, 1)[None] * 255 for x in (source, edited, restored)]
    mended = (levels[0] + kept_details(*levels)[0]).clamp(0, 255).round() / 255
    return np.asarray(mended[0].permute(1, 2, 0).numpy(), np.float32)


def by_row(cases: list[EditCase], judged: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over the cases of each row, and how many they are."""
    rows: dict[str, dict[str, float]] = {}
    for row in dict.fromkeys(case.row for case in cases):
        parts = [figures for case, figures in zip(cases, judged, strict=True) if case.row == row]
        keys = dict.fromkeys(key for figures in parts for key in figures)
        rows[row] = {key: float(np.mean([f[key] for f in parts if key in f])) for key in keys} | {"cases": len(parts)}
    return rows


def sheet_rows(cases: list[EditCase], edits: list[Array], across: int = 4) -> list[list[Array]]:
    """Source, target and edit of every second case, ``across`` such triples in a row."""
    shown = list(zip(cases, edits, strict=True))[::2]
    shown += shown[-1:] * (-len(shown) % across)
    rows = [shown[start : start + across] for start in range(0, len(shown), across)]
    return [[part for case, edit in row for part in (case.source, case.target, edit)] for row in rows]


def as_markdown(models: dict[str, dict[str, dict[str, float]]]) -> str:
    """One table; each figure for every model in turn."""
    columns = {
        "psnr": ("dB", 1.0, ".1f"),
        "psnr_region": ("dB in the region", 1.0, ".1f"),
        "obeyed": ("obeyed %", 100.0, ".0f"),
        "strayed": ("strayed %", 100.0, ".1f"),
        "strayed_from_source": ("strayed from source %", 100.0, ".1f"),
    }
    heads = [f"{title}, {name}" for title, _, _ in columns.values() for name in models]
    lines = ["| row | cases | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    first = next(iter(models.values()))
    for row in first:
        cells = [
            format(scale * rows[row][key], form) if key in rows.get(row, {}) else ""
            for key, (_, scale, form) in columns.items()
            for rows in models.values()
        ]
        lines.append(f"| {row} | {first[row]['cases']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_editors", description=__doc__)
    parser.add_argument("model", type=Path, help="a packaged model's directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--beside", type=Path, help="figures.json of another model, for the table")
    parser.add_argument("--name", default="new", help="of the model, in the table")
    parser.add_argument("--guidance", type=float, help="of the text, instead of the model's recommended value")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-details", action="store_true", help="as the runtime does with that option")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run, vae = load_model(options.model, options.guidance)
    cases = [*old_cases(), *new_cases()]
    judged, edits = measure(run, vae, cases, keep_details=options.keep_details)
    rows = by_row(cases, judged)
    save_json(options.out / "figures.json", {"name": options.name, "rows": rows})
    beside = read_json(options.beside) if options.beside else None
    text = as_markdown(({beside["name"]: beside["rows"]} if beside else {}) | {options.name: rows})
    (options.out / "figures.md").write_text(text, encoding="utf-8")
    listed = [f"{case.row}: {case.text} {figures}" for case, figures in zip(cases, judged, strict=True)]
    (options.out / "cases.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    write_sheet(options.out / "sheet.png", sheet_rows(cases, edits))
    print(text)


if __name__ == "__main__":
    main()
