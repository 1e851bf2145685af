"""Engines that ONNX Runtime runs, on the CPU or on a CUDA GPU, reading and writing torch's memory in place.

An engine is the ONNX file itself, so it serves any shape. Its attention is com.microsoft.MultiHeadAttention, which
never materialises the scores. The CUDA provider has been written to its documentation and not yet been run.
"""

import importlib.metadata
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairy.engines.engine import BuildOptions, EngineSpec, OnBuild, Shapes
from fairy.export.graphs import TensorSpec
from fairy.export.model import Model
from fairy.export.onnx.export import VAE_FACTOR, export_onnx
from fairy.export.onnx.onnx_files import MODEL, check_references
from fairy.export.shapes import dtype_of, shape_of, sizes_of
from fairy.kernels.errors import Cancelled, InputError, MachineError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PACKAGES = ("onnx", "onnxscript", "torch", "diffusers", "transformers")
_ELEMENTS = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}
_RECORDINGS = 4  # shapes recorded for each graph; each holds tensors of its own
_DRIVER = Path("/proc/driver/nvidia/version")


class OnnxRuntimeBuilder:
    """Exports graphs for ONNX Runtime and loads them again.

    Args:
        cuda_graph: on CUDA, record each shape's launches once and replay them. Tensors are then copied to addresses
            that stay and back, the anchors' keys and values too; it pays where launches cost more than copies.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(self, *, cuda_graph: bool = False) -> None:
        import onnxruntime

        self._ort = onnxruntime
        self._cuda_graph = cuda_graph

    def environment(self, device: torch.device) -> dict[str, str]:
        """What decides about an engine's bytes besides its spec: versions and, on CUDA, the GPU and its driver."""
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        found = {"onnxruntime": self._ort.__version__, **versions}
        if device.type == "cuda":
            found["gpu"] = torch.cuda.get_device_name(device)
            found["compute_capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
            found["driver"] = _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else str(torch.version.cuda)
        return found

    def build(
        self,
        model: Model,
        spec: EngineSpec,
        shapes: Shapes,
        options: BuildOptions,
        folder: Path,
        on_progress: OnBuild,
    ) -> None:
        """Export one graph into `folder`; see `Builder`. It serves all shapes: `shapes` and `options` say nothing."""
        if not on_progress("export", 0, 1):
            raise Cancelled(f"Building {spec.graph.name} was cancelled.")
        export_onnx(model, spec.graph, folder / MODEL, body="onnxruntime", precision=spec.precision)
        on_progress("export", 1, 1)

    def load(self, spec: EngineSpec, folder: Path, device: torch.device) -> "OnnxRuntimeEngine":
        """The engine whose file lies in `folder`; it computes with as many threads as torch does now.

        Raises:
            MachineError: the file refers to others that it must not, or the device's provider does not work here.
        """
        check_references(folder)
        replay = self._cuda_graph and device.type == "cuda"
        return OnnxRuntimeEngine(self._ort, spec, folder / MODEL, device, replay=replay)


@dataclass(frozen=True, slots=True)
class _Bindings:
    """Tensors at addresses that stay, which a recorded CUDA graph reads and writes."""

    number: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class OnnxRuntimeEngine:
    """One graph in a session of its own. Calls keep no values and may come from several threads.

    On CUDA it runs on a stream of its own that waits for torch's current one, and torch's waits for it. With `replay`,
    each of the first few shapes has tensors of its own, between which and the caller's values are copied.
    """

    def __init__(self, ort: Any, spec: EngineSpec, path: Path, device: torch.device, *, replay: bool = False) -> None:
        self.spec = spec
        self._ort = ort
        self._device = device
        self._precision: torch.dtype = getattr(torch, spec.precision)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._replay = replay
        self._recordings: dict[tuple[tuple[int, ...], ...], _Bindings] = {}
        self._lock = threading.Lock()
        self._session = _open(ort, path, device, _cuda_options(device, self._stream, replay))
        notes = self._session.get_modelmeta().custom_metadata_map
        if VAE_FACTOR not in notes:
            raise MachineError(f"{path} was not written by `fairy build` or `fairy export`: it lacks {VAE_FACTOR}.")
        self._vae_factor = int(notes[VAE_FACTOR])

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`.

        Raises:
            InputError: a tensor is missing, unknown, of a wrong type, or its shape does not fit the others.
            MachineError: ONNX Runtime failed, for want of memory for example.
        """
        graph = self.spec.graph
        if self._session is None:
            raise InputError(f"The engine of {graph.name} was closed.")
        sizes = sizes_of(graph, inputs, self._vae_factor)
        given = {tensor.name: self._readable(tensor, inputs[tensor.name]) for tensor in graph.inputs}
        results = {tensor.name: self._target(tensor, sizes, out or {}) for tensor in graph.outputs}
        if self._replay:
            self._run_recorded(given, results)
        else:
            self._run(given, results)
        for name, target in (out or {}).items():
            if results[name] is not target:
                results[name] = target.copy_(results[name])
        return results

    def close(self) -> None:
        """Give back the session and its weights."""
        self._session = None
        self._recordings.clear()

    def _readable(self, tensor: TensorSpec, given: Tensor) -> Tensor:
        """An input as ONNX Runtime can read it in place; a copy only where it is strided."""
        dtype = dtype_of(tensor, self._precision)
        if given.dtype != dtype or given.device.type != self._device.type:
            raise InputError(
                f"{tensor.name} of {self.spec.graph.name} must be {dtype} on {self._device}, "
                f"not {given.dtype} on {given.device}."
            )
        return given.contiguous()

    def _target(self, tensor: TensorSpec, sizes: Mapping[str, int], out: Mapping[str, Tensor]) -> Tensor:
        """Where an output is written: the caller's tensor if it fits as it lies, else memory of its own."""
        shape, dtype = shape_of(tensor, sizes), dtype_of(tensor, self._precision)
        wanted = out.get(tensor.name)
        if wanted is not None and wanted.shape != shape:
            raise InputError(f"{tensor.name} of {self.spec.graph.name} gives {list(shape)}, not {list(wanted.shape)}.")
        fits = wanted is not None and wanted.dtype == dtype and wanted.is_contiguous()
        if wanted is not None and fits and wanted.device.type == self._device.type:
            return wanted
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _run_recorded(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        shapes = tuple(tuple(t.shape) for t in inputs.values())
        with self._lock:
            if shapes not in self._recordings and len(self._recordings) == _RECORDINGS:
                self._run(inputs, outputs, number=-1)  # neither recorded nor replayed
                return
            if shapes not in self._recordings:
                copies = ({name: torch.empty_like(t) for name, t in named.items()} for named in (inputs, outputs))
                self._recordings[shapes] = _Bindings(len(self._recordings), *copies)
            kept = self._recordings[shapes]
            for name, t in inputs.items():
                kept.inputs[name].copy_(t)
            self._run(kept.inputs, kept.outputs, number=kept.number)
            for name, t in outputs.items():
                t.copy_(kept.outputs[name])

    def _run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], *, number: int | None = None) -> None:
        binding = self._session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, t in tensors.items():
                bind(name, t.device.type, t.device.index or 0, _ELEMENTS[t.dtype], list(t.shape), t.data_ptr())
        options = self._ort.RunOptions()
        if number is not None:
            options.add_run_config_entry("gpu_graph_id", str(number))
        if self._stream is not None:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # its exceptions have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise MachineError(f"ONNX Runtime failed to run {self.spec.graph.name} ({reason}).") from error
        if self._stream is not None:
            for t in (*inputs.values(), *outputs.values()):
                t.record_stream(self._stream)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _open(ort: Any, path: Path, device: torch.device, provider_options: dict[str, str]) -> Any:
    """A session whose first provider is the device's.

    Raises:
        MachineError: the file does not load, or ONNX Runtime fell back to another provider.
    """
    wanted = _PROVIDERS[device.type]
    if wanted not in ort.get_available_providers():
        raise MachineError(f"onnxruntime here has no {wanted}: pip install onnxruntime-gpu in place of onnxruntime.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Shapes vary from job to job, and both keep the largest they have met.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=[(wanted, provider_options)])
    except Exception as error:  # its exceptions have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise MachineError(f"ONNX Runtime cannot load {path} ({reason}).") from error
    used = session.get_providers()[0]
    if used != wanted:
        raise MachineError(f"onnxruntime fell back from {wanted} to {used}; see `fairy doctor` for what it lacks.")
    return session


def _cuda_options(device: torch.device, stream: Any, replay: bool) -> dict[str, str]:
    if stream is None:
        return {}
    return {
        "enable_cuda_graph": str(int(replay)),
        "device_id": str(device.index or 0),
        "user_compute_stream": str(stream.cuda_stream),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # by timing, two machines alike could choose differently
        "use_tf32": "0",
    }
