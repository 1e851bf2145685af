"""The stages between frames beside plain ways: ``python -m training.evaluate_frame_stages FOLDER --out DIR``.

Frames between frames against a linear blend of the neighbours, twice as many pixels against bicubic enlargement, on
held-out scenes (over held-out photographs and textures) and on a clip of the user's (``--clip``), of which every second
frame, or half of the pixels, are taken away first. PSNR in dB, SSIM, and the warp error of `benchmarks.measures` along
the scenes' true motion.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from benchmarks.measures import psnr, warp_error
from fairy.runtime.generation.params import InterpolateParams, UpscaleParams
from fairy.runtime.generation.video_stages import Interpolator, Upscaler
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.video import probe, read_frames
from training.checkpoint import save_json
from training.evaluate import held_out_scene
from training.flow import backward_flow
from training.pictures import to_bytes
from training.scenes import Scene, render

FRAMES, STEP = 9, 1.5  # of a held-out scene, and of its clock between two
LONGEST = 24  # frames of the user's clip


@dataclass(frozen=True, slots=True)
class Truth:
    """A clip [T, H, W, 3], and the scene it shows where that is known."""

    frames: Frames
    scene: Scene | None = None


def held_out(count: int) -> list[Truth]:
    """Clips of scenes that no stage learned from."""
    made = []
    for index in range(count):
        scene = held_out_scene(index)
        made.append(Truth(np.stack([to_bytes(render(scene, STEP * t).image) for t in range(FRAMES)]), scene))
    return made


def blended(frames: Frames) -> Frames:
    """Every second frame is kept, those between are means of their neighbours."""
    made = frames.copy()
    made[1:-1:2] = ((frames[:-2:2].astype(np.float32) + frames[2::2]) / 2).round().astype(np.uint8)
    return made


def halved(frames: Frames) -> Frames:
    """Half the size, bicubic with antialiasing."""
    x_FCHW = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = F.interpolate(x_FCHW, scale_factor=0.5, mode="bicubic", antialias=True).round().clamp(0, 255)
    return np.asarray(small.permute(0, 2, 3, 1).to(torch.uint8).numpy())


def bicubic(frames: Frames, size: tuple[int, int]) -> Frames:
    """Enlarged to (height, width)."""
    x_FCHW = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    large = F.interpolate(x_FCHW, size, mode="bicubic", align_corners=False).round().clamp(0, 255)
    return np.asarray(large.permute(0, 2, 3, 1).to(torch.uint8).numpy())


def figures(made: Frames, truth: Truth, where: slice) -> dict[str, float]:
    """Of the frames that were made."""
    wanted = truth.frames[where]
    similar = [structural_similarity(a, b, channel_axis=2) for a, b in zip(made[where], wanted, strict=True)]
    told = {"psnr": psnr(made[where], wanted), "ssim": float(np.mean(similar))}
    if truth.scene is not None:
        moved = [backward_flow(truth.scene, STEP * t, STEP * (t - 1)) for t in range(1, len(made))]
        told["warp error"] = warp_error(made, [flow for flow, _ in moved], [mask for _, mask in moved])
    return told


def compare(truths: list[Truth], interpolator: Interpolator, upscaler: Upscaler) -> dict[str, dict[str, float]]:
    """Means over clips of every way."""
    rows: dict[str, list[dict[str, float]]] = {}
    for truth in truths:
        frames = truth.frames
        between, every = slice(1, -1, 2), slice(None)
        network = interpolator.run(frames[::2], InterpolateParams(times=2, shots="off")).frames
        rows.setdefault("frames between: stage", []).append(figures(network, truth, between))
        rows.setdefault("frames between: linear blend", []).append(figures(blended(frames), truth, between))
        small = halved(frames)
        large = upscaler.run(small, UpscaleParams(times=2, shots="off")).frames
        rows.setdefault("pixels: stage", []).append(figures(large, truth, every))
        plain = bicubic(small, (frames.shape[1], frames.shape[2]))
        rows.setdefault("pixels: bicubic", []).append(figures(plain, truth, every))
    return {name: {key: float(np.mean([r[key] for r in found])) for key in found[0]} for name, found in rows.items()}


def user_clip(path: Path) -> Truth:
    """An odd number of frames of a video, with even sides."""
    info = probe(path)
    count = min(info.num_frames, LONGEST)
    frames = np.stack(list(read_frames(info, 0, count - (count + 1) % 2)))
    return Truth(frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2])


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_frame_stages", description=__doc__)
    parser.add_argument("model", type=Path, help="a generator's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--clip", type=Path, help="a video file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    how = {"threads": options.threads}
    with (
        Interpolator.from_pretrained(options.model, **how) as first,
        Upscaler.from_pretrained(options.model, **how) as second,
    ):
        found = {"held-out scenes": compare(held_out(options.scenes), first, second)}
        if options.clip is not None:
            found[options.clip.stem] = compare([user_clip(options.clip)], first, second)
    save_json(options.out / "frame_stages.json", found)
    lines = ["| clips | way | PSNR | SSIM | warp error |", "|---|---|---|---|---|"]
    for clips, rows in found.items():
        for name, row in rows.items():
            warp = f"{row['warp error']:.2f}" if "warp error" in row else ""
            lines.append(f"| {clips} | {name} | {row['psnr']:.2f} | {row['ssim']:.4f} | {warp} |")
    text = "\n".join(lines) + "\n"
    (options.out / "frame_stages.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
