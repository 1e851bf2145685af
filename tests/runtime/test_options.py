"""The table of options: its checks, the command lines and pages that come from it, errors as each face writes them."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fairy.export.graphs import LAYER_CHOICES
from fairy.kernels.errors import InputError
from fairy.runtime.cli import main as cli
from fairy.runtime.cli.groups import GROUPS
from fairy.runtime.cli.reference import filled, tables
from fairy.runtime.cli.table import TABLES, help_of, spelled
from fairy.runtime.device import DTYPES
from fairy.runtime.editor import Editor
from fairy.runtime.editor_setup import PRECISIONS, EditorSetup
from fairy.runtime.fleet.fleet_options import FleetOptions
from fairy.runtime.options import Number, Time, Whole, option, options_of
from fairy.runtime.plan.file_request import FileRequest
from fairy.runtime.plan.params import EditParams
from fairy.runtime.service.options import ServiceOptions

DOCS = Path(__file__).parents[2] / "docs"
ONE_EDIT = (EditParams, EditorSetup, FileRequest)
NOT_FOR_MANY = {"gpus", "workers", "compare", "preview", "report", "fps", "then"}
NOT_FOR_SERVE = {"controlnet", "depth_estimator", "ip_adapter", "segmenter"}


def test_every_field_is_in_the_table() -> None:
    for table, others in (
        (EditParams, {"prompt"}),
        (EditorSetup, set()),
        (FleetOptions, set()),
        (ServiceOptions, set()),
    ):
        assert {field.name for field in dataclasses.fields(table)} - set(options_of(table)) == others
    for table in TABLES:
        for name, entry in options_of(table).items():
            assert entry.help[0].isupper(), name
            assert not entry.help.endswith("."), name
            if entry.default is not None:
                assert entry.check(name, entry.default) == entry.default


def test_defaults_pass_their_own_checks() -> None:
    assert EditParams("x") == dataclasses.replace(EditParams("x"))
    assert EditorSetup() == EditorSetup().absolute()
    assert tuple(DTYPES) == PRECISIONS
    assert set(options_of(EditParams)["layers"].kind.choices) == set(LAYER_CHOICES)  # type: ignore[attr-defined]


def test_editors_are_made_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """`EditorSetup.open` hands every field to `Editor.from_pretrained`, which knows them all."""
    code = Editor.from_pretrained.__func__.__code__  # type: ignore[attr-defined]
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert set(options_of(EditorSetup)) <= set(known)
    given: dict = {}
    monkeypatch.setattr(Editor, "from_pretrained", classmethod(lambda cls, **options: given.update(options)))
    EditorSetup("m", threads=3, without=["fused-qkv"]).open()
    assert given["model"] == "m"
    assert given["threads"] == 3
    assert given["without"] == ("fused-qkv",)


@pytest.mark.parametrize(("command", "tables_of", "left_out"), [
    ("edit", ONE_EDIT, set()),
    ("edit-many", (*ONE_EDIT, FleetOptions), NOT_FOR_MANY),
    ("serve", (ServiceOptions, EditorSetup), NOT_FOR_SERVE),
])  # fmt: skip
def test_commands_offer_every_option(
    command: str, tables_of: tuple, left_out: set, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([command, "--help"]) == 0
    words = capsys.readouterr().out.split()
    for table in tables_of:
        for name, entry in options_of(table).items():
            if name not in left_out:
                assert spelled(name) in words, name
                assert " ".join(help_of(entry).split()[:2]) in " ".join(words)


def test_pages_have_the_tables_of_the_code() -> None:
    made = tables()
    for path in DOCS.glob("*.md"):
        page = path.read_text(encoding="utf-8")
        assert filled(page, made) == page, f"{path.name} is old: run `make reference`"
    with pytest.raises(InputError, match="has no end"):
        filled("<!-- steps: begin -->\n", made)


@pytest.mark.parametrize(("words", "sentence"), [
    (["--steps", "ten"], "--steps 'ten' is not possible; it must be a whole number from 1 to 1000."),
    (["--seed", "-1"], f"--seed -1 is not possible; it must be a whole number from 0 to {2**63 - 1}."),
    (["--crf", "1.5"], "--crf '1.5' is not possible; it must be a whole number from 0 to 51."),
    (["--guidance-end", "2"], "--guidance-end 2 is not possible; it must be a number from 0 to 1."),
    (["--start", "1:xx"], "--start '1:xx' is not a time; give seconds (12.5) or [H:]MM:SS (1:02.5)."),
    (["--fps", "25/0"], "--fps '25/0' is not a rate; give a number (25) or a fraction (30000/1001)."),
    (["--anchors", "a,b"], "--anchors 'a,b' is neither a number of anchors (3) nor a list of frames (0,40,80)."),
    (["--dtype", "int8"], "--dtype 'int8' is not known; choose one of auto, float32, float16, bfloat16."),
    (["--device", "tpu"], "--device 'tpu' is not known; choose auto, cpu, cuda or cuda:N."),
    (["--delta", "3"], "--delta does not fit the method fairy, which has no guided update; leave it out."),
])  # fmt: skip
def test_errors_speak_of_what_was_typed(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["edit", "no.mp4", "x", "-o", "out.mp4", *words]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_an_error_has_fields_that_survive_a_process() -> None:
    with pytest.raises(InputError) as caught:
        EditParams("x", num_inference_steps=0)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.name, error.value, error.problem) == ("num_inference_steps", 0, "is not possible")
    assert error.remedy == "it must be a whole number from 1 to 1000"
    assert str(error) == "num_inference_steps = 0 is not possible; it must be a whole number from 1 to 1000."
    assert error.sentence(spelled) == f"--steps{str(error).removeprefix('num_inference_steps =')}"
    assert str(InputError("No such thing; look again.")) == "No such thing; look again."


def test_what_means_the_same_is_taken() -> None:
    assert EditorSetup(without="fused-qkv").without == ("fused-qkv",)
    assert EditorSetup(device="cpu:0").device == "cpu:0"
    assert EditParams("x", delta=0.0).delta == 0.0  # of an update that the method has not
    with pytest.raises(InputError, match="guidance_end does not fit"):
        EditParams("x", method="pix2video", guidance_end=0.0)
    with pytest.raises(InputError, match="without must be a list of names, not 3"):
        EditorSetup(without=3)  # type: ignore[arg-type]


def test_numbers_at_and_beyond_their_ends() -> None:
    assert Whole(1, 3).check("n", 3) == 3
    assert Time(0, 10).parse("t", "0:09.5") == 9.5
    for kind, value in ((Whole(1, 3), 4), (Whole(1, 3), True), (Number(0, 1, above=True), 0), (Number(0, 1), 10**400)):
        with pytest.raises(InputError, match="n = .* is not possible"):
            kind.check("n", value)
    assert option(None, Whole(1, 3), "x").metadata["option"].check("n", None) is None


@pytest.mark.parametrize("words", [["--help"], ["edit", "no.mp4", "x", "-o", "o.mp4"], ["edit", "--steps", "0"]])
def test_mistakes_are_told_before_torch_is_loaded(words: list[str]) -> None:
    program = (
        "import sys; from fairy.runtime.cli.main import run; run(sys.argv[1:]);"
        "sys.exit(', '.join({'torch', 'diffusers', 'av'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_help_of_edit_groups_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    options = {name for table in ONE_EDIT for name in options_of(table)} | {"out", "resume", "quiet"}
    assert sorted(grouped) == sorted(options)
    assert cli.run(["edit", "--help"]) == 0
    page = capsys.readouterr().out
    found = [page.index(f"\n{title}:\n") for title in ("Arguments", *GROUPS)]
    assert found == sorted(found)
    assert all(f"  {spelled(name)} " in page for name in options - {"out"})
