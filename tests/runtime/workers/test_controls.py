"""Two workers, and an edit that goes on after an interruption, give the same file: with masks, strengths, given looks.

The model is in one file and has a LoRA and two controls, which workers have to find too.
"""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fairy.export.checkpoint import load_checkpoint
from fairy.kernels.errors import Cancelled
from fairy.runtime import Editor, EditParams, Progress
from tests.conftest import make_adapter, make_controlnet
from tests.export.test_single_file import tensors_of
from tests.runtime.conftest import make_frames, write_clip

pytestmark = pytest.mark.slow
USUAL = {"num_inference_steps": 2, "anchors": 2, "micro_batch": 2, "shots": (6,), "controlnet_conditioning_scale": 0}


@pytest.fixture(scope="module")
def model(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What an editor is made with."""
    folder = tmp_path_factory.mktemp("model")
    save_file(tensors_of(load_checkpoint(checkpoint_folder)), folder / "model.safetensors")
    place, rng = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    shapes = {f"{place}.lora_A.weight": (4, 32), f"{place}.lora_B.weight": (32, 4)}
    save_file({key: torch.randn(shape, generator=rng) for key, shape in shapes.items()}, folder / "lora.safetensors")
    lora = f"{folder / 'lora.safetensors'}:0.5"
    make_controlnet().save_pretrained(folder / "net")
    make_adapter().save_pretrained(folder / "adapter")
    controls = [str(folder / "net"), (folder / "adapter", 0.5)]
    files = {"model": folder / "model.safetensors", "config": checkpoint_folder, "lora": lora, "controlnet": controls}
    return {**files, "device": "cpu"}


@pytest.fixture(scope="module")
def alone(model: dict) -> Iterator[Editor]:
    with Editor.from_pretrained(**model) as made:
        yield made


@pytest.fixture(scope="module")
def crew(model: dict) -> Iterator[Editor]:
    with Editor.from_pretrained(**model, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, a mask that moves over it, and a picture."""
    made = tmp_path_factory.mktemp("controls")
    write_clip(made / "clip.mp4", make_frames(10))
    masks = np.zeros((10, 48, 64, 3), np.uint8)
    for i in range(10):
        masks[i, 8:24, 3 * i : 3 * i + 24] = 255
    write_clip(made / "mask.mp4", masks, sound=False)
    Image.fromarray(make_frames(1, seed=4)[0]).save(made / "look.png")
    return made


CONTROLS = {
    "mask": {"mask": "mask.mp4", "size": "source"},
    "ramp and look": {"prompts": [(0, "make it snow", (0.5, 1))], "anchor_images": {2: "look.png"}},
    "controls": {"control": ("mask.mp4", "canny"), "controlnet_conditioning_scale": None},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_same_file(alone: Editor, crew: Editor, folder: Path, tmp_path: Path, name: str) -> None:
    controls = CONTROLS[name]
    params = EditParams("make it red", **{**USUAL, **controls, **_paths(controls, folder)})
    whole = alone.edit_file(folder / "clip.mp4", tmp_path / "whole.mp4", params)
    shared = crew.edit_file(folder / "clip.mp4", tmp_path / "shared.mp4", params)
    for i, again in enumerate((alone, crew)):
        out = tmp_path / f"again{i}.mp4"
        interrupt(alone, folder / "clip.mp4", out, params)
        resumed = again.edit_file(folder / "clip.mp4", out, params, resume=True)
        assert resumed.resumed_batches == 1
        assert resumed.frames_sha256 == whole.frames_sha256 == shared.frames_sha256
        assert len({path.read_bytes() for path in tmp_path.glob("*.mp4")}) == 1


def interrupt(editor: Editor, clip: Path, out: Path, params: EditParams) -> None:
    """Edit until a micro-batch is done."""
    cancel = Event()

    def stop(progress: Progress) -> None:
        if progress.stage == "frames" and progress.done > 2:
            cancel.set()

    with pytest.raises(Cancelled):
        editor.edit_file(clip, out, params, on_progress=stop, cancel=cancel)


def _paths(controls: dict, folder: Path) -> dict:
    looks = {frame: folder / name for frame, name in controls.get("anchor_images", {}).items()}
    mask = folder / controls["mask"] if "mask" in controls else None
    seen = [name if name == "canny" else folder / name for name in controls.get("control", ())]
    return {"anchor_images": looks, "mask": mask, "control": seen}


def test_a_lora_changes_the_edit(alone: Editor, editor: Editor) -> None:
    params = EditParams("make it red", **{**USUAL, "shots": "off", "num_inference_steps": 1})
    assert not np.array_equal(alone.edit(make_frames(3), params).frames, editor.edit(make_frames(3), params).frames)
    assert "lora.safetensors:0.5" in alone._networks.checkpoint.name
