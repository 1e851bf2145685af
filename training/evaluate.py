"""Measures a packaged model on pictures it never saw: ``python -m training.evaluate MODEL --out DIR``.

Writes ``figures.json``, ``figures.md`` and ``contact_sheet.png``. PSNR in dB, peak 1; edits are compared after the
autoencoder (the target has passed through it too) and, for local ones, inside the mask of what should change.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline
from skimage import transform
from skimage.io import imsave
from skimage.metrics import structural_similarity

from training import photographs
from training.checkpoint import read_json, save_json
from training.instructions import INSTRUCTIONS, Edit, edit_mask, make_edit
from training.latents import encode, to_tensor
from training.package import load_pipeline
from training.photo_files import HELD_OUT_FILES, resized, whole_photograph
from training.pictures import to_bytes
from training.random_scenes import random_scene
from training.scenes import Photo, Scene, render
from training.textures import Array

HELD_OUT_SEED = 900_000_000
STREAM = 14  # of random numbers


@dataclass(frozen=True, slots=True)
class Case:
    """One edit to be made: the source picture [H, W, 3], its exact target, where it should change, its words."""

    edit: Edit
    wrong_text: str
    source: Array
    target: Array
    mask: npt.NDArray[np.bool_]


def psnr(first: Array, second: Array, mask: npt.NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], inside the mask, in dB."""
    error = ((first - second) ** 2).mean(axis=-1)
    return float(-10 * np.log10(max(float((error if mask is None else error[mask]).mean()), 1e-10)))


