"""Editing methods on the same model and clips: ``python -m benchmarks.methods --out DIR``.

Rows: every frame by itself, Pix2Video with one context or the other, with both, with both and the guided update (the
ablation of arXiv 2303.12688), and Fairy; all from the same noise. Columns: Pixel-MSE along the clip's true flow (or
RAFT's), warp error (the same where the surface is visible), CLIP-Image between successive frames, CLIP-Text to the
instruction, PSNR to the exact target. CLIP's figures need its weights on this machine; without them CLIP-Image uses the
embedded autoencoder's features, is called so, and CLIP-Text is left out. Clips differ far more than methods do, so the
last column compares each clip with itself. Writes methods.json and methods.md.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.clips import Clip, make_clip
from benchmarks.measures import Flow, FrameFeatures, Frames, estimate, psnr, tem_con, warp, warp_error
from benchmarks.quality import INSTRUCTIONS
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams, embedded_model
from fairy.runtime.files import write_atomically
from fairy.runtime.methods import PER_FRAME, PIX2VIDEO, Method, find_method

CLIP = "openai/clip-vit-base-patch32"
COLUMNS = {
    "pixel_mse": "Pixel-MSE",
    "warp_error": "warp error, 10⁻⁴",
    "clip_image": "CLIP-Image",
    "clip_text": "CLIP-Text",
    "psnr_db": "PSNR, dB",
    "seconds": "seconds",
}


def _first(frame: int, anchors: tuple[int, ...]) -> tuple[int, ...]:
    return (0,) if frame else ()


def _previous(frame: int, anchors: tuple[int, ...]) -> tuple[int, ...]:
    return (frame - 1,) if frame else ()


BOTH = replace(PIX2VIDEO, name="both", after_step=None)
ROWS: dict[str, Method] = {
    "per frame": PER_FRAME,
    "pix2video, first frame only": replace(BOTH, name="first", sources=_first),
    "pix2video, previous frame only": replace(BOTH, name="previous", sources=_previous),
    "pix2video, both": BOTH,
    "pix2video, both and guided update": PIX2VIDEO,
    "fairy, 3 anchors": find_method("fairy"),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """One row on one clip; None where a figure does not apply or cannot be had."""

    row: str
    clip: str
    kind: str
    seconds: float
    pixel_mse: float
    warp_error: float
    clip_image: float
    clip_text: float | None
    psnr_db: float | None


def pixel_mse(frames: Frames, flows: tuple[Flow, ...]) -> float:
    """Mean squared difference, in levels of 0…255, between every frame and its predecessor moved along the flow.

    Everywhere, occluded or not, as Pix2Video's paper says it. `flows[t]` belongs to frame t + 1.
    """
    moved = [warp(before, flow) for before, flow in zip(frames, flows, strict=False)]
    return float(np.mean([(after - seen) ** 2 for after, seen in zip(frames[1:].astype(float), moved, strict=True)]))


class TextFeatures:
    """CLIP's cosine of frames and an instruction, where its weights are on this machine; nothing is downloaded."""

    def __init__(self, name: str = CLIP) -> None:
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._model: Any = CLIPModel.from_pretrained(name, local_files_only=True).eval()
            self._processor: Any = CLIPProcessor.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError):
            self._model = None

    @torch.inference_mode()
    def __call__(self, frames: Frames, text: str) -> float | None:
        """Mean over frames; None without weights."""
        if self._model is None:
            return None
        inputs = self._processor(text=[text], images=list(frames), return_tensors="pt", padding=True)
        found = self._model(**inputs)
        return float((F.normalize(found.image_embeds, dim=-1) @ F.normalize(found.text_embeds, dim=-1).T).mean())


