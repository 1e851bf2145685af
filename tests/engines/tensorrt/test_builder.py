"""The TensorRT builder around the build: what it refuses, what it leaves in the folder, when our kernel is used."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from scenarios import GRAPH, RANGES, SHAPES, compute
from scripted import ScriptedTensorRT

from fairy.engines.engine import BuildOptions, EngineSpec
from fairy.engines.tensorrt import builder as tensorrt
from fairy.engines.tensorrt.builder import PLAN, TensorRTBuilder
from fairy.export.onnx.attention import PLUGIN_ATTRIBUTES
from fairy.kernels.errors import Cancelled, InputError, MachineError

CHECKPOINT: Any = SimpleNamespace(vae_factor=8)
SPEC = EngineSpec(GRAPH, "tensorrt", "cpu", "float16")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that seems to have a GPU, and an export of one attention node; what happened goes into the result."""
    events: dict[str, Any] = {}

    def export(checkpoint: Any, graph: Any, path: Path, *, body: str, precision: str) -> None:
        events.update(body=body, precision=precision)
        node = onnx.helper.make_node("PlainAttention", ["q", "k", "v"], ["o"], domain="fairy", **PLUGIN_ATTRIBUTES)
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), path)

    def parsed(self: Any, path: str) -> bool:
        events["attributes"] = len(onnx.load(path).graph.node[0].attribute)
        return True

    monkeypatch.setattr("fairy.export.onnx.export.export_onnx", export)
    monkeypatch.setattr("scripted.Parser.parse_from_file", parsed)
    monkeypatch.setattr(tensorrt, "_check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(tensorrt, "use_plugins", lambda trt, target: events.update(target=target))
    return events


def _build(folder: Path, spec: EngineSpec, on_progress: Any = lambda *_: True, **options: Any) -> ScriptedTensorRT:
    trt = ScriptedTensorRT(spec.graph, RANGES, compute)
    TensorRTBuilder(trt).build(CHECKPOINT, spec, SHAPES, BuildOptions(**options), folder, on_progress)
    return trt


def test_only_the_plan_is_left(seen: dict[str, Any], tmp_path: Path) -> None:
    trt = _build(tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == [PLAN]
    assert (tmp_path / PLAN).read_bytes() == b'{"plan": "unet_frame"}'
    assert {name: tuple(rest) for name, *rest in trt.said("set_shape")} == RANGES
    assert seen == {"body": "portable", "precision": "float16", "attributes": 0}


def test_our_kernel_where_it_is_asked_for_and_serves(seen: dict[str, Any], tmp_path: Path) -> None:
    layers = tuple(replace(layer, channels=80) for layer in GRAPH.layers)  # two heads of 40
    served = replace(SPEC, graph=replace(GRAPH, layers=layers))
    _build(tmp_path, served, plugin=True)
    assert seen["target"] == 89
    assert seen["attributes"] == len(PLUGIN_ATTRIBUTES)
    seen.pop("target")
    _build(tmp_path, replace(served, precision="float32"), plugin=True)
    _build(tmp_path, SPEC, plugin=True)  # heads of 8
    _build(tmp_path, served)
    assert "target" not in seen
    assert seen["attributes"] == 0


def test_a_cancelled_build_leaves_nothing(seen: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        _build(tmp_path, SPEC, lambda phase, done, total: phase != "Building")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    builder = TensorRTBuilder(ScriptedTensorRT(GRAPH, RANGES, compute))
    for device in ("cuda", "cpu"):
        with pytest.raises(InputError, match=f"runs on an NVIDIA GPU, not on {device}.*; choose --backend"):
            builder.environment(torch.device(device))


def test_the_module_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MachineError, match="cannot be imported .*; install it as docs/tensorrt.md says"):
        TensorRTBuilder()
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(MachineError, match=r"TensorRT 10.9.0.34 is too old; install 10.13 or later"):
        TensorRTBuilder()
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.3.9"))
    assert TensorRTBuilder().name == "tensorrt"
