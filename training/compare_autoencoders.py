"""Autoencoders side by side on held-out photographs: ``python -m training.compare_autoencoders FILE --out DIR``.

FILE holds weights of the autoencoder with 16 channels, a checkpoint or exported; beside it stands the former
embedded model's. Writes ``autoencoders.md`` and ``autoencoders.png``: the source, what that restores, what the new
one does.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from skimage.io import imsave
from torch.utils.flop_counter import FlopCounterMode

from training.autoencoder16 import build_autoencoder16, load_weights
from training.details import DETAILS
from training.evaluate import held_out_picture, restoration_figures, through_autoencoder
from training.photo_files import HELD_OUT_FILES
from training.pictures import to_bytes
from training.textures import Array

EMBEDDED4 = Path(__file__).parent / "checkpoints/embedded4"  # the former embedded model, of 4 channels
HELD_OUT_SEED = 900_000_000
LONG_SIDES = (256, 512)
RUNS = 9


def decoder_cost(vaes: dict[str, AutoencoderKL], side: int = 256) -> dict[str, tuple[float, float, float]]:
    """GFLOP, median seconds and least seconds of decoding a square picture; the models take turns."""
    latents = {name: torch.zeros(1, vae.config.latent_channels, side // 8, side // 8) for name, vae in vaes.items()}
    flops: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in vaes}
    with torch.no_grad():
        for name, vae in vaes.items():
            with FlopCounterMode(display=False) as counter:
                vae.decode(latents[name])
            flops[name] = counter.get_total_flops() / 1e9
        for _ in range(RUNS):
            for name, vae in vaes.items():
                started = time.process_time()
                vae.decode(latents[name])
                seconds[name].append(time.process_time() - started)
    return {name: (flops[name], statistics.median(seconds[name]), min(seconds[name])) for name in vaes}


def as_markdown(vaes: dict[str, AutoencoderKL]) -> str:
    """Two tables: pictures and cost."""
    lines = ["| photograph | long side |" + "".join(f" {name} dB | {name} SSIM |" for name in vaes)]
    lines.append("|---|---|" + "---|---|" * len(vaes))
    for side in LONG_SIDES:
        figures = {name: restoration_figures(vae, side) for name, vae in vaes.items()}
        for photo in (*HELD_OUT_FILES, "mean"):
            cells = [f" {f[photo]['psnr']:.2f} | {f[photo]['ssim']:.3f} |" for f in figures.values()]
            lines.append(f"| {photo} | {side} |" + "".join(cells))
    lines += ["", "| decoder, 256x256, one thread | GFLOP | median s of CPU | least s of CPU |", "|---|---|---|---|"]
    for name, (flop, median, least) in decoder_cost(vaes).items():
        lines.append(f"| {name} | {flop:.2f} | {median:.3f} | {least:.3f} |")
    return "\n".join(lines) + "\n"


def sheet(vaes: dict[str, AutoencoderKL], side: int = 256) -> Array:
    """A row for each held-out photograph and each kind of drawn detail: the source, then what each model restores."""
    pictures = [held_out_picture(name, side) for name in HELD_OUT_FILES]
    pictures += [(draw(np.random.default_rng(HELD_OUT_SEED), side) / 255).astype(np.float32) for draw in DETAILS]
    rows = []
    for picture in pictures:
        row = np.concatenate([picture, *(through_autoencoder(vae, picture) for vae in vaes.values())], axis=1)
        rows.append(np.pad(row, ((0, 4), (0, (1 + len(vaes)) * side - row.shape[1]), (0, 0))))
    return np.concatenate(rows)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m training.compare_autoencoders", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    new = build_autoencoder16().eval()
    load_weights(new, options.weights)
    vaes = {"4 channels": AutoencoderKL.from_pretrained(EMBEDDED4 / "vae", torch_dtype=torch.float32), "new": new}
    options.out.mkdir(parents=True, exist_ok=True)
    text = as_markdown(vaes)
    (options.out / "autoencoders.md").write_text(text, encoding="utf-8")
    imsave(options.out / "autoencoders.png", to_bytes(sheet(vaes)), check_contrast=False)
    print(text)


if __name__ == "__main__":
    main()
