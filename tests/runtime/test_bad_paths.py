"""Paths that cannot be used, and inputs that an output would replace, are refused in a sentence."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.cli.main import run
from fairy.runtime.files import user_path
from fairy.runtime.plan.file_request import check_fps
from fairy.runtime.plan.story import read_prompts
from tests.runtime.conftest import make_frames, write_clip

PARAMS = EditParams("make it red", num_inference_steps=1, anchors=1)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", make_frames(3), sound=False)


@pytest.mark.parametrize("path", ["x" * 300 + ".mp4", "~nobody-of-that-name/o.mp4", "a\0b.mp4"])
def test_a_path_that_no_system_knows(path: str) -> None:
    with pytest.raises(InputError, match=r"too long|not known here|null"):
        user_path(path)


def test_an_output_may_not_replace_what_is_read(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = tmp_path / "story.json"
    story.write_text('[{"frame": 0, "prompt": "make it snow"}]')
    out = str(tmp_path / "o.mp4")
    assert run(["edit", str(video), "-o", out, "--prompts", str(story), "--report", str(story)]) == 2
    assert "is the input itself" in capsys.readouterr().err
    assert json.loads(story.read_text())[0]["frame"] == 0
    values, clips = tmp_path / "values.json", tmp_path / "clips"
    values.write_text('{"seed": 3}')
    clips.mkdir()
    write_clip(clips / "a.mp4", make_frames(2), sound=False)
    words = ["edit-many", str(clips), "make it snow", "-o", str(tmp_path / "outs"), "--params", str(values)]
    assert run([*words, "--report", str(values)]) == 2
    assert values.read_text() == '{"seed": 3}'


def test_a_preview_may_not_replace_a_picture(editor: Editor, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, frame in enumerate(make_frames(2)):
        Image.fromarray(frame).save(folder / f"{index}.png")
    before = (folder / "1.png").read_bytes()
    with pytest.raises(InputError, match="is the input itself"):
        editor.edit(folder, PARAMS, preview=folder / "1.png")
    assert (folder / "1.png").read_bytes() == before


@pytest.mark.parametrize("text", ["1e99999999", "1e400", "1/100000", "0", "-5", "1001", "9" * 50])
def test_rates_that_no_file_has(text: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["edit", str(video), "x", "-o", str(tmp_path / "o.mp4"), f"--fps={text}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--fps" in said
    assert "Fraction" not in said


def test_slow_and_fast_rates_that_files_have() -> None:
    assert check_fps(Fraction(1, 1000)) == Fraction(1, 1000)
    assert check_fps(1000) == 1000


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{a: " * 3_000, "- " * 3_000 + "a", "\n".join(" " * i + "-" for i in range(300))]
)
def test_a_schedule_of_lists_in_lists(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="lists within lists|increasing flow level"):  # some versions of libyaml say so
        read_prompts(path)


@pytest.mark.parametrize("name", ["model", "store", "decoder", "cache_dir"])
def test_names_are_text_or_paths(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} = 5 is not possible; give "):
        Editor.from_pretrained(**{name: 5})


def test_what_cancels_is_an_event(editor: Editor) -> None:
    with pytest.raises(InputError, match=r"cancel = True is not possible; give a threading.Event"):
        editor.edit(make_frames(2), PARAMS, cancel=True)


def test_numbers_that_no_float_holds() -> None:
    with pytest.raises(InputError, match="guidance_scale = 1000"):
        EditParams("x", guidance_scale=10**400)
    with pytest.raises(InputError, match="seed = 9223372036854775808 is not possible; .* to 9223372036854775807"):
        EditParams("x", seed=2**63)


def test_warming_up_takes_any_parameters(editor: Editor) -> None:
    for more in ({"prompts": {100: "y", 31.5: "z"}}, {"shots": (120,)}):
        editor.warm_up(24, 32, EditParams("x", anchors=1, **more))
        assert editor.edit(make_frames(2), EditParams("x", anchors=1, num_inference_steps=1)).report.notes == ()


@pytest.mark.parametrize("letter", ["x", "影", "é"])
def test_names_as_long_as_they_may_be(
    letter: str, editor: Editor, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """255 bytes for every output, and what is written meanwhile has no longer names."""
    folder = tmp_path / "outs"
    folder.mkdir()
    seen: set[str] = set()
    really = os.open

    def watched(path: object, *rest: object, **named: object) -> int:
        seen.add(os.path.basename(os.fspath(path)))  # type: ignore[call-overload]
        return really(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watched)
    outs = {
        name: folder / (letter * ((255 - len(ending) - 1) // len(letter.encode())) + name[0] + ending)
        for name, ending in (("out", ".mp4"), ("compare", ".mkv"), ("preview", ".png"), ("report", ".json"))
    }
    outs["out"] = outs["out"].with_name("x" * (255 - len(os.fsencode(outs["out"].name))) + outs["out"].name)
    editor.edit_file(video, **outs, params=PARAMS)
    assert len(os.fsencode(outs["out"].name)) == 255
    assert set(folder.iterdir()) == set(outs.values())
    assert 250 < max(len(os.fsencode(name)) for name in seen) <= 255


def test_a_link_stays_a_link(editor: Editor, video: Path, tmp_path: Path) -> None:
    for folder in ("links", "files"):
        (tmp_path / folder).mkdir()
    outs = {"out": "o.mp4", "report": "r.json"}
    for number, name in enumerate(outs.values()):
        (tmp_path / "links" / name).symlink_to(tmp_path / "files" / name)
        if number:  # one link with a file behind it, one without
            (tmp_path / "files" / name).write_text("old")
    editor.edit_file(video, **{key: tmp_path / "links" / name for key, name in outs.items()}, params=PARAMS)
    assert all((tmp_path / "links" / name).is_symlink() for name in outs.values())
    assert {path.name for path in (tmp_path / "files").iterdir()} == set(outs.values())
    assert json.loads((tmp_path / "files" / "r.json").read_text())["num_frames"] == 3


def test_the_second_edit_into_one_output_at_once_says_so(tmp_path: Path) -> None:
    from fairy.runtime.files import only_writer_of

    (tmp_path / "link.mp4").symlink_to(tmp_path / "o.mp4")
    with only_writer_of(tmp_path / "o.mp4", None):
        for name in ("o.mp4", "link.mp4"):
            with (
                pytest.raises(InputError, match=rf"{name} is being written by another edit at this moment; wait"),
                only_writer_of(tmp_path / "p.mp4", tmp_path / name),
            ):
                pass
        with only_writer_of(tmp_path / "p.mp4"):
            pass
    with only_writer_of(tmp_path / "o.mp4"):
        assert not list(tmp_path.glob(".*")), "and nothing is left behind"
