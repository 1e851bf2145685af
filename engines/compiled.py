"""Engines that torch's Inductor compiles: packages made ahead of time, or modules compiled on the spot.

A package (AOTInductor, `model.pt2`) holds machine code and weights and runs without compiling anything. It is compiled
where it will run: on the CPU with plain attention, on a CUDA GPU with our kernels, which Python calls. On the spot,
`torch.compile` does the same within the process at the first call of every shape, which takes from seconds to minutes.

What is compiled is the network with its steps applied (`fairy.export.steps`). A package has those that change a network
by itself; those that want something computed ahead of a call, or graphs recorded, are for modules compiled on the spot.
"""

import copy
import hashlib
import importlib
import importlib.metadata
import logging
import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fairy.engines.cuda_graphs import GraphRunner, Record, RecordedEngine, Recorder, on_device
from fairy.engines.eager import EagerBackend, EagerEngine
from fairy.engines.engine import BuildOptions, Engine, EngineSpec, OnBuild, Shapes, Usage, check_inputs
from fairy.engines.fast import FastEngine, Run
from fairy.engines.numerics import steady_compiler, steady_numerics
from fairy.export.bases.fast_blocks import NotServed
from fairy.export.bases.fast_unet import FastUNet, FastUNetGraph
from fairy.export.bases.fast_vae import FastVaeDecoder, FastVaeEncoder
from fairy.export.graphs import GraphSpec
from fairy.export.model import Attend, Model
from fairy.export.precision import with_network_in
from fairy.export.shapes import dtype_of, random_inputs, side_of
from fairy.export.steps import EXACT_STEPS, Steps, choose_steps, in_order
from fairy.kernels.anchor_attention import anchor_attention
from fairy.kernels.errors import Cancelled, InputError, MachineError

PACKAGE = "model.pt2"
_LOG = logging.getLogger(__name__)
_SIDES = ("height", "width", "image_height", "image_width")
_PACKAGES = ("torch", "diffusers", "transformers")
_RECOMPILATIONS = 64  # shapes, graphs and precisions that one function may be compiled for
_OPS = tuple(f"fairy.kernels.{name}" for name in ("anchor_attention", "geglu", "group_norm_silu"))
# Steps that a package holds: those that change a network and nothing else.
_PACKAGED = frozenset(
    {"one-batch", "channels-last", "anchor-attention", "group-norm-silu", "geglu", "fused-qkv"}
    | {"folded-upsampling", "lean-vae", "inductor"}
)


@cache
def _version_of(compiler: str) -> str:
    """The compiler's name and version, the first line it says of itself."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    return said.partition("\n")[0][:120] or "unknown"


@cache
def _processor() -> str:
    """A digest of the processor's instruction sets: code is generated for all of them (`-march=native`)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:16]


class CompiledBuilder:
    """Compiles graphs ahead of time and loads them again; see `Builder`."""

    name = "compiled"

    def environment(self, device: torch.device) -> dict[str, str]:
        """Versions, and what code is generated for: the GPU, or the processor with its vector instructions.

        Raises:
            MachineError: there is no C++ compiler, or no such GPU.
        """
        found = {name: importlib.metadata.version(name) for name in _PACKAGES}
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise MachineError("Compiling for CUDA needs the GPU it will run on; this machine has none.")
            capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
            found |= {"gpu": torch.cuda.get_device_name(device), "compute_capability": capability}
            return found | {"cuda": str(torch.version.cuda), "triton": importlib.metadata.version("triton")}
        compiler = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
        if compiler is None:
            raise MachineError("Compiling for the CPU needs a C++ compiler, g++ or clang++; install one.")
        found |= {"machine": platform.machine(), "vectors": torch.backends.cpu.get_cpu_capability()}
        return found | {"compiler": _version_of(compiler), "processor": _processor()}

    def build(
        self,
        model: Model,
        spec: EngineSpec,
        shapes: Shapes,
        options: BuildOptions,
        folder: Path,
        on_progress: OnBuild,
    ) -> None:
        """Trace one graph over `shapes` and compile it into `folder`; see `Builder`.

        Raises:
            InputError: TensorRT's options were given. MachineError: the compiler failed. Cancelled: it was asked to.
        """
        if options != BuildOptions():
            raise InputError("Engines of compiled know no build options; leave out TensorRT's.")
        phases: tuple[tuple[str, Callable[[Any], Any]], ...] = (
            ("trace", lambda _: trace(model, spec, shapes)),
            ("compile", lambda program: _compile(program, folder / PACKAGE, spec.graph.name)),
        )
        made: Any = None
        for i, (phase, work) in enumerate(phases):
            if not on_progress(phase, i, len(phases)):
                raise Cancelled(f"Building {spec.graph.name} was cancelled.")
            made = work(made)
        on_progress("compile", len(phases), len(phases))

    def steps(self, device: torch.device) -> Steps:
        """The steps that packages for a device hold."""
        return packaged_steps(device)

    def load(self, spec: EngineSpec, folder: Path, device: torch.device) -> "CompiledEngine":
        """The engine whose package lies in `folder`.

        Raises:
            MachineError: the package does not load here.
        """
        if device.type == "cuda":  # packages call our ops by name
            for module in _OPS:
                importlib.import_module(module)
        index = -1 if device.index is None else device.index
        try:
            with on_device(device):
                run = torch._inductor.aoti_load_package(str(folder / PACKAGE), device_index=index)
        except Exception as error:  # its exceptions have no common base
            raise MachineError(f"The compiled engine {folder} does not load ({_reason(error)}).") from error
        return CompiledEngine(spec, run, device)


