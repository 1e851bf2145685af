"""A generator's stages through exporter, store and backends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fairy.engines.compiled import CompiledBackend
from fairy.export.onnx.export import export_model
from fairy.export.shapes import random_inputs
from fairy.kernels.errors import InputError
from fairy.runtime.cli.main import app
from fairy.runtime.generation.generator import Generator
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.params import GenerateParams, UpscaleParams
from fairy.runtime.generation.video_stages import Upscaler

CPU = torch.device("cpu")
PARAMS = GenerateParams("a red ball", num_frames=7, seed=5)


@pytest.fixture(scope="module")
def store(small_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of all stages for onnxruntime; each was compared with eager when it was built."""
    where = tmp_path_factory.mktemp("store")
    how = ["--backend", "onnxruntime", "--precision", "fp32", "--quiet"]
    done = CliRunner().invoke(app, ["build", str(small_generator), *how, "--store", str(where)])
    assert done.exit_code == 0, done.output
    return where


def test_onnxruntime_makes_what_eager_makes(small_generator: Path, store: Path) -> None:
    with Generator.from_pretrained(small_generator) as plain:
        wanted = plain.generate(PARAMS)
    with Generator.from_pretrained(small_generator, backend="auto", store=store) as built:
        made = built.generate(PARAMS)
    assert (wanted.report.backend, made.report.backend) == ("eager", "onnxruntime")
    assert {"text_encoder", "base", "interpolation", "super_resolution"} <= set(made.report.engines)
    assert np.abs(made.frames.astype(int) - wanted.frames).max() <= 1


def test_a_window_of_one_frame_has_an_engine_too(small_generator: Path, store: Path) -> None:
    video = np.random.default_rng(0).integers(0, 255, (1, 12, 20, 3), dtype=np.uint8)
    with Upscaler.from_pretrained(small_generator, backend="onnxruntime", store=store) as built:
        assert built.run(video, UpscaleParams()).frames.shape == (1, 24, 40, 3)


def test_engines_that_are_missing_are_named_with_what_builds_them(small_generator: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no engine of text_encoder .* run `fairy build .* --backend onnxruntime"):
        Generator.from_pretrained(small_generator, backend="onnxruntime", store=tmp_path)


def test_offload_is_for_eager(small_generator: Path) -> None:
    with pytest.raises(InputError, match="offload"):
        Generator.from_pretrained(small_generator, backend="onnxruntime", offload=True)


def test_compiled_computes_what_eager_computes(small_generator: Path) -> None:
    networks = CascadeNetworks(small_generator, CPU, torch.float32)
    spec = networks.model.graphs()["interpolation"]
    inputs = random_inputs(spec, {"groups": 1, "frames": 4, "height": 8, "width": 12}, torch.float32, seed=0)
    backend = CompiledBackend(networks.model, CPU, torch.float32)
    found = backend.engine(spec)(inputs)["output"]
    torch.testing.assert_close(found, networks.backend.engine(spec)(inputs)["output"], rtol=1e-4, atol=1e-4)


def test_a_package_is_built_of_a_stage(small_generator: Path, tmp_path: Path) -> None:
    """It is compared with eager before it is stored."""
    how = ["--backend", "compiled", "--graphs", "interpolation", "--precision", "fp32", "--quiet", "--store", tmp_path]
    sizes = ["--height", "8", "--width", "12", "--frames", "4"]
    done = CliRunner().invoke(app, ["build", str(small_generator), *map(str, how), *sizes])
    assert done.exit_code == 0, done.output
    assert "interpolation" in done.output


def test_files_in_standard_operators_compute_the_same(small_generator: Path, tmp_path: Path) -> None:
    """What TensorRT builds from; `export_model` compares with torch on shapes that differ."""
    model = CascadeNetworks(small_generator, CPU, torch.float32).model
    report = export_model(model, tmp_path, graphs=["base"], body="portable")
    assert [graph.name for graph in report.graphs] == ["base"]
    assert report.graphs[0].relative_error < 1e-4
