"""A checkpoint of a user's distilled: from pictures and lines of text to a checkpoint that edits in a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairy.export.checkpoint import load_checkpoint
from fairy.runtime import Editor, EditParams
from tests.conftest import write_checkpoint
from training.distil_editor import Network, Teaching, encode_text, guided, main, trained_alphas
from training.distillation import Levels


def test_guidance_is_the_runtimes(tmp_path: Path) -> None:
    """Three branches of one sample, put together by hand."""
    checkpoint = load_checkpoint(write_checkpoint(tmp_path))
    levels = Levels(trained_alphas(checkpoint.scheduler_config))
    network, teaching = Network(checkpoint.unet, levels, "epsilon"), Teaching()
    z, image = torch.randn(2, 2, 4, 16, 16)
    text, none = encode_text(checkpoint, "make it red"), encode_text(checkpoint, "")
    now = torch.tensor([300, 700])
    with torch.inference_mode():
        found = guided(network, image, text.expand(2, -1, -1), none, teaching)(z, now)
        full = network.clean(z, now, image, text.expand(2, -1, -1))
        of_image = network.clean(z, now, image, none.expand(2, -1, -1))
        free = network.clean(z, now, torch.zeros_like(image), none.expand(2, -1, -1))
    wanted = free + 1.5 * (of_image - free) + 7.5 * (full - of_image)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_pictures_and_lines_become_a_checkpoint_of_few_steps(tmp_path: Path) -> None:
    teacher = write_checkpoint(tmp_path / "teacher")
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (64, 72, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{number}.png")
    (tmp_path / "lines.txt").write_text("make it red\n\nadd snow\n")
    how = ["--model", str(teacher), "--pictures", str(tmp_path / "pictures"), "--out", str(tmp_path / "work")]
    how += ["--instructions", str(tmp_path / "lines.txt"), "--long-side", "72", "--teacher-steps", "2", "--batch", "2"]
    how += ["--training-steps", "2", "--steps", "8"]
    with pytest.raises(SystemExit, match="guidance has 0 of 2 steps; call again to go on"):
        main([*how, "--minutes", "0"])
    main([*how, "--to", str(tmp_path / "student")])
    assert len(list((tmp_path / "work" / "edits").glob("*.safetensors"))) == 4
    record = json.loads((tmp_path / "work" / "record.json").read_text())
    assert {name: told["steps"] for name, told in record.items()} == {"guidance": 2, "16_steps": 2, "8_steps": 2}
    with Editor.from_pretrained(tmp_path / "student") as editor:
        made = editor.edit(rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8), EditParams("add snow", anchors=1))
    params = made.report.params
    assert (params["num_inference_steps"], params["guidance_scale"], params["sampler"]) == (8, 1.0, "ddim")