@torch.no_grad()
def through_autoencoder(vae: AutoencoderKL, image: Array) -> Array:
    """Encoded and decoded again; sides that are multiples of 8."""
    decoded = vae.decode(encode(vae, to_tensor(image))).sample
    return np.asarray((decoded[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy(), np.float32)


def bicubic(image: Array, factor: int = 8) -> Array:
    """Shrunk by ``factor`` and enlarged again, bicubic and antialiased."""
    height, width = image.shape[:2]
    small = transform.resize(image, (height // factor, width // factor), order=3, anti_aliasing=True)
    return np.asarray(np.clip(transform.resize(small, (height, width), order=3), 0, 1), np.float32)


def held_out_photograph(name: str, long_side: int = 256) -> Array:
    """A photograph never trained on, cut to sides that are multiples of 32."""
    picture = photographs.photograph(name, long_side)
    height, width = (side // 32 * 32 for side in picture.shape[:2])
    return picture[:height, :width]


def autoencoder_figures(vae: AutoencoderKL, scenes: int) -> dict[str, dict[str, float]]:
    """PSNR of the autoencoder beside bicubic 8x down and up, on textured scenes and held-out photographs."""
    textured = [render(random_scene(HELD_OUT_SEED + i, photos=0)).image for i in range(scenes)]
    pictures = {"textured scenes": textured, **{n: [held_out_photograph(n)] for n in photographs.HELD_OUT}}
    return {
        name: {
            "autoencoder": float(np.mean([psnr(through_autoencoder(vae, image), image) for image in images])),
            "bicubic": float(np.mean([psnr(bicubic(image), image) for image in images])),
        }
        for name, images in pictures.items()
    }


def held_out_picture(name: str, long_side: int) -> Array:
    """A photograph that no autoencoder was trained on, cut to sides that are multiples of 32."""
    picture = resized(whole_photograph(name), long_side)
    height, width = (side // 32 * 32 for side in picture.shape[:2])
    return (picture[:height, :width] / 255).astype(np.float32)


def restoration_figures(vae: AutoencoderKL, long_side: int) -> dict[str, dict[str, float]]:
    """PSNR in dB and SSIM (windows of 7 pixels, mean over channels) of held-out photographs, and the means of both."""
    figures = {}
    for name in HELD_OUT_FILES:
        image = held_out_picture(name, long_side)
        restored = through_autoencoder(vae, image)
        ssim = structural_similarity(image, restored, channel_axis=2, data_range=1.0)
        figures[name] = {"psnr": psnr(image, restored), "ssim": float(ssim)}
    figures["mean"] = {key: float(np.mean([f[key] for f in figures.values()])) for key in ("psnr", "ssim")}
    return figures


def held_out_scene(index: int) -> Scene:
    """A scene of a held-out seed; every second one lies over a held-out photograph."""
    scene = random_scene(HELD_OUT_SEED + 1000 + index, photos=0)
    if index % 2 == 0:
        return scene
    photo = Photo(photographs.HELD_OUT[index // 2 % 2], 384, (60.0, 10.0))
    return Scene(scene.height, scene.width, photo, scene.sprites[:6], scene.camera)


def cases(name: str, count: int) -> Iterator[Case]:
    """``count`` held-out edits of the instruction ``name``."""
    for index in range(count):
        rng = np.random.default_rng((STREAM, index))
        scene, frame = held_out_scene(index), render(held_out_scene(index))
        edit = make_edit(name, scene, rng)
        other = str(rng.choice([n for n in INSTRUCTIONS if n != name]))
        target = edit.target()
        mask = edit_mask(frame, target) if edit.kind == "local" else np.ones(frame.labels.shape, bool)
        yield Case(edit, make_edit(other, scene, rng).text, frame.image, target, mask)


def run_edits(
    pipeline: StableDiffusionInstructPix2PixPipeline, texts: list[str], images: list[Array], **settings: Any
) -> list[Array]:
    """The model's edits of a few pictures of one size, all from seed 0."""
    x_BCHW = torch.cat([to_tensor(image) for image in images]) / 2 + 0.5
    generators = [torch.Generator().manual_seed(0) for _ in texts]
    result = pipeline(prompt=texts, image=x_BCHW, generator=generators, output_type="np", **settings)
    return list(result.images)


def edit_figures(
    pipeline: StableDiffusionInstructPix2PixPipeline, name: str, count: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[Array]]:
    """Mean PSNR to the target of the edit, the unedited picture and a wrong instruction's edit; and a sheet row."""
    rows = list(cases(name, count))
    sources = [case.source for case in rows]
    edited = run_edits(pipeline, [case.edit.text for case in rows], sources, **settings)
    wrong = run_edits(pipeline, [case.wrong_text for case in rows], sources, **settings)
    targets = [through_autoencoder(pipeline.vae, case.target) for case in rows]
    unedited = [through_autoencoder(pipeline.vae, case.source) for case in rows]

    def score(pictures: list[Array]) -> float:
        parts = zip(pictures, targets, rows, strict=True)
        return float(np.mean([psnr(p, t, c.mask) for p, t, c in parts if c.mask.any()]))

    figures = {
        "kind": rows[0].edit.kind,
        "edited": score(edited),
        "unedited": score(unedited),
        "wrong": score(wrong),
    }
    return figures, [part for i in range(2) for part in (rows[i].source, rows[i].target, edited[i])]


def sampler_settings(directory: Path) -> dict[str, Any]:
    """The recommended values in the names of diffusers' pipeline."""
    names = ("num_inference_steps", "guidance_scale", "image_guidance_scale")
    return {name: read_json(directory / "fairy.json")[name] for name in names}


def write_sheet(path: Path, rows: list[list[Array]]) -> None:
    """Rows of pictures of one size as one PNG, halved."""
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    half = transform.resize(sheet, (sheet.shape[0] // 2, sheet.shape[1] // 2), anti_aliasing=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, to_bytes(half), check_contrast=False)


def as_markdown(figures: dict[str, Any]) -> str:
    """The figures as two tables."""
    lines = ["| pictures | autoencoder dB | bicubic dB |", "|---|---|---|"]
    lines += [f"| {n} | {f['autoencoder']:.1f} | {f['bicubic']:.1f} |" for n, f in figures["autoencoder"].items()]
    lines += ["", "| instruction | kind | edited dB | unedited dB | wrong instruction dB |", "|---|---|---|---|---|"]
    for name, f in figures["edits"].items():
        lines.append(f"| {name} | {f['kind']} | {f['edited']:.1f} | {f['unedited']:.1f} | {f['wrong']:.1f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="a packaged model's directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=4, help="edits of each instruction")
    parser.add_argument("--instructions", nargs="*", default=list(INSTRUCTIONS), choices=list(INSTRUCTIONS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pipeline, settings = load_pipeline(options.model), sampler_settings(options.model)
    figures: dict[str, Any] = {"autoencoder": autoencoder_figures(pipeline.vae, 8), "edits": {}}
    sheet = []
    for name in options.instructions:
        figures["edits"][name], row = edit_figures(pipeline, name, options.cases, settings)
        sheet.append(row)
    save_json(options.out / "figures.json", figures)
    (options.out / "figures.md").write_text(as_markdown(figures), encoding="utf-8")
    write_sheet(options.out / "contact_sheet.png", sheet)
    print(as_markdown(figures))


if __name__ == "__main__":
    main()
