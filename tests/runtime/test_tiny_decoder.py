"""Edits whose pictures a small decoder makes: close to the full one's, named in the report, the same on workers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams, embedded_model
from fairy.runtime.cli.main import app
from fairy.runtime.record.progress import Monitor
from tests.conftest import make_tiny
from tests.runtime.conftest import make_frames

PARAMS = EditParams("make it red", num_inference_steps=2)


@pytest.fixture(scope="module")
def folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that has a random small decoder."""
    model = Path(shutil.copytree(checkpoint_folder, tmp_path_factory.mktemp("tiny") / "model"))
    make_tiny().save_pretrained(model / "tiny_decoder")
    return model


def test_report_and_journal_tell_it_from_the_full_decoder(folder: Path) -> None:
    frames, told = make_frames(1, 32, 32), []
    for decoder in (None, "tiny"):
        with Editor.from_pretrained(folder, device="cpu", decoder=decoder) as editor:
            identity = editor._identity(editor._open(frames, PARAMS, Monitor(None, None), None, None).plan)
            result = editor.edit(frames, PARAMS)
            told.append((identity, result.report.notes, result.frames))
    (full, nothing, exact), (tiny, notes, approximate) = told
    assert {name for name in full if full[name] != tiny[name]} == {"decoder"}
    assert nothing == ()
    assert notes == (f"approximate: pictures were made by the small decoder {folder / 'tiny_decoder'}.",)
    assert not np.array_equal(exact, approximate)


@pytest.mark.slow
def test_two_workers_make_the_bytes_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the decoder was named by a path relative to this process's folder."""
    monkeypatch.chdir(folder)
    frames, results = make_frames(5, 32, 32), []
    for workers, decoder in ((1, "tiny"), (2, "tiny_decoder")):
        with Editor.from_pretrained(folder, device="cpu", decoder=decoder, workers=workers) as editor:
            results.append(editor.edit(frames, PARAMS))
    one, two = results
    assert two.report.workers == 2
    assert np.array_equal(one.frames, two.frames)
    assert [len(r.report.notes) for r in results] == [1, 1]


@pytest.mark.parametrize("decoder", ["nowhere/at/all", "tiny"])
def test_what_is_not_there_is_refused_before_anything_is_made(checkpoint_folder: Path, decoder: str) -> None:
    with pytest.raises(InputError, match="neither a folder|madebyollin/taesd"):
        Editor.from_pretrained(checkpoint_folder, device="cpu", decoder=decoder)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["make it sepia", "make it snow", "turn it into night"])
def test_embedded_models_own_is_close_to_the_full_one(prompt: str) -> None:
    """Measured when it was trained: 26 to 33 dB. 8 bit rounding alone would be 59 dB, another picture 10 to 15."""
    from training.pictures import picture, to_bytes

    frames = to_bytes(picture(910_000_003, 96))[None]
    made = []
    for decoder in (None, "tiny"):
        with Editor.from_pretrained(device="cpu", decoder=decoder) as editor:
            made.append(editor.edit(frames, EditParams(prompt)).frames.astype(float))
    psnr_db = 10 * np.log10(255**2 / np.mean((made[0] - made[1]) ** 2))
    assert psnr_db > 25, psnr_db


def test_embedded_models_own_is_small() -> None:
    folder = embedded_model() / "tiny_decoder"
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "AutoencoderTiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 500_000
    assert sum(file.stat().st_size for file in embedded_model().rglob("*") if file.is_file()) <= 18_000_000


@pytest.mark.slow
def test_command_line(folder: Path, clip: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    words = ["edit", str(clip), "make it red", "-o", str(out), "--model", str(folder), "--steps", "1", "--quiet"]
    result = CliRunner().invoke(app, [*words, "--decoder", "tiny", "--report", str(report), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "note: approximate: pictures were made by the small decoder" in result.output
    assert "approximate" in json.loads(report.read_text())["notes"][0]
