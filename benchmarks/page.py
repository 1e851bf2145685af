"""One self-contained HTML page of a clip benchmark: key figures, pictures, plots, the table and the records.

Everything is in the file, nothing is loaded from elsewhere, and no script runs; colours follow the reader's light or
dark preference.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fairy.benchmarks.clip import QUALITY_HEADS, STAGES, Run, columns, heading
from fairy.benchmarks.measures import Frames
from fairy.benchmarks.records import Record
from fairy.runtime.files import write_atomically

NO_PLOTS = "The page has no plots: they need matplotlib; pip install 'fairy-runtime[bench]' brings it."
_INK = "#010203"  # what matplotlib draws text and axes with; the page puts the reader's own colour in its place
_COLOURS = ("#8c8c8c", "#b07aa1", "#4e9a8f", "#e08b3e", "#4c86c6", "#c65b6d")  # of the stages
_PICTURES = 4

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #657084; --line: #dfe3ea; --card: #f5f7fa; --page: #fff;
        --strong: #2c6fbb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #98a3b5; --line: #323a47; --card: #1e242d; --page: #14181e; --strong: #7db4f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.05rem; margin: 2.75rem 0 0.75rem; }
p { margin: 0.4rem 0; } .soft, figcaption, th { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: 0.75rem;
         margin-top: 1.75rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 0.8rem 1rem; }
.card b { display: block; font-size: 1.5rem; font-weight: 650; color: var(--strong); }
.card span { font-size: 0.85rem; color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 500; }
tr { border-bottom: 1px solid var(--line); }
figure { margin: 0 0 0.9rem; } figcaption { font-size: 0.85rem; margin-bottom: 0.25rem; }
figure img { display: block; width: 100%; border-radius: 6px; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
details { margin-top: 1rem; } summary { cursor: pointer; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; overflow-x: auto;
      font-size: 0.8rem; }
"""


def write_page(run: Run, path: Path) -> str | None:
    """Write the page; gives a sentence where it has no plots because matplotlib is missing."""
    try:
        plots = [_stages_plot(run), _runs_plot(run)]
    except ImportError:
        plots = []
    write_atomically(path, page(run, plots).encode())
    return None if plots else NO_PLOTS


def page(run: Run, plots: Sequence[str] = ()) -> str:
    """The page as text; `plots` are SVG elements."""
    drawn = "".join(f"<figure>{plot}</figure>" for plot in plots) or f"<p class=soft>{escape(NO_PLOTS)}</p>"
    records = json.dumps([record.to_json() for record in run.records], indent=1, ensure_ascii=False)
    title = f"fairy bench: {run.ways[0].name}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>fairy bench</h1>
