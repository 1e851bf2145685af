"""Quality of edits, measured on clips whose motion is known exactly: ``python -m benchmarks.quality --out DIR``.

Rows: frame by frame with noise of its own and with shared noise, then 1, 3, 5 and 7 anchors; each with the UNet before
and after equivariant finetuning. Columns: PSNR to the exact target, warp error along the true flow (the figure that
decides), Tem-Con; each with a 95 % confidence interval. Writes quality.json, quality.md, quality.png (plot) and
strip.png (frames).
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clips import Clip, make_clip
from benchmarks.measures import Estimate, FrameFeatures, Frames, estimate, psnr, tem_con, warp_error
from fairy.runtime import Editor, EditParams, embedded_model
from fairy.runtime.files import write_atomically, write_picture

OTHERS = Path(__file__).resolve().parent.parent / "training" / "checkpoints"
INSTRUCTIONS = ("palette", "sepia", "texture", "night", "pattern", "snow", "place", "recolour")
COLUMNS = ("psnr_db", "warp_error", "tem_con")
TITLES = {"psnr_db": "PSNR, dB", "warp_error": "warp error, 10⁻⁴", "tem_con": "Tem-Con"}
KINDS = {"exact": ("global", "local"), "ambiguous": ("free",)}


@dataclass(frozen=True, slots=True)
class Row:
    """One way to edit: which UNet, how noise is drawn, how many anchors."""

    unet: str
    noise: str
    anchors: int

    @property
    def title(self) -> str:
        how = (
            f"{self.anchors} anchor{'s' * (self.anchors > 1)}"
            if self.anchors
            else f"frame by frame, {self.noise} noise"
        )
        return f"{how}, {self.unet}"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one row on one clip; PSNR is None where the instruction leaves the target open."""

    row: Row
    clip: str
    kind: str
    seconds: float
    psnr_db: float | None
    warp_error: float
    tem_con: float


def rows(unets: Iterable[str]) -> list[Row]:
    """Every row of the table, those of one UNet together."""
    ways = [("per-frame", 0), ("shared", 0), *[("shared", k) for k in (1, 3, 5, 7)]]
    return [Row(unet, noise, anchors) for unet in unets for noise, anchors in ways]


