"""An editor trained by two processes is the one that a single process trains."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.autoencoder import build_autoencoder
from training.checkpoint import Trainee, read_json, save_tensors
from training.editor import TextEditor
from training.optimisers import adamw
from training.train import editor_plan

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with an autoencoder and a few pairs under the name of the quick plan's."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    model = build_autoencoder()
    Trainee.start(model, adamw(model, 1e-3)).save(folder / "autoencoder.safetensors")
    digest = hashlib.sha256((folder / "autoencoder.safetensors").read_bytes()).hexdigest()
    identity = f"{editor_plan('editor', True, None).pairs} seed=0 autoencoder={digest}"
    pairs = {
        "source": torch.randn(4, 4, 32, 32).half(),
        "shapes": torch.randint(7, (4, 32, 32), dtype=torch.uint8),
        "target": torch.randn(8, 4, 32, 32).half(),
        "origin": torch.arange(8) // 2,
        "tokens": torch.randint(1, 200, (8, 24)),
    }
    save_tensors(folder / "latents_editor.safetensors", pairs, {"identity": identity, "scaling_factor": "1.0"})
    return folder


def train(work: Path, out: Path, launcher: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    for path in work.iterdir():
        os.link(path, out / path.name)
    words = [*launcher, "-m", "training.train", "--out", str(out), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def torchrun(processes: int) -> list[str]:
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return [sys.executable, "-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={processes}"]


def steps_taken(folder: Path) -> torch.Tensor:
    """What training added to the UNet's first weights, as one vector."""
    torch.manual_seed(0)
    first = TextEditor().state_dict()
    trained = load_file(folder / "editor.safetensors")
    return torch.cat([(trained[f"weights/{k}"] - v).flatten() for k, v in first.items() if k.startswith("unet.")])


def test_two_processes_take_the_steps_of_one(work: Path, tmp_path: Path) -> None:
    for name, launcher in (("one", [sys.executable]), ("two", torchrun(2))):
        result = train(work, tmp_path / name, launcher, "--stage", "editor", "--quick", "--steps", str(STEPS))
        assert result.returncode == 0, result.stderr
        (run,) = read_json(tmp_path / name / "record.json")["runs"]
        assert (run["processes"], run["steps_done"]) == (2 if name == "two" else 1, STEPS)
    one, two = steps_taken(tmp_path / "one"), steps_taken(tmp_path / "two")
    assert float(torch.cosine_similarity(one, two, dim=0)) > 0.9, "0.97 was seen; 0.70 with half of each batch"


def test_other_stages_take_one_process(work: Path, tmp_path: Path) -> None:
    result = train(work, tmp_path / "out", torchrun(2), "--stage", "decoder", "--quick")
    assert result.returncode != 0
    assert "stage decoder takes one process: name --stage editor or --stage equivariant" in result.stderr
