"""What is approximate and asked for by name: guidance on fewer steps, a bank in 8 bit, linear layers in 8 bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.engines.backends import check_also
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.bank.float8 import _Packed
from fairy.runtime.cli import main as cli
from tests.conftest import make_unet, write_checkpoint
from tests.runtime.conftest import make_frames

FRAMES = make_frames(7)


def make_params(**changes: object) -> EditParams:
    return EditParams("make it red", **{"num_inference_steps": 4, "anchors": 2, "micro_batch": 3, **changes})


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second).mean())


def test_all_steps_guided_is_the_usual_edit(editor: Editor) -> None:
    usual = editor.edit(FRAMES, make_params()).frames
    assert np.array_equal(usual, editor.edit(FRAMES, make_params(guidance_end=1.0)).frames)


@pytest.mark.parametrize("anchors", [0, 2])
def test_no_step_guided_is_the_first_branch_alone(editor: Editor, anchors: int) -> None:
    """Guidance scales of 1 make the other branches vanish: another way to the same pictures."""
    none = editor.edit(FRAMES, make_params(guidance_end=0.0, anchors=anchors)).frames
    alone = editor.edit(FRAMES, make_params(guidance_scale=1.0, image_guidance_scale=1.0, anchors=anchors)).frames
    assert np.abs(none.astype(int) - alone).max() <= 1


def test_half_of_the_steps_guided_lies_between(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    really = type(editor._networks.backend).engine

    def watched(backend, graph, precision=None):
        engine = really(backend, graph, precision)

        class Watched:
            spec = engine.spec

            def __call__(self, inputs, out=None):
                if "sample" in inputs:
                    groups.append(len(inputs["text"]))
                return engine(inputs, out)

        return Watched()

    monkeypatch.setattr(type(editor._networks.backend), "engine", watched)
    half = editor.edit(FRAMES, make_params(guidance_end=0.5)).frames
    assert groups == [3, 3, 1, 1] * 3  # the anchors and two micro-batches
    monkeypatch.undo()
    full, none = (editor.edit(FRAMES, make_params(guidance_end=share)).frames for share in (1.0, 0.0))
    assert 0 < difference(half, full) < difference(none, full)


def test_eight_bit_keys_and_values_change_little_and_halve_the_bank(editor: Editor) -> None:
    exact, packed = (editor.edit(FRAMES, make_params(bank_dtype=dtype)) for dtype in (None, "float8"))
    assert 0 < difference(exact.frames, packed.frames) < 3.0
    assert packed.report.bank_bytes == pytest.approx(exact.report.bank_bytes / 4, rel=0.02)  # of float32 here
    half = editor.edit(FRAMES, make_params(bank_dtype="float8", guidance_end=0.5))
    assert half.frames.shape == exact.frames.shape


def test_a_continued_look_is_kept_in_eight_bit_too(editor: Editor) -> None:
    params = {"shots": [4], "continue_look": True}
    exact, packed = (editor.edit(FRAMES, make_params(bank_dtype=d, **params)).frames for d in (None, "float8"))
    apart = editor.edit(FRAMES, make_params(shots=[4])).frames
    assert difference(exact[4:], packed[4:]) < difference(exact[4:], apart[4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_packing_keeps_a_sixteenth_of_every_value(dtype: torch.dtype, size: float) -> None:
    """e4m3 has three binary places: half a step is 1/16 of the value, down to where it becomes subnormal."""
    x = (torch.randn(3, 50, 24, generator=torch.Generator().manual_seed(0)) * size).to(dtype)
    x[1] = 0
    back = _Packed.of(x).unpacked(dtype).double()
    smallest = x.double().abs().amax(dim=(1, 2), keepdim=True) / 448 * 2.0**-6
    assert bool(((back - x.double()).abs() <= x.double().abs() / 15 + smallest).all())
    assert bool((back[1] == 0).all())
    x[0, 0, 0] = float("nan")
    assert not bool(torch.isfinite(_Packed.of(x).unpacked(dtype)).all())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"guidance_end": 1.5}, "guidance_end = 1.5 is not possible; it must be a number from 0 to 1"),
        ({"guidance_end": None}, "guidance_end = None is not possible"),
        ({"bank_dtype": "int4"}, "bank_dtype = 'int4' is not known; choose one of float8"),
        ({"guidance_end": 0.5, "guidance_scale": 0.0}, "guidance_end = 0.5 leaves the instruction's branch"),
        ({"bank_dtype": "float8", "method": "per_frame", "anchors": None}, "has no bank of anchors"),
        ({"guidance_end": 0.5, "method": "pix2video", "anchors": None}, "which guides every step"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(editor: Editor, changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        editor.edit(FRAMES, make_params(**changes))


@pytest.mark.slow
def test_workers_compute_the_same(checkpoint_folder: Path, editor: Editor) -> None:
    params = make_params(bank_dtype="float8", guidance_end=0.5)
    with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=2) as pair:
        assert np.array_equal(pair.edit(FRAMES, params).frames, editor.edit(FRAMES, params).frames)


FLOAT8 = {"backend": "compiled", "without": ("inductor",), "linears": "float8"}


def test_linears_in_8_bit_change_little_and_are_reported(checkpoint_folder: Path, editor: Editor) -> None:
    exact = editor.edit(FRAMES, make_params())
    assert not any("approximate" in note for note in exact.report.notes)
    with Editor.from_pretrained(checkpoint_folder, device="cpu", **FLOAT8) as eighth:
        found = eighth.edit(FRAMES, make_params())
    assert 0 < difference(exact.frames, found.frames) < 3.0
    assert found.report.steps[-1] == "fp8-linears"
    (note,) = (note for note in found.report.notes if note.startswith("approximate"))
    assert note.startswith("approximate: feed-forward and attention projections of the UNet in 8 bit")
    assert note.endswith("the CPU simulates it.")


@pytest.mark.slow
def test_workers_compute_linears_in_8_bit_alike(checkpoint_folder: Path) -> None:
    found = []
    for workers in (1, 2):
        with Editor.from_pretrained(checkpoint_folder, device="cpu", workers=workers, **FLOAT8) as one:
            found.append(one.edit(FRAMES, make_params()))
    assert np.array_equal(found[0].frames, found[1].frames)
    assert found[0].report.steps == found[1].report.steps
    assert found[0].report.notes == found[1].report.notes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"linears": "int8"}, "linears = 'int8' is not known; choose one of float8"),
        ({"linears": "float8", "backend": "eager"}, "Backend 'eager' has no linear layers in 8 bit; choose one of"),
        ({"linears": "float8"}, "Backend 'auto' has no linear layers in 8 bit; choose one of compiled, cuda-graphs"),
        ({"linears": "float8", "backend": "onnxruntime"}, "Backend 'onnxruntime' has no linear layers in 8 bit"),
        ({"linears": "float8", "backend": "cuda-graphs"}, "needs a GPU"),
    ],
)
def test_linears_in_8_bit_are_refused_where_they_cannot_serve(options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Editor.from_pretrained(device="cpu", **options)


def test_a_gpu_without_8_bit_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=r"need compute capability 8\.9 or later; cuda has 8\.0"):
        check_also("cuda-graphs", torch.device("cuda"), ("fp8-linears",))


def test_a_model_with_other_parts_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    make_unet(act_fn="gelu").save_pretrained(folder / "unet")
    with (
        Editor.from_pretrained(folder, device="cpu", **FLOAT8) as other,
        pytest.raises(InputError, match=r"not for this model: A UNet with act_fn = 'gelu' .* Leave linears out\."),
    ):
        other.edit(FRAMES, make_params())


def test_the_command_line_hands_it_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["edit", str(tmp_path / "none.mp4"), "make it red", "-o", str(tmp_path / "out.mp4")]
    (tmp_path / "none.mp4").write_bytes(b"")
    assert cli.run([*command, "--linears", "float8", "--backend", "eager"]) == 2
    assert "Backend 'eager' has no linear layers in 8 bit" in capsys.readouterr().err
