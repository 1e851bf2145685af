"""Options that several commands have in common, each with its one help text, and what reads their values."""

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from fairy.kernels.errors import InputError

Model = Annotated[str | None, typer.Option(help="A folder in diffusers' format or a hub id [the embedded model].")]
Anchors = Annotated[str | None, typer.Option(help="Number of anchors, or which frames: 0,40,80 [the model's, else 3].")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps [the model's, else 10; 50 if it sees depth].")]
GuidanceScale = Annotated[float | None, typer.Option(help="Pull of the text [the model's, else 7.5].")]
ImageGuidanceScale = Annotated[float | None, typer.Option(help="Pull of the picture [the model's, else 1.5].")]
Sampler = Annotated[str | None, typer.Option(help="euler_ancestral, euler, ddim or lcm.")]
LongSide = Annotated[int | None, typer.Option(help="Pixels of the long side [the model's, else 512].")]
Crf = Annotated[int, typer.Option(help="Quality of written videos: 0 (best) to 51.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
BackendName = Annotated[
    str, typer.Option("--backend", help="auto, eager, cuda-graphs, onnxruntime, tensorrt or compiled.")
]
Store = Annotated[Path | None, typer.Option(help="The store of engines [$FAIRY_STORE, else the cache].")]
Threads = Annotated[int, typer.Option(help="CPU threads of the computation.")]
Decoder = Annotated[
    str | None, typer.Option(help="Approximate: tiny (the model's own), or a folder or hub id of an AutoencoderTiny.")
]
Variant = Annotated[
    str | None,
    typer.Option(help="Which of the model's weights, e.g. fp16 [those without one, else what is there]."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, and nothing that other libraries say.")]

_SILENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "PYTHONWARNINGS": "ignore",
}


def silence_libraries() -> None:
    """Keep the libraries' own bars and warnings off stderr, in this process and in those it starts."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


def parse_anchors(text: str | None) -> int | tuple[int, ...] | None:
    """How many anchors, or which frames. Raises InputError for anything else."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers:
        raise InputError(f"--anchors {text!r} is neither a number of anchors (3) nor a list of frames (0,40,80).")
    return numbers if "," in text else numbers[0]


def parse_shots(text: str) -> str | tuple[int, ...]:
    """Whether cuts are looked for, or the frames where shots begin. Raises InputError for anything else."""
    if text in ("off", "auto"):
        return text
    try:
        frames = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        frames = ()
    if not frames or min(frames) < 0:
        raise InputError(f"--shots {text!r} is not known; give off, auto, or the first frames of shots: 120,310.")
    return frames