class CompiledEngine:
    """One graph in a package of machine code."""

    def __init__(self, spec: EngineSpec, run: Callable[..., Sequence[Tensor]], device: torch.device) -> None:
        self.spec = spec
        self._run: Callable[..., Sequence[Tensor]] | None = run
        self._device = device

    def __call__(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph; see `Engine`. Inductor's code allocates its outputs: those in `out` are copied to.

        Raises:
            InputError: an input is missing, unknown or of a wrong type. MachineError: the code failed.
            torch.OutOfMemoryError: the memory did not suffice.
        """
        graph = self.spec.graph
        if self._run is None:
            raise InputError(f"The engine of {graph.name} was closed.")
        check_inputs(graph, inputs)
        for tensor in graph.inputs:
            wanted = dtype_of(tensor, getattr(torch, self.spec.precision))
            if inputs[tensor.name].dtype != wanted:
                raise InputError(f"{tensor.name} of {graph.name} must be {wanted}, not {inputs[tensor.name].dtype}.")
        try:
            with torch.inference_mode(), steady_numerics(self.spec.precision), on_device(self._device):
                results = self._run(*(inputs[tensor.name].contiguous() for tensor in graph.inputs))
        except Exception as error:  # whatever the generated code raises
            _let_pass_out_of_memory(error)
            raise MachineError(f"The compiled engine of {graph.name} failed ({_reason(error)}).") from error
        outputs = dict(zip((tensor.name for tensor in graph.outputs), results, strict=True))
        for name, target in (out or {}).items():
            outputs[name] = target.copy_(outputs[name])
        return outputs

    def close(self) -> None:
        """Let go of the code and its weights."""
        self._run = None


class CompiledBackend(EagerBackend):
    """Every graph with the steps of the compiled path; compiled, where that is one of them, at the first call of a
    shape. Nothing is kept for later.

    What is asked for in another precision than the backend's, after values overflowed, is neither compiled nor
    recorded: that would take longer than the few calls that need it.
    """

    name = "compiled"

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        *,
        without: Iterable[str] = (),
        also: Iterable[str] = (),
        record: Record | None = None,
    ) -> None:
        """
        Args:
            without: names of steps to leave out.
            also: names of steps that are not exact, which are on only if they are asked for.
            record: see `GraphRunner`.

        Raises:
            InputError: there is no such step.
        """
        super().__init__(model, device, dtype)
        self.steps = choose_steps(without, device.type, also)
        self._unets: dict[torch.dtype, FastUNet] = {}
        self._notes: list[str] = []
        self._recorder = Recorder(record)

    def take_usage(self) -> Usage:
        """What ran since this was last asked: nothing of a store."""
        compiled = "graphs were compiled on the spot; `fairy build --backend compiled` keeps them"
        notes = [compiled] if "inductor" in self.steps else []
        return Usage(fallbacks=tuple(dict.fromkeys((*notes, *self._notes))), steps=in_order(self.steps))

    def close(self) -> None:
        """Close every engine and let go of the weights."""
        super().close()
        self._unets.clear()

    def _make(self, graph: GraphSpec, dtype: torch.dtype) -> Engine:
        spec, usual = self._spec(graph, dtype), dtype == self._dtype
        try:
            if graph.layers:
                return self._fast_engine(spec, dtype)
            module = fast_module(self._weights(graph, dtype), graph, self.steps)
        except NotServed as error:
            if graph.layers and not self.steps <= EXACT_STEPS:
                raise InputError(f"Linear layers in 8 bit are not for this model: {error} Leave linears out.") from None
            self._notes.append(f"{graph.name} ran without the steps that change it: {error}")
            module = self._weights(graph, dtype).build(graph)
        if "inductor" in self.steps and usual:
            module = _CompiledOnTheSpot(graph.name, module)
        if "cuda-graphs" in self.steps and usual and (graph.layers or graph.name.startswith("vae_")):
            names = [tensor.name for tensor in graph.inputs]
            run = self._recorded(lambda inputs: tuple(module(*(inputs[name] for name in names))))
            return RecordedEngine(spec, run)
        return EagerEngine(spec, module)

    def _fast_engine(self, spec: EngineSpec, dtype: torch.dtype) -> FastEngine:
        if dtype not in self._unets:
            if dtype != self._dtype:
                self._unets = {own: unet for own, unet in self._unets.items() if own == self._dtype}
            # What is computed again because values overflowed is computed as exactly as it can be.
            steps = self.steps if dtype == self._dtype else self.steps & EXACT_STEPS
            model = self._weights(spec.graph, dtype)
            network = model.network(model.network_of(spec.graph))
            self._unets[dtype] = FastUNet(network, steps, attention(steps))
        unet, graph = self._unets[dtype], spec.graph

        def call(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(unet(inputs, graph))

        if dtype != self._dtype:
            return FastEngine(spec, unet, call)
        run: Run = _CompiledOnTheSpot(graph.name, call) if "inductor" in self.steps else call
        return FastEngine(spec, unet, self._recorded(run) if "cuda-graphs" in self.steps else run)

    def _recorded(self, run: Run) -> GraphRunner:
        return GraphRunner(run, self._recorder, self._notes.append)

    def _free_other(self, graph: GraphSpec, dtype: torch.dtype) -> None:
        super()._free_other(graph, dtype)
        if graph.layers and dtype == self._dtype:
            self._unets = {own: unet for own, unet in self._unets.items() if own == self._dtype}


class _CompiledOnTheSpot(nn.Module):
    """A call that is compiled for each combination of input shapes, and says so."""

    def __init__(self, name: str, call: Callable[..., Sequence[Tensor]]) -> None:
        super().__init__()
        self._name = name
        self._compiled = torch.compile(call, dynamic=False)
        self._seen: set[tuple[torch.Size, ...]] = set()

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The call's outputs; the first one with a combination of shapes compiles, or raises MachineError."""
        shapes = tuple(t.shape for t in tree_leaves(inputs))
        if shapes in self._seen:
            return tuple(self._compiled(*inputs))
        _LOG.warning("compiling %s for %s …", self._name, list(shapes[0]))
        started = time.perf_counter()
        try:
            with torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS), steady_compiler():
                results = tuple(self._compiled(*inputs))
        except Exception as error:  # Inductor's and Dynamo's errors have no common base
            _let_pass_out_of_memory(error)
            raise MachineError(f"{self._name} cannot be compiled here ({_reason(error)}); use eager.") from error
        self._seen.add(shapes)
        _LOG.warning("compiled %s in %.1f s", self._name, time.perf_counter() - started)
        return results


