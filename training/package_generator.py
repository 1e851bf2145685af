"""Writes the embedded generator: ``python -m training.package_generator --base DIR --frames DIR --to FOLDER``.

FOLDER gets what `fairy.runtime.generation` loads: cascade.json, the text encoder and its tokenizer, and a folder for
each network, in float16. A model card that is there stays.
"""

import argparse
from pathlib import Path
from typing import Any

from fairy.export.bases.video_unet import VideoUNet
from training.captioned_clips import FRAMES, RATES, SIDE
from training.checkpoint import load_average, save_json
from training.frame_stages import SCALE, build_interpolation, build_super_resolution
from training.generator import TRAIN_STEPS, TextToVideo
from training.package import load_as_float32, replaced

STEPS, GUIDANCE = 25, 4.0  # of the base stage
TIMES = 5  # frames for each of the base stage's, as in Make-A-Video
SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": TRAIN_STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}


def cascade() -> dict[str, Any]:
    """The stages: 16 frames of 64x64, 76 of them, and twice as large two times."""
    base = {
        "name": "base",
        "kind": "base",
        "network": "base",
        "frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "fps": RATES[0],
        "window": FRAMES,
        "overlap": FRAMES // 2,
        "scheduler": SCHEDULE | {"prediction_type": "sample"},
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }
    between = {"name": "interpolation", "kind": "interpolation", "network": "interpolation", "times": TIMES}
    larger = {
        "kind": "super_resolution",
        "network": "super_resolution",
        "scale": SCALE,
        "scheduler": SCHEDULE | {"prediction_type": "sample"},
    }
    over_time = larger | {"name": "super_resolution", "window": 8, "overlap": 1}
    by_frame = larger | {"name": "super_resolution_2", "window": 1, "enable_time": False}
    return {"name": "fairy-generator", "stages": [base, between, over_time, by_frame]}


def load_base(path: Path) -> TextToVideo:
    """The averaged weights of a checkpoint."""
    model = TextToVideo()
    load_average(model, path)
    return model


def load_frame_stage(folder: Path, stage: str) -> VideoUNet:
    """A stage's averaged weights; fresh ones, which enlarge bicubically or blend linearly, where it was not trained."""
    network = build_interpolation() if stage == "interpolation" else build_super_resolution()
    found = [folder / f"{name}.safetensors" for name in (f"{stage}_video", stage)]
    path = next((p for p in found if p.exists()), None)
    if path is not None:
        load_average(network, path)
    return network


def write_generator(folder: Path, base: TextToVideo, frames: Path) -> None:
    """Replaces ``folder`` by the generator; the new one is complete before it takes the old one's name."""
    with replaced(folder) as fresh:
        base.unet.half().save_pretrained(fresh / "base", safe_serialization=True)
        for stage in ("interpolation", "super_resolution"):
            load_frame_stage(frames, stage).half().save_pretrained(fresh / stage, safe_serialization=True)
        base.text_encoder.half().save_pretrained(fresh / "text_encoder", safe_serialization=True)
        load_as_float32(fresh / "text_encoder" / "config.json")
        base.tokenizer.save_pretrained(fresh / "tokenizer")
        save_json(fresh / "cascade.json", cascade())


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(prog="python -m training.package_generator", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="checkpoint of training.generator")
    parser.add_argument("--frames", type=Path, required=True, help="folder of training.frame_stages")
    parser.add_argument("--to", type=Path, required=True, help="the generator's folder")
    options = parser.parse_args(arguments)
    write_generator(options.to, load_base(options.base), options.frames)


if __name__ == "__main__":
    main()
