"""`fairy edit --then`: the edited frames grow and multiply before they are written."""

from pathlib import Path

import numpy as np
import pytest

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.cli.main import run
from fairy.runtime.generation.params import InterpolateParams
from fairy.runtime.generation.video_stages import Interpolator
from fairy.runtime.plan.file_request import FileRequest
from fairy.runtime.video import probe, read_frames


def test_then_is_the_same_as_the_stages_on_the_edited_frames(clip: Path, tmp_path: Path) -> None:
    params, out = EditParams("make it grey", num_inference_steps=1, anchors=1), tmp_path / "out.mkv"
    with Editor.from_pretrained() as editor:
        edited = editor.edit(clip, params)
        report = editor.edit_file(clip, out, params, then="interpolate", crf=0, compare=tmp_path / "beside.mp4")
    assert report.frames_sha256 == edited.report.frames_sha256
    assert any("9 frames" in note for note in report.notes)
    made = probe(out)
    assert made.num_frames == 9
    assert made.audio == probe(clip).audio
    with Interpolator.from_pretrained() as interpolator:
        wanted = interpolator.run(edited.frames, InterpolateParams(times=2, shots="off")).frames
    shown = np.stack(list(read_frames(made, 0, 9)))
    assert np.abs(shown.astype(int) - wanted).mean() < 6
    assert probe(tmp_path / "beside.mp4").num_frames == 5


def test_both_by_the_command(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    arguments = ["edit", str(clip), "make it grey", "-o", str(out), "--steps", "1", "--quiet"]
    assert run([*arguments, "--then", "upscale,interpolate"]) == 0
    source, made = probe(clip), probe(out)
    assert (made.num_frames, made.width, made.height) == (9, 2 * source.width, 2 * source.height)


@pytest.mark.parametrize("then", ["sharpen", "upscale,upscale", "", ["upscale", 3]])
def test_what_does_not_follow_is_refused(then: object, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="upscale or interpolate"):
        FileRequest.checked(clip, tmp_path / "out.mp4", then=then)
