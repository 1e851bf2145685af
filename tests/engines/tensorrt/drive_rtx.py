"""NVIDIA's real parser and builder (TensorRT for RTX, whose API is TensorRT's) on what we export. No GPU is needed.

Usage: drive_rtx.py FOLDER CHECK...
"""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import tensorrt_rtx_bindings as trt
import torch

from fairy.engines.engine import BuildOptions, Shapes
from fairy.engines.tensorrt.build import PlanRequest, build_plan
from fairy.engines.tensorrt.build_progress import BuildProgress, run_beside
from fairy.export.graphs import GraphSpec, self_attention_layers, unet_spec
from fairy.kernels.errors import Cancelled, MachineError

SHAPES = Shapes(height=(32, 64, 96), width=(32, 32, 64), frames=(1, 2, 3), anchors=3, tokens=7)


def exported(path: Path) -> GraphSpec:
    """A small UNet in 16 bit: attention on own tokens and context, on text, and keys and values as outputs."""
    from diffusers import UNet2DConditionModel

    from fairy.export.checkpoint import Checkpoint
    from fairy.export.onnx.export import export_onnx

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=16,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,) * 4, latent_channels=4))
    none: Any = None
    checkpoint = Checkpoint("small", unet.half().eval(), vae, none, none, {}, {})
    layers = tuple(replace(layer, segments=("shared",), emits=True) for layer in self_attention_layers(unet))
    spec = unet_spec("unet_frame", layers, in_channels=8, out_channels=4, text_channels=16)
    export_onnx(checkpoint, spec, path, body="portable", precision="float16")
    return spec


def for_target(name: str) -> Any:
    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)

    return configure


def build(request: PlanRequest, on_progress: Any = lambda *_: True) -> Any:
    progress = BuildProgress(on_progress)
    return run_beside(lambda: build_plan(trt, request, progress), progress)


def check_unet(folder: Path) -> None:
    """The exported UNet becomes an engine for three kinds of GPU."""
    path = folder / "model.onnx"
    spec = exported(path)
    ranges = SHAPES.ranges(spec, 8)
    options = BuildOptions(mem_pool_bytes=1 << 30, optimization_level=1, timing_cache=folder / "timing.cache")
    plans = set()
    for target in ("SM86", "SM89", "SM120"):
        phases: dict[str, list[tuple[int, int]]] = {}

        def told(phase: str, done: int, total: int, phases: Any = phases) -> bool:
            phases.setdefault(phase, []).append((done, total))
            return True

        started = time.perf_counter()
        plan = build(PlanRequest(spec.name, path, ranges, options, configure=for_target(target)), told)
        plans.add(bytes(plan))
        assert len(bytes(plan)) > 10_000
        assert len(phases) > 3
        assert all(steps[0][0] == 0 and steps[-1][0] == steps[-1][1] for steps in phases.values())
        print(target, len(bytes(plan)), "bytes,", len(phases), "phases,", round(time.perf_counter() - started, 1), "s")
    assert len(plans) == 3
    assert (folder / "timing.cache").exists()


def check_stages(folder: Path) -> None:
    """A generator's networks over time become engines: from noise and text, and two flows between frames."""
    from fairy.export.bases.cascade import CascadeModel, video_specs
    from fairy.export.bases.video_unet import VideoUNet
    from fairy.export.onnx.export import export_onnx

    torch.manual_seed(0)
    small: dict[str, Any] = {"patch_size": 2, "block_out_channels": (16, 32), "layers_per_block": 1}
    between = {"in_channels": 0, "condition_channels": 7, "warps": True, "attention": (False, False)}
    networks: dict[str, Any] = {
        "base": VideoUNet(**small, cross_attention_dim=16, attention_head_dim=16).half().eval(),
        "between": VideoUNet(**small, **between, norm_num_groups=0).half().eval(),
    }
    model = CascadeModel("small", folder, tuple(networks), tuple(networks), dtype=torch.float16, networks=networks)
    shapes = Shapes(height=(32, 64, 96), width=(32, 32, 64), frames=(2, 4, 8), anchors=1, groups=2, tokens=7)
    for name, network in networks.items():
        spec, path = video_specs(name, dict(network.config), 7)[0], folder / f"{name}.onnx"
        export_onnx(model, spec, path, body="portable", precision="float16")
        options = BuildOptions(mem_pool_bytes=1 << 30, optimization_level=1)
        request = PlanRequest(name, path, shapes.ranges(spec, 1), options, configure=for_target("SM89"))
        assert len(bytes(build(request))) > 10_000


def attention(path: Path, head_dim: int) -> PlanRequest:
    """ONNX's own Attention in 16 bit; a head dimension of 8 has no fused kernel."""
    half, helper = onnx.TensorProto.FLOAT16, onnx.helper
    values = {"q": ["b", 2, "s", head_dim], "k": ["b", 2, "t", head_dim], "v": ["b", 2, "t", head_dim]}
    inputs = [helper.make_tensor_value_info(name, half, dims) for name, dims in values.items()]
    output = helper.make_tensor_value_info("out", half, values["q"])
    node = helper.make_node("Attention", list(values), ["out"])
    graph = helper.make_graph([node], "attention", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    ranges = dict.fromkeys(values, ((1, 2, 4, head_dim), (2, 2, 64, head_dim), (3, 2, 96, head_dim)))
    return PlanRequest("attention", path, ranges, BuildOptions(), configure=for_target("SM86"))


def check_attention(folder: Path) -> None:
    """What has no fused kernel is built from its parts; without our doing so it fails, and says why."""
    request = attention(folder / "attention.onnx", 8)
    assert len(bytes(build(request))) > 1000
    from fairy.engines.tensorrt import build as tensorrt_build

    tensorrt_build._make_attention_decomposable = lambda *_: None
    with pytest.raises(MachineError, match="could not build attention: .*[Dd]ecompos"):
        build(request)


def check_failures(folder: Path) -> None:
    """A file that cannot be read, and a wish to stop."""
    request = attention(folder / "attention.onnx", 8)
    broken = folder / "broken.onnx"
    broken.write_bytes(b"\x08\x08no model")
    with pytest.raises(MachineError, match="graph of attention: .*Failed to parse the ONNX model.$"):
        build(replace(request, model=broken))
    with pytest.raises(Cancelled, match="cancelled"):
        build(request, lambda phase, done, total: False)
    with pytest.raises(ArithmeticError):
        build(request, lambda phase, done, total: 1 // 0)


def check_interrupt(folder: Path) -> None:
    """Ctrl-C while TensorRT holds the thread that builds."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background starts with it ignored
    request = attention(folder / "attention.onnx", 64)
    sent = threading.Event()

    def told(phase: str, done: int, total: int) -> bool:
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # the main thread notices, this one goes on
        return True

    with pytest.raises(Cancelled, match="interrupted"):
        build(request, told)


if __name__ == "__main__":
    for check in sys.argv[2:]:
        globals()[f"check_{check}"](Path(sys.argv[1]))
        print("passed", check, flush=True)
