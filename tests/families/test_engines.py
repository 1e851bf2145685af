"""What is built of the other families computes what their networks compute, and says what it is."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.benchmarks.public_models import SMALL
from fairy.export.families import describe_edit_model
from fairy.export.onnx.export import export_model
from fairy.export.shapes import dtype_of, shape_of
from fairy.kernels.errors import InputError
from fairy.runtime import Editor, EditParams
from fairy.runtime.cli import main as cli
from fairy.runtime.models.local import local_models
from tests.engines.capture import broken_rules

GRAPHS = ["vae_encoder", "vae_decoder", "unet_anchor", "unet_frame"]
META = torch.device("meta")
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
PARAMS = EditParams("make it snow", num_inference_steps=2, long_side=48, micro_batch=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "graph", "body"),
    [
        ("klein", "unet_frame", "onnxruntime"),
        ("klein", "vae_decoder", "onnxruntime"),
        pytest.param("klein_kv", "unet_source", "onnxruntime", marks=pytest.mark.nightly),
        pytest.param("klein_kv", "unet_frame", "portable", marks=pytest.mark.nightly),
        pytest.param("dreamlite", "unet_anchor", "onnxruntime", marks=pytest.mark.nightly),
        pytest.param("dreamlite", "unet_frame", "portable", marks=pytest.mark.nightly),
        pytest.param("klein", "unet_anchor", "portable", marks=pytest.mark.nightly),
        pytest.param("dreamlite", "vae_encoder", "onnxruntime", marks=pytest.mark.nightly),
    ],
)
def test_onnx_files_compute_what_torch_computes(
    family: str, graph: str, body: str, dreamlite_folder: Path, klein_folder: Path, klein_kv: Path, tmp_path: Path
) -> None:
    folder = {"dreamlite": dreamlite_folder, "klein": klein_folder, "klein_kv": klein_kv}[family]
    [report] = export_model(folder, tmp_path, graphs=[graph], body=body).graphs  # type: ignore[arg-type]
    assert report.relative_error is not None
    assert report.relative_error < 1e-5
    assert len(report.shapes) > 1


@pytest.mark.parametrize("family", SMALL)
def test_graphs_can_be_recorded(family: str) -> None:
    """By the rules of CUDA graphs, looked at without a GPU."""
    model = SMALL[family](META, torch.float32)
    sizes = {"groups": 1, "frames": 2, "tokens": 7, "height": 8, "width": 8, "context_0": 64, "context_2": 4}
    sizes["source_tokens"] = 64
    for spec in model.graphs().values():
        if spec.layers or spec.name == "unet_source":
            shapes = [(shape_of(t, sizes), dtype_of(t, torch.float32)) for t in spec.inputs]
            inputs = [torch.empty(shape, dtype=dtype, device=META) for shape, dtype in shapes]
            assert broken_rules(partial(model.build(spec), *inputs)) == []


@pytest.mark.nightly
def test_an_edit_by_built_engines(klein_folder: Path, tmp_path: Path) -> None:
    """As `fairy build` puts them into a store."""
    where = ["--device", "cpu", "--store", str(tmp_path), "--quiet"]
    assert cli.run(["build", str(klein_folder), "--backend", "onnxruntime", *where]) == 0
    built = _edit(klein_folder, backend="onnxruntime", store=tmp_path)
    assert np.abs(built - _edit(klein_folder)).max() <= 1


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["dreamlite", "klein"])
def test_an_edit_by_compiled_graphs(family: str, dreamlite_folder: Path, klein_folder: Path, tmp_path: Path) -> None:
    folder = {"dreamlite": dreamlite_folder, "klein": klein_folder}[family]
    compiled = _edit(folder, backend="compiled", store=tmp_path)
    assert np.abs(compiled - _edit(folder)).max() <= 1


def _edit(folder: Path, **setup: object) -> np.ndarray:
    with Editor.from_pretrained(folder, device="cpu", **setup) as editor:  # type: ignore[arg-type]
        return editor.edit(FRAMES, PARAMS).frames.astype(int)


def test_folders_say_what_they_are(dreamlite_folder: Path, klein_folder: Path, tmp_path: Path) -> None:
    assert describe_edit_model(dreamlite_folder)["pipeline"] == "DreamLiteMobilePipeline"
    assert set(describe_edit_model(klein_folder)["bytes"]) == {"transformer", "vae", "text_encoder"}
    whole = Path(shutil.copytree(klein_folder, tmp_path / "whole"))
    (whole / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    broken = Path(shutil.copytree(klein_folder, tmp_path / "broken"))
    next((broken / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="The transformer in .* has no safetensors files"):
        describe_edit_model(broken)
    found = {Path(model.path).name: (model.family, model.licence) for model in local_models([tmp_path])}
    assert found["whole"] == ("editor: Flux2KleinPipeline, sees the picture", "apache-2.0")
    assert found["broken"][0].startswith("cannot be used (The transformer in")