def main(arguments: list[str] | None = None) -> None:
    """Parse the options, measure, write."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    unets = find_unets(options.model)
    jobs = [(i, INSTRUCTIONS[i % len(INSTRUCTIONS)], options.frames, options.size) for i in range(options.clips)]
    figures, deadline = [], started + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(options.workers) as pool:
        models = {name: str(_with_parts(options.model, unet, Path(scratch) / name)) for name, unet in unets.items()}
        for job, measured in zip(jobs, pool.map(_measure_job, [(job, models, deadline) for job in jobs]), strict=True):
            figures += measured
            print(f"{job[0] + 1:3d}/{len(jobs)} clips, {time.monotonic() - started:5.0f} s", flush=True)
        write_results(options.out, figures, models, jobs[0], time.monotonic() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded_model(), help="folder in diffusers' format")
    parser.add_argument("--clips", type=int, default=16, help="clips, each with one instruction")
    parser.add_argument("--frames", type=int, default=8, help="of every clip")
    parser.add_argument("--size", type=int, default=192, help="side of the square frames, pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=28.0, help="no clip is begun after this")
    return parser


def find_unets(model: Path) -> dict[str, Path]:
    """UNets to compare, by what the rows call them: the model's own; of those in training/checkpoints that have another
    one beside them, both.

    Each is a folder whose parts (unet, text_encoder) take the place of the model's.
    """
    names = OTHERS / "comparison.json"
    folders = json.loads(names.read_text()) if names.is_file() else {}
    if model.resolve() not in (OTHERS / folder for folder in folders.values()):
        return {"as it is": model}
    return {name: OTHERS / folder for name, folder in folders.items()}


def _with_parts(model: Path, parts: Path, folder: Path) -> Path:
    """The model with parts of another, as a folder of links."""
    folder.mkdir()
    for part in model.iterdir():
        other = parts / part.name
        (folder / part.name).symlink_to((other if other.exists() else part).resolve())
    return folder


def _measure_job(job: tuple[tuple[int, str, int, int], dict[str, str], float]) -> list[Figures]:
    (index, instruction, num_frames, size), models, deadline = job
    if time.monotonic() > deadline:
        return []
    clip = make_clip(index, instruction, num_frames=num_frames, size=size)
    return [figures for name, model in models.items() for figures in measure(clip, name, Path(model))]


def measure(clip: Clip, unet: str, model: Path) -> Iterator[Figures]:
    """Every row of one UNet on one clip."""
    with Editor.from_pretrained(model, device="cpu") as editor:
        features = FrameFeatures(editor._networks.checkpoint.network("vae"))
        for row in rows([unet]):
            started = time.perf_counter()
            frames = edit(editor, clip, row)
            yield Figures(
                row=row,
                clip=clip.name,
                kind=clip.kind,
                seconds=time.perf_counter() - started,
                psnr_db=None if clip.kind == "free" else psnr(frames, clip.target, _where(clip)),
                warp_error=warp_error(frames, clip.flows, clip.visible),
                tem_con=tem_con(features(frames)),
            )


def edit(editor: Editor, clip: Clip, row: Row) -> Frames:
    """The clip edited as the row says."""
    params = EditParams(clip.prompt, anchors=row.anchors, noise=row.noise)  # type: ignore[arg-type]
    return editor.edit(clip.source, params).frames


def _where(clip: Clip) -> np.ndarray | None:
    """Local edits are judged where they should change something, global ones everywhere."""
    return clip.mask if clip.kind == "local" and clip.mask.any() else None


# -- the table ------------------------------------------------------------------------------------------------------


def summarise(figures: list[Figures]) -> list[dict[str, Any]]:
    """One entry a row, with an `Estimate` for every column and kind of instruction."""
    table = []
    for row in dict.fromkeys(f.row for f in figures):
        entry: dict[str, Any] = {"row": row}
        for kind, kinds in KINDS.items():
            mine = [f for f in figures if f.row == row and f.kind in kinds]
            for column in COLUMNS:
                values = [v for f in mine if (v := getattr(f, column)) is not None]
                entry[f"{kind} {column}"] = estimate(values)
        table.append(entry)
    return table


def write_results(out: Path, figures: list[Figures], models: dict[str, str], job: Any, seconds: float) -> None:
    """The table as text and data, the plot and the strip of frames."""
    table = summarise(figures)
    with Editor.from_pretrained(next(iter(models.values())), device="cpu") as editor:
        encoder = FrameFeatures(editor._networks.checkpoint.network("vae")).name
        clip = make_clip(*job[:2], num_frames=job[2], size=job[3])
        write_picture(out / "strip.png", strip(editor, clip))
    text = markdown(table, encoder, len({f.clip for f in figures}), seconds)
    write_atomically(out / "quality.md", text.encode())
    data = {"encoder": encoder, "seconds": seconds, "figures": [asdict(f) for f in figures]}
    write_atomically(out / "quality.json", json.dumps(data, indent=1).encode())
    plot(table, out / "quality.png")
    print(text)


def markdown(table: list[dict[str, Any]], encoder: str, clips: int, seconds: float) -> str:
    """The table as Markdown; PSNR where the target is exact, consistency for both kinds of instruction."""
    columns = ["exact psnr_db", "exact warp_error", "ambiguous warp_error", "exact tem_con", "ambiguous tem_con"]
    heads = [f"{TITLES[name.split()[1]]}, {name.split()[0]}" for name in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for entry in table:
        cells = [_cell(entry[name]) for name in columns]
        lines.append(f"| {entry['row'].title} | " + " | ".join(cells) + " |")
    note = f"{clips} clips with exactly known flow, 95 % intervals; Tem-Con with {encoder}"
    note += "" if "CLIP" in encoder else " (not comparable with the paper's, which is CLIP's)"
    return "\n".join(lines) + f"\n\n{note}; {seconds / 60:.0f} minutes.\n"


def _cell(value: Estimate) -> str:
    return "–" if value.count == 0 else f"{value.mean:.4g} ({value.low:.4g}–{value.high:.4g})"


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """Warp error of every row, for exact and for ambiguous instructions, with its interval."""
    with _plotting() as pyplot:
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.38 * len(table) + 1.4), sharey=True)
        titles = [entry["row"].title for entry in table]
        for axis, kind in zip(axes, KINDS, strict=True):
            estimates = [entry[f"{kind} warp_error"] for entry in table]
            means = [e.mean for e in estimates]
            spread = [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]
            axis.barh(titles, means, xerr=spread, color="#6a8caf", capsize=3)
            axis.set_title(f"{kind} instructions")
            axis.set_xlabel(TITLES["warp_error"] + " (less is steadier)")
        axes[0].invert_yaxis()
        figure.tight_layout()
        figure.savefig(path, dpi=110)


@contextmanager
def _plotting() -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def strip(editor: Editor, clip: Clip) -> Frames:
    """Four frames of the source and of three ways to edit them, one way a line."""
    ways = (Row("", "per-frame", 0), Row("", "shared", 0), Row("", "shared", 3))
    lines = [clip.source, *[edit(editor, clip, way) for way in ways]]
    picks = np.linspace(0, len(clip.source) - 1, 4).round().astype(int)
    return np.concatenate([np.concatenate(list(line[picks]), axis=1) for line in lines], axis=0)


if __name__ == "__main__":
    main()
