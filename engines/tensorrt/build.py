"""An ONNX file becomes a TensorRT plan.

`trt` is the TensorRT module and always a parameter. Only what 10.13 to 11.4 and TensorRT for RTX share is called:
networks are strongly typed, so precision stands in the ONNX file alone; enumerations are named, never numbered, because
their values differ; and as TensorRT reports failure by None or False, every result is looked at.

Source: the bindings' own signatures and NVIDIA's page "Migrating from TensorRT 10.x to 11.x".
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy.engines.engine import BuildOptions
from fairy.engines.tensorrt.build_progress import BuildProgress, progress_monitor
from fairy.engines.tensorrt.messages import messages
from fairy.kernels.errors import InputError

_LOG = logging.getLogger(__name__)
_OPTIMIZATION_LEVELS = range(6)

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is built.

    Attributes:
        name: what messages call the network.
        model: the ONNX file; large weights lie beside it.
        ranges: (min, opt, max) shape of every input.
        tf32: whether float32 matrix products may be rounded to TF32.
        configure: called with the builder configuration last, for what only one kind of TensorRT knows.
    """

    name: str
    model: Path
    ranges: Ranges
    options: BuildOptions
    tf32: bool = False
    configure: Callable[[Any], None] | None = None


def build_plan(trt: Any, request: PlanRequest, progress: BuildProgress) -> Any:
    """Build the plan of a network: an object with the buffer protocol that holds the engine's bytes.

    Raises:
        InputError: an option or a shape that TensorRT does not take.
        MachineError: it could not be built, with what TensorRT said.
        Cancelled: `progress` asked to stop.
    """
    log = messages(trt)
    start = log.mark()
    builder = make(trt, trt.Builder)
    network, parser = _parse(trt, builder, request)
    # Not before: a parser replaces the recorder it finds by its own, which the network then outlives and crashes on.
    builder.error_recorder = log.recorder
    _make_attention_decomposable(trt, network)
    config = builder.create_builder_config()
    if config is None:
        raise log.failure("TensorRT made no builder configuration", start)
    monitor = progress_monitor(trt, progress)
    config.progress_monitor = monitor
    _set_options(trt, config, request)
    _add_profile(trt, builder, config, network, request)
    cached = _use_timing_cache(trt, config, request.options.timing_cache)
    if request.configure is not None:
        request.configure(config)
    plan = builder.build_serialized_network(network, config)
    del parser  # it owns weights that the network refers to until here
    progress.check()
    if plan is None:
        raise log.failure(f"TensorRT could not build {request.name}", start, _remedy(request))
    if cached:
        _keep_timing_cache(config, request.options.timing_cache)
    return plan


def make(trt: Any, kind: Any) -> Any:
    """A TensorRT `Builder` or `Runtime`; MachineError where the library makes none on this machine."""
    log = messages(trt)
    start = log.mark()
    try:
        return kind(log.logger)
    except (TypeError, RuntimeError) as error:  # how the bindings report that they were given none
        raise log.failure("TensorRT does not work on this machine", start, "run `fairy doctor`") from error


def _parse(trt: Any, builder: Any, request: PlanRequest) -> tuple[Any, Any]:
    """The network of the ONNX file, and the parser, which has to outlive the build."""
    log = messages(trt)
    start = log.mark()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if network is None:
        raise log.failure("TensorRT made no network", start)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(request.model)):
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            operator = error.node_operator()
            log.add(f"{operator}: {error.desc()}" if operator else error.desc())
        raise log.failure(f"TensorRT cannot read the graph of {request.name}", start)
    return network, parser


def _make_attention_decomposable(trt: Any, network: Any) -> None:
    """Let fused attention fall back to its parts: where no fused kernel exists, the build would fail otherwise."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # from 10.14
    if kind is None:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True


def _set_options(trt: Any, config: Any, request: PlanRequest) -> None:
    options, workspace = request.options, trt.MemoryPoolType.WORKSPACE
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.mem_pool_bytes is not None:
        config.set_memory_pool_limit(workspace, options.mem_pool_bytes)
        if config.get_memory_pool_limit(workspace) != options.mem_pool_bytes:
            raise InputError(
                f"A memory pool of {options.mem_pool_bytes} bytes is not taken by TensorRT; "
                "choose no more than the GPU's memory."
            )
    if options.optimization_level is not None:
        if options.optimization_level not in _OPTIMIZATION_LEVELS:
            raise InputError(
                f"Optimization level {options.optimization_level} is not known to TensorRT; choose 0 to 5."
            )
        config.builder_optimization_level = options.optimization_level


def _add_profile(trt: Any, builder: Any, config: Any, network: Any, request: PlanRequest) -> None:
    """One optimisation profile that spans the ranges of all inputs."""
    log = messages(trt)
    start = log.mark()
    profile = builder.create_optimization_profile()
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if set(names) != set(request.ranges):
        odd = sorted(set(names) ^ set(request.ranges))
        raise InputError(f"The graph of {request.name} and its shapes disagree about the input {odd[0]}.")
    for name in names:
        low, best, high = request.ranges[name]
        try:
            profile.set_shape(name, low, best, high)
        except ValueError as error:
            raise InputError(f"{name} cannot have shapes from {low} over {best} to {high}: {error}.") from error
    if config.add_optimization_profile(profile) < 0:
        raise log.failure(f"TensorRT does not take the shapes of {request.name}", start, "choose smaller ranges")


def _use_timing_cache(trt: Any, config: Any, path: Path | None) -> bool:
    """Start from the measured kernel times of earlier builds; whether there is a cache to keep afterwards."""
    if path is None:
        return False
    log = messages(trt)
    start = log.mark()
    known = _read_timing_cache(path)
    for data in (known, b"") if known else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return True
        if data:
            _LOG.warning("The timing cache %s is of another TensorRT or GPU; it will be replaced.", path)
    raise log.failure(f"TensorRT cannot use the timing cache {path}", start, "build without one")


def _read_timing_cache(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"The timing cache {path} cannot be read: {error.strerror}; choose another file.") from error


def _keep_timing_cache(config: Any, path: Path | None) -> None:
    """Write the measured times for the next build; without them that one is slower, so failing is only logged."""
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if path is None or data is None:
        _LOG.warning("TensorRT gave no timing cache to keep.")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            (Path(folder) / path.name).write_bytes(memoryview(data))
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        _LOG.warning("The timing cache %s was not written: %s.", path, error.strerror)


def _remedy(request: PlanRequest) -> str:
    limit = request.options.mem_pool_bytes
    pool = "" if limit is None else f" or a memory pool above {limit} bytes"
    return f"where memory was short, choose smaller ranges{pool}"
