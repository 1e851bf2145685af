"""Models and clips so small that whole edits take fractions of a second."""

from pathlib import Path

import numpy as np
import pytest

from fairy.runtime import Editor
from tests.conftest import make_unet, write_checkpoint
from tests.runtime.conftest import make_frames


def write_small(folder: Path, **changes: object) -> Path:
    """A random model with attention on the way down and up; pictures are padded to multiples of 16 pixels."""
    write_checkpoint(folder)
    layout: dict[str, object] = {
        "seed": 3,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = make_unet(**{**layout, **changes})
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InstructPix2Pix-type model."""
    return write_small(tmp_path_factory.mktemp("small") / "editor")


@pytest.fixture(scope="session")
def small(small_folder: Path):
    """An Editor over it, in float32 on the CPU."""
    with Editor.from_pretrained(small_folder, device="cpu") as made:
        yield made


@pytest.fixture(scope="session")
def short() -> np.ndarray:
    """Six frames of 24×40."""
    return make_frames(6, height=24, width=40)
