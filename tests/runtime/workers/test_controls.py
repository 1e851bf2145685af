"""Masks, strengths and given looks: two workers, and an edit that goes on after an interruption, give the same file."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image

from fairy.kernels.errors import Cancelled
from fairy.runtime import Editor, EditParams, Progress
from tests.runtime.conftest import make_frames, write_clip

pytestmark = pytest.mark.slow
USUAL = {"num_inference_steps": 2, "anchors": 2, "micro_batch": 2, "shots": (6,)}


@pytest.fixture(scope="module")
def crew(checkpoint_folder: Path) -> Iterator[Editor]:
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=2) as made:
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
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_same_file(editor: Editor, crew: Editor, folder: Path, tmp_path: Path, name: str) -> None:
    controls = CONTROLS[name]
    params = EditParams("make it red", **{**USUAL, **controls, **_paths(controls, folder)})
    whole = editor.edit_file(folder / "clip.mp4", tmp_path / "whole.mp4", params)
    shared = crew.edit_file(folder / "clip.mp4", tmp_path / "shared.mp4", params)
    for i, again in enumerate((editor, crew)):
        out = tmp_path / f"again{i}.mp4"
        interrupt(editor, folder / "clip.mp4", out, params)
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
    return {"anchor_images": looks, "mask": folder / controls["mask"] if "mask" in controls else None}