def fast_module(model: Model, graph: GraphSpec, steps: Steps, attend: Attend | None = None) -> nn.Module:
    """The module of a graph with the steps that change a network; inputs and outputs as of `Model.build`'s.

    Raises:
        NotServed: the network has a part that is not known to the fast path.
    """
    attend, network = attend or attention(steps), model.network(model.network_of(graph))
    if graph.layers:
        return FastUNetGraph(FastUNet(network, steps, attend), graph)
    if graph.name == "vae_encoder":
        return FastVaeEncoder(network, steps)
    if graph.name == "vae_decoder":
        return FastVaeDecoder(network, steps)
    return model.build(graph, attend)


def attention(steps: Steps) -> Attend:
    """What computes attention: our op, or SDPA on joined keys."""
    return anchor_attention if "anchor-attention" in steps else joined_attention


def joined_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context_k: Sequence[Tensor] = (),
    context_v: Sequence[Tensor] = (),
    *,
    heads: int,
) -> Tensor:
    """Plain attention on joined keys, in operators that AOTInductor runs without Python; shapes as in the op's.

    Keys that all frames share stay single where no frame has keys of its own beside them.
    """
    keys = [*([] if k is None else [k]), *context_k]
    values = [*([] if v is None else [v]), *context_v]
    if k is None and all(isinstance(t.shape[1], int) and t.shape[1] == 1 for t in keys):
        q_BSC, k_BTC, v_BTC = q.flatten(1, 2), torch.cat(keys, 2)[:, 0], torch.cat(values, 2)[:, 0]
    else:
        k_BTC, v_BTC = (
            torch.cat([t.expand(-1, q.shape[1], -1, -1) for t in parts], 2).flatten(0, 1) for parts in (keys, values)
        )
        q_BSC = q.flatten(0, 1)
    by_head = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q_BSC, k_BTC, v_BTC))
    out: Tensor = F.scaled_dot_product_attention(*by_head)
    return out.transpose(1, 2).reshape(q.shape)