def raft_flows(source: Frames) -> tuple[Flow, ...]:
    """Flow of every frame back to its predecessor by RAFT (arXiv 2003.12039), with torchvision's weights.

    Raises:
        InputError: torchvision or the weights are not on this machine, or frames are smaller than 128 pixels.
    """
    try:
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
    except ImportError as error:
        remedy = "install it, or choose the true flow"
        raise InputError("needs torchvision", name="flow", value="raft", remedy=remedy) from error
    weights = Raft_Large_Weights.C_T_SKHT_V2
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file():
        problem, remedy = f"needs {weights.url} as {file}", "fetch it, or choose the true flow"
        raise InputError(problem, name="flow", value="raft", remedy=remedy)
    if min(source.shape[1:3]) < 128 or any(side % 8 for side in source.shape[1:3]):
        raise InputError(f"RAFT wants sides of at least 128 pixels, multiples of 8, not {list(source.shape[1:3])}.")
    network, prepare = raft_large(weights=weights).eval(), weights.transforms()
    pictures = torch.from_numpy(source.copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        pairs = [prepare(after[None], before[None]) for before, after in pairwise(pictures)]
        return tuple(network(*pair)[-1][0].permute(1, 2, 0).numpy() for pair in pairs)


def measure(editor: Editor, clip: Clip, steps: int | None, flow: str) -> Iterator[Figures]:
    """Every row on one clip."""
    features, texts = FrameFeatures(editor._networks.checkpoint.network("vae")), TextFeatures()
    flows = raft_flows(clip.source) if flow == "raft" else clip.flows
    for row, method in ROWS.items():
        started = time.perf_counter()
        frames = editor.edit(clip.source, EditParams(clip.prompt, method=method, num_inference_steps=steps)).frames
        yield Figures(
            row=row,
            clip=clip.name,
            kind=clip.kind,
            seconds=time.perf_counter() - started,
            pixel_mse=pixel_mse(frames, flows),
            warp_error=warp_error(frames, flows, clip.visible),
            clip_image=tem_con(features(frames)),
            clip_text=texts(frames, clip.prompt),
            psnr_db=None if clip.kind == "free" else psnr(frames, clip.target),
        )


def markdown(figures: list[Figures], encoder: str, note: str) -> str:
    """The table: means with 95 % intervals over clips."""
    heads = [*COLUMNS.values(), "Pixel-MSE ÷ per frame's"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    alone = {f.clip: f.pixel_mse for f in figures if f.row == "per frame"}
    for row in dict.fromkeys(f.row for f in figures):
        cells = []
        for column in COLUMNS:
            values = [v for f in figures if f.row == row and (v := getattr(f, column)) is not None]
            cells.append(str(estimate(values)) if values else "–")
        cells.append(str(estimate([f.pixel_mse / alone[f.clip] for f in figures if f.row == row])))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    names = f"CLIP-Image is the cosine of successive frames' features by {encoder}"
    names += "" if any(f.clip_text is not None for f in figures) else "; CLIP-Text needs CLIP's weights"
    return "\n".join(lines) + f"\n\n{note}; means with 95 % intervals. {names}.\n"


def main(arguments: list[str] | None = None) -> None:
    """Parse the options, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded_model(), help="folder in diffusers' format")
    parser.add_argument("--clips", type=int, default=8, help="clips, each with one instruction")
    parser.add_argument("--frames", type=int, default=8, help="of every clip")
    parser.add_argument("--size", type=int, default=192, help="side of the square frames, pixels")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps [the model's]")
    parser.add_argument("--flow", choices=("true", "raft"), default="true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    figures: list[Figures] = []
    with Editor.from_pretrained(options.model, device="cpu") as editor:
        encoder = FrameFeatures(editor._networks.checkpoint.network("vae")).name
        for i in range(options.clips):
            name = INSTRUCTIONS[i % len(INSTRUCTIONS)]
            clip = make_clip(i, name, num_frames=options.frames, size=options.size)
            figures += measure(editor, clip, options.steps, options.flow)
            print(f"{i + 1}/{options.clips} clips", flush=True)
    size = f"{options.frames} frames of {options.size}×{options.size}"
    text = markdown(figures, encoder, f"{options.clips} clips, {size}, {options.flow} flow")
    write_atomically(options.out / "methods.md", text.encode())
    data = {"encoder": encoder, "flow": options.flow, "figures": [asdict(f) for f in figures]}
    write_atomically(options.out / "methods.json", json.dumps(data, indent=1).encode())
    print(text)


if __name__ == "__main__":
    main()
