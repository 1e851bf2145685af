"""What a process that torchrun started makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.workers.torchrun import processes_asked_for, torchrun_world
from tests.runtime.conftest import make_frames, write_clip


def environment(rank: int, size: int, local: int) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local}
    return {"TORCHELASTIC_RUN_ID": "none", **{name: str(number) for name, number in numbers.items()}}


def test_without_torchrun_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert torchrun_world() is None
    assert processes_asked_for("cpu", 1, 3) == (1, 3)
    assert processes_asked_for("cuda", 4, 1) == (4, 1)


def test_rank_0_becomes_the_controller_and_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, expected in ((0, (1, 4)), (1, None), (3, None)):
        for name, value in environment(rank, 4, 4).items():
            monkeypatch.setenv(name, value)
        assert processes_asked_for("cpu", 1, 1) == expected
    with pytest.raises(InputError, match="torchrun started 4 processes; leave gpus = 1 and workers = 2 out"):
        processes_asked_for("cpu", 1, 2)


def test_several_machines_are_refused() -> None:
    with pytest.raises(InputError, match="torchrun started 8 processes, 4 of them on this machine"):
        torchrun_world(environment(0, 8, 4))


@pytest.mark.slow
def test_torchrun_writes_the_file_that_one_process_writes(
    checkpoint_folder: Path, editor: Editor, tmp_path: Path
) -> None:
    video = write_clip(tmp_path / "clip.mp4", make_frames(7))
    editor.edit_file(video, tmp_path / "one.mp4", EditParams("make it red", num_inference_steps=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    fairy = [
        sys.executable,
        "-m",
        "fairy.runtime.cli.main",
        "edit",
        str(video),
        "make it red",
        "--steps",
        "1",
        "--quiet",
    ]
    options = ["--model", str(checkpoint_folder), "--device", "cpu", "-o", str(tmp_path / "two.mp4")]
    report = tmp_path / "report.json"
    done = subprocess.run(
        [*command, *fairy, *options, "--report", str(report)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["workers"] == 2
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