<p class="soft">{escape(heading(run))} · {datetime.now(UTC):%d %B %Y, %H:%M} UTC</p>
<div class="cards">{"".join(_cards(run.records[0]))}</div>
<h2>What was made</h2>
<p class="soft">“{escape(run.ways[0].params.prompt)}”</p>
{"".join(_pictures(run))}
<h2>Where the time goes</h2>
{drawn}
<h2>All figures</h2>
<div class="wide">{_table(run)}</div>
<p class="soft">{escape(_explanation(run))}</p>
<details><summary>The records, as in record.json</summary><pre>{escape(records)}</pre></details>
</main>
</body>
</html>
"""


def _cards(record: Record) -> Iterable[str]:
    """The key figures of the edit as it was asked for."""
    shown = columns([record])
    heads = ["frames/s", "ms a forward", "peak MiB", "J/frame", *QUALITY_HEADS.values()]
    names = {"ms a forward": "ms a sample-forward", "peak MiB": "MiB at peak", "J/frame": "J a frame"}
    for head in heads:
        value = shown[head](record) if head in shown else "–"
        if value != "–":
            yield f"<div class=card><b>{escape(value)}</b><span>{escape(names.get(head, head))}</span></div>"


def _pictures(run: Run) -> Iterable[str]:
    """Strips of a few frames: the source, every way, the target where it is known."""
    strips = {"source": run.source, **{way.name: way.frames for way in run.ways}}
    if run.target is not None:
        strips["the exact target"] = run.target
    picks = np.linspace(0, len(run.source) - 1, min(_PICTURES, len(run.source))).round().astype(int)
    for name, frames in strips.items():
        data = base64.b64encode(_png(np.concatenate(list(frames[picks]), axis=1))).decode()
        alt = f"{name}: frames {', '.join(map(str, picks))}"
        yield (
            f"<figure><figcaption>{escape(name)}</figcaption>"
            f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}"></figure>'
        )


def _table(run: Run) -> str:
    """A line for every figure, a column for every way."""
    heads = "".join(f"<th>{escape(way.name)}</th>" for way in run.ways)
    rows = "".join(
        f"<tr><td>{escape(head)}</td>{''.join(f'<td>{escape(show(record))}</td>' for record in run.records)}</tr>"
        for head, show in columns(run.records).items()
    )
    return f"<table><tr><th></th>{heads}</tr>{rows}</table>"


def _explanation(run: Run) -> str:
    """What the columns mean, in a few sentences."""
    parts = [
        "Times are medians; stages are wall time of one edit of the whole clip. A sample-forward is the UNet on one "
        "picture in one guidance branch.",
        "Peak memory is that of all tensors on the GPU, or of the whole process on a CPU.",
    ]
    if run.target is not None:
        parts.append("PSNR is that to the exact target.")
    if any("warp_error" in record.quality for record in run.records):
        parts.append("Warp error is the mean squared change along the exact motion: less is steadier.")
    parts.append("PSNR to eager compares with the eager reference in float32; 100 dB means equal frames.")
    return " ".join(parts)


# -- plots ----------------------------------------------------------------------------------------------------------


def _stages_plot(run: Run) -> str:
    """Milliseconds a frame by stage, a bar for every way."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_rc()):
        figure = Figure(figsize=(9.6, 0.55 * len(run.ways) + 1.35), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(run.ways))
        for stage, colour in zip(STAGES, _COLOURS, strict=True):
            values = [record.figures["stages_ms"][stage] / len(run.source) for record in run.records]
            if not any(values):
                continue
            axes.barh([way.name for way in run.ways], values, left=left, label=stage, color=colour, height=0.58)
            left += values
        axes.invert_yaxis()
        axes.set_xlabel("ms a frame, by stage")
        axes.legend(ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        return _svg(figure, "stages")


def _runs_plot(run: Run) -> str:
    """Every measured edit in the order it was made: whether the machine was steady."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_rc()):
        figure = Figure(figsize=(9.6, 2.6), layout="constrained")
        axes = figure.subplots()
        for way, colour in zip(run.ways, reversed(_COLOURS[:-1]), strict=False):
            seconds = [edit.ms / 1e3 for edit in way.edits]
            axes.plot(range(1, len(seconds) + 1), seconds, "o-", color=colour, label=way.name, linewidth=1.2)
            axes.axhline(median(seconds), color=colour, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 1.1 * max(edit.ms for way in run.ways for edit in way.edits) / 1e3)
        axes.set_xticks(range(1, len(run.ways[0].edits) + 1))
        axes.set_xlabel("round")
        axes.set_ylabel("s a clip")
        axes.legend(ncols=len(run.ways), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        return _svg(figure, "runs")


def _rc() -> Any:
    """Text stays text; colours of ink are replaced by the page's."""
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        "svg.fonttype": "none",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(inks, _INK),
    }


def _svg(figure: Any, name: str) -> str:
    """The figure as an SVG element without prolog, metadata and fixed size, in the page's own ink and font.

    Its identifiers begin with `name`: a page holds several figures.
    """
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    return svg.replace(_INK, "currentColor")


def _png(picture: Frames) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