def trace(model: Model, spec: EngineSpec, shapes: Shapes) -> torch.export.ExportedProgram:
    """The graph as `torch.export` sees it; dimensions whose range is one number are constants.

    Raises:
        MachineError: torch cannot trace the graph over these shapes.
    """
    device, precision = torch.device(spec.device), getattr(torch, spec.precision)
    there = with_network_in(model, spec.graph, precision)
    steps = packaged_steps(device)
    try:
        module = fast_module(there, spec.graph, steps)
    except NotServed as error:
        _LOG.info("%s is compiled without the steps that change it: %s", spec.graph.name, error)
        module = there.build(spec.graph, attention(steps))
    module = moved(module.eval(), device)
    sizes, dims = _example(spec.graph, shapes, model)
    inputs = [t.to(device) for t in random_inputs(spec.graph, sizes, precision, seed=0).values()]
    axes: list[Any] = [{i: dims[d] for i, d in enumerate(t.dims) if d in dims} for t in spec.graph.inputs]
    context = [tuple(axes[3:])] if axes[3:] else []  # the context of a UNet is one *argument
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(module, tuple(inputs), dynamic_shapes=(*axes[:3], *context), strict=False)
    except Exception as error:  # torch.export's errors have no common base
        raise MachineError(f"{spec.graph.name} cannot be traced ({_reason(error)}).") from error


def moved(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on a device; a copy, where it has to move, for its weights are also the model's."""
    return module if all(p.device == device for p in module.parameters()) else copy.deepcopy(module).to(device)


def packaged_steps(device: torch.device) -> Steps:
    """The steps that a package for a device holds. On the CPU there is no Python to call our ops."""
    steps = choose_steps((), device.type) & _PACKAGED
    return steps if device.type == "cuda" else steps - {"anchor-attention"}


def _example(graph: GraphSpec, shapes: Shapes, model: Model) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes to trace with, all different where they may vary, and the dimensions that vary."""
    low, high = (shapes.sizes(graph, model.vae_factor, end) for end in (0, 2))
    sizes, dims, taken = dict(high), {}, set()
    named = sorted({d for tensor in graph.inputs for d in tensor.dims if isinstance(d, str)})
    for name in (name for name in named if not side_of(name)[1]):
        if low[name] == high[name]:
            continue
        step = graph.multiple * (model.vae_factor if name.startswith("image_") else 1) if name in _SIDES else 1
        least, most = max(low[name] // step, 1), high[name] // step
        dim = torch.export.Dim(f"{name}_units", min=least, max=most)
        dims[name] = step * dim if step > 1 else dim
        for halved in named:
            side, level = side_of(halved)
            if side == name and level:
                dims[halved] = (step >> level) * dim if step >> level > 1 else dim
        free = [n for n in range(most, max(least, 2) - 1, -1) if n * step not in taken]
        sizes[name] = (free[0] if free else most) * step
        taken.add(sizes[name])
    return sizes, dims


def _compile(program: torch.export.ExportedProgram, path: Path, name: str) -> None:
    try:
        with _quiet(), steady_compiler():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # compilers', linkers' and Inductor's own errors have no common base
        raise MachineError(f"{name} cannot be compiled here ({_reason(error)}).") from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _let_pass_out_of_memory(error: Exception) -> None:
    """Raise what callers answer with a smaller batch as it is; generated code loses the type and keeps the words."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    if "CUDA out of memory" in str(error):
        raise torch.OutOfMemoryError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """An exception's first line, not too long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


__all__ = [
    "CompiledBackend",
    "CompiledBuilder",
    "CompiledEngine",
    "attention",
    "fast_module",
    "joined_attention",
    "packaged_steps",
    "trace",
]
