"""Edits by models of the other families: everything that surrounds the network is the same for all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.engines.engine import Engine
from fairy.export.graphs import GraphSpec
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
USUAL = {"num_inference_steps": 2, "long_side": 48, "micro_batch": 2}


@pytest.fixture
def folder(request: pytest.FixtureRequest, dreamlite_folder: Path, klein_folder: Path, klein_kv: Path) -> Path:
    """A folder by the name of its family."""
    return {"dreamlite": dreamlite_folder, "klein": klein_folder, "klein_kv": klein_kv}[request.param]


def _edit(folder: Path, how: dict[str, object], **setup: object) -> str:
    with Editor.from_pretrained(folder, device="cpu", **setup) as editor:
        return editor.edit(FRAMES, EditParams("make it snow", **(USUAL | how))).report.frames_sha256


@pytest.mark.parametrize(
    ("folder", "how"),
    [
        ("dreamlite", {"shots": (5,), "text_picture": "anchor", "continue_look": True}),
        ("klein", {"shots": (5,), "anchor_positions": "own", "anchor_tokens": "both"}),
        ("klein_kv", {"shots": (5,), "anchor_tokens": "both", "continue_look": True}),
    ],
    indirect=["folder"],
)
def test_any_number_of_workers_makes_the_same_bytes(folder: Path, how: dict[str, object]) -> None:
    assert len({_edit(folder, how, workers=workers) for workers in (1, 3)}) == 1


@pytest.mark.parametrize("folder", ["dreamlite", "klein", "klein_kv"], indirect=True)
def test_what_surrounds_the_network_serves_all(folder: Path) -> None:
    plain = _edit(folder, {})
    assert _edit(folder, {}, bank="host") == plain
    eight = _edit(folder, {"bank_dtype": "float8"})
    half = _edit(folder, {"strength": 0.5})
    details = _edit(folder, {"keep_details": True})
    decoder = _edit(folder, {"layers": "decoder"})
    chained = _edit(folder, {"method": "pix2video"})
    assert len({plain, eight, half, details, decoder, chained}) == 6


def test_a_source_that_sees_only_itself_is_computed_once_for_all_steps(klein_kv: Path) -> None:
    with Editor.from_pretrained(klein_kv, device="cpu") as editor:
        backend, asked = editor._networks.backend, list[str]()
        find = backend.engine

        def engine(graph: GraphSpec, dtype: torch.dtype) -> Engine:
            asked.append(graph.name)
            return find(graph, dtype)

        backend.engine = engine  # type: ignore[method-assign]
        editor.edit(FRAMES, EditParams("make it snow", anchors=3, **(USUAL | {"num_inference_steps": 4})))
    assert asked.count("unet_source") == asked.count("unet_frame") + asked.count("unet_anchor") == 4


def test_each_picture_that_the_text_sees_makes_another_edit(dreamlite_folder: Path) -> None:
    """And without anchors every frame's text is its own, whatever was asked for."""
    edits = {how: _edit(dreamlite_folder, {"text_picture": how}) for how in ("shot", "anchor", "frame")}
    assert len(set(edits.values())) == 3
    alone = {_edit(dreamlite_folder, {"text_picture": how, "anchors": 0}) for how in ("shot", "frame")}
    assert len(alone) == 1


@pytest.mark.parametrize(
    ("folder", "how", "words"),
    [
        ("dreamlite", {"guidance_scale": 7.5}, "guidance_scale = 7.5 does not fit .*distilled away"),
        ("dreamlite", {"anchor_positions": "own"}, "anchor_positions = 'own' is for models that are transformers"),
        ("klein", {"text_picture": "frame"}, "text_picture = 'frame' is for models whose text is encoded"),
        ("klein", {"sampler": "ddim"}, "sampler = 'ddim' .*trained by flow matching; choose flow_match_euler"),
    ],
    indirect=["folder"],
)
def test_what_does_not_fit_a_family_is_refused(folder: Path, how: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _edit(folder, how)


def test_options_of_other_families_are_refused(editor: Editor, klein_folder: Path) -> None:
    with pytest.raises(InputError, match="anchor_tokens = 'both' is for models that see the source beside"):
        editor.edit(FRAMES, EditParams("make it snow", anchor_tokens="both"))
    with pytest.raises(InputError, match="flow_match_euler.*trained otherwise; choose any but flow_match_euler"):
        editor.edit(FRAMES, EditParams("make it snow", sampler="flow_match_euler"))
    with pytest.raises(InputError, match="decoder = 'tiny' does not fit a model of Flux2KleinPipeline"):
        Editor.from_pretrained(klein_folder, decoder="tiny")


def test_what_networks_need_is_checked_before_they_are_read(
    klein_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        Editor.from_pretrained(klein_folder, device="cpu").close()
    assert "takes 0.00 GB for its networks (transformer 0.00 GB" in caplog.text
    monkeypatch.setattr("fairy.runtime.plan.memory.host_bytes", lambda: 1000)
    monkeypatch.setattr("fairy.export.families.load_network", pytest.fail)
    with pytest.raises(
        InputError, match=r"needs 0.00 GB for its networks alone \(transformer .* 0.00 GB are there on cpu"
    ):
        Editor.from_pretrained(klein_folder, device="cpu")
