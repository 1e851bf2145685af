"""The TensorRT backend: builds a graph's ONNX file into a plan for the GPU at hand, and loads plans.

TensorRT comes from NVIDIA's own package index and is imported only where a builder is made.
"""

import importlib
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import torch

from fairy.engines.engine import BuildOptions, EngineSpec, OnBuild, Shapes
from fairy.engines.tensorrt.build import PlanRequest, Ranges, build_plan
from fairy.engines.tensorrt.build_progress import BuildProgress, run_beside
from fairy.engines.tensorrt.execution import Place, TensorRTEngine
from fairy.engines.tensorrt.gpu import CudaStream, ScratchMemory, on_device
from fairy.engines.tensorrt.plugin import drop_plugins, kernel_serves, kernel_target, use_plugins
from fairy.export.model import Model
from fairy.kernels.errors import InputError, MachineError

PLAN = "engine.plan"
_OLDEST = (10, 13)
_DRIVER = Path("/proc/driver/nvidia/version")


class TensorRTBuilder:
    """Builds and loads TensorRT engines; those loaded for one device share a stream and scratch memory.

    Args:
        trt: the TensorRT module; None imports `tensorrt`.

    Raises:
        MachineError: TensorRT is not installed or too old.
    """

    name = "tensorrt"

    def __init__(self, trt: Any = None) -> None:
        self._trt = trt or import_tensorrt()
        self._places: dict[torch.device, Place] = {}

    def environment(self, device: torch.device) -> dict[str, str]:
        """What decides about a plan's bytes besides the spec: versions, GPU, compute capability, driver."""
        _check_device(device)
        capability = torch.cuda.get_device_capability(device)
        return {
            "tensorrt": self._trt.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "triton", "onnx")},
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": ".".join(map(str, capability)),
            "driver": _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else str(torch.version.cuda),
        }

    def build(
        self,
        model: Model,
        spec: EngineSpec,
        shapes: Shapes,
        options: BuildOptions,
        folder: Path,
        on_progress: OnBuild,
    ) -> None:
        """Build one engine into `folder`; see `Builder`. BuildProgress comes from TensorRT's own threads."""
        from fairy.export.onnx.export import export_onnx

        device = torch.device(spec.device)
        _check_device(device)
        progress = BuildProgress(on_progress)
        ranges = shapes.ranges(spec.graph, model.vae_factor)
        with tempfile.TemporaryDirectory(dir=folder, prefix="export.") as temporary:
            path = Path(temporary) / "model.onnx"
            progress.start("export", 1)
            export_onnx(model, spec.graph, path, body="portable", precision=spec.precision)
            self._choose_attention(spec, ranges, options, path)
            progress.finish("export")
            progress.check()
            request = PlanRequest(spec.graph.name, path, ranges, options)

            def work() -> None:
                with on_device(device):
                    (folder / PLAN).write_bytes(memoryview(build_plan(self._trt, request, progress)))

            run_beside(work, progress)

    def _choose_attention(self, spec: EngineSpec, ranges: Ranges, options: BuildOptions, path: Path) -> None:
        """Let our kernel compute the graph's attention where that is asked for and possible."""
        target = kernel_target(torch.cuda.get_device_capability(spec.device)) if options.plugin else None
        if target is not None and kernel_serves(spec.graph, getattr(torch, spec.precision), ranges):
            use_plugins(self._trt, target)
        else:
            drop_plugins(path)

    def load(self, spec: EngineSpec, folder: Path, device: torch.device) -> TensorRTEngine:
        """The engine whose plan lies in `folder`; it is called only after every file was checked."""
        _check_device(device)
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device not in self._places:
            self._places[device] = Place(device, CudaStream(device), ScratchMemory(device))
        return TensorRTEngine(self._trt, spec, folder / PLAN, self._places[device])


def import_tensorrt() -> Any:
    """The `tensorrt` module.

    Raises:
        MachineError: it is not installed or too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise MachineError(
            f"TensorRT cannot be imported ({error}); install it as docs/tensorrt.md says, or choose another backend."
        ) from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < _OLDEST:
        raise MachineError(f"TensorRT {trt.__version__} is too old; install 10.13 or later.")
    return trt


def _check_device(device: torch.device) -> None:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"TensorRT runs on an NVIDIA GPU, not on {device}; choose --backend onnxruntime or eager.")
