"""Which backend runs: by name, or the best one that is ready.

Each backend is a file of its own in this folder; those that need further packages are imported when they are asked for.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch

from fairy.engines.backend_names import BACKENDS, BUILDABLE, BUILDERS
from fairy.engines.eager import EagerBackend
from fairy.engines.engine import Backend, Builder
from fairy.engines.store.key import full_environment
from fairy.engines.store.store import EngineStore
from fairy.engines.stored import NotBuilt, StoredBackend
from fairy.export.model import Model
from fairy.export.steps import FP8_LINEARS, NO_STEPS, Steps, check_steps, choose_steps
from fairy.kernels.errors import FairyError, InputError, MachineError

_LOG = logging.getLogger(__name__)
# What "auto" looks for in the store, best first. It ends with the network as PyTorch runs it: recorded on a GPU.
_PREFERRED = {"cuda": ("tensorrt", "compiled"), "cpu": ("onnxruntime",)}

_WITH_STEPS = ("compiled", "cuda-graphs")

Builders = Callable[[str], Builder]


def make_builder(name: str) -> Builder:
    """The builder of a backend.

    Raises:
        InputError: nothing is built for that name. MachineError: a package that it needs is not installed.
    """
    if name not in BUILDERS:
        raise InputError(f"Engines of backend {name!r} are not built; choose one of {', '.join(BUILDABLE)}.")
    module, builder = BUILDERS[name]
    try:
        made: Builder = getattr(import_module(module), builder)()
    except ModuleNotFoundError as error:
        if error.name == module:
            raise InputError(f"Backend {name!r} is not part of this version; choose another one.") from error
        raise MachineError(f"Backend {name!r} needs the package {error.name}; install it.") from error
    return made


def check_backend(name: str, device: torch.device, without: Sequence[str] = (), also: Sequence[str] = ()) -> None:
    """Refuse, before a model is loaded, a backend that does not exist or cannot work on this device.

    Args:
        without: steps of the compiled path to leave out.
        also: steps that are not exact, asked for.

    Raises:
        InputError: there is no backend or step of that name, or it cannot serve here. MachineError: its libraries do
            not work here.
    """
    _check_name(name)
    check_without(name, without)
    check_also(name, device, also)
    if name == "cuda-graphs":
        _check_gpu(device)
    if name in BUILDABLE:
        full_environment(make_builder(name), device)


def make_backend(
    name: str,
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    store: EngineStore | None = None,
    builders: Builders | None = None,
    without: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Backend:
    """The backend of that name, its engines loaded; "auto" is the best one that is ready, decided here and logged once.

    "compiled" alone needs no engines: where the store has none, or steps are left out, graphs are compiled when they
    are first called.

    Args:
        store: where built engines lie; None = the user's own store.
        builders: gives the builder of a backend by its name; None = `make_builder`.
        without: steps of the compiled path to leave out; see `fairy.export.steps`.
        also: steps that are not exact, asked for; no engine of the store has them.

    Raises:
        InputError: there is no backend of that name, or the store lacks its engines; says what to run.
        MachineError: its libraries or an engine do not work here.
    """
    _check_name(name)
    check_without(name, without)
    check_also(name, device, also)
    store = store or EngineStore()
    builders = builders or make_builder
    if name == "auto":
        return _best(model, device, dtype, store, builders)
    if name == "eager":
        return EagerBackend(model, device, dtype)
    if name == "cuda-graphs":
        _check_gpu(device)
        from fairy.engines.graphed import GraphedBackend

        return GraphedBackend(model, device, dtype, without=without, also=also)
    if not (without or also):
        backend = StoredBackend(name, store, model, device, dtype, builder=builders(name))
        try:
            return _prepared(backend, model)
        except NotBuilt:
            if name != "compiled":
                raise
    from fairy.engines.compiled import CompiledBackend

    return CompiledBackend(model, device, dtype, without=without, also=also)


def check_without(backend: str, without: Sequence[str]) -> None:
    """Raise InputError where a step to leave out does not exist, or the backend has none."""
    if check_steps(without) and backend not in _WITH_STEPS:
        raise InputError(
            f"Backend {backend!r} has no steps to leave out; choose one of {', '.join(_WITH_STEPS)}, or leave none out."
        )


def check_also(backend: str, device: torch.device, also: Sequence[str]) -> None:
    """Refuse steps that are asked for where they cannot serve.

    Raises:
        InputError: there is no such step, or the backend or the GPU cannot do it. MachineError: triton is missing.
    """
    if FP8_LINEARS not in check_steps(also):
        return
    if backend not in _WITH_STEPS:
        raise InputError(
            f"Backend {backend!r} has no linear layers in 8 bit; choose one of {', '.join(_WITH_STEPS)}, or leave "
            "linears out."
        )
    if find_spec("triton") is None:
        raise MachineError("Linear layers in 8 bit need the package triton; install it, or leave linears out.")
    import_module("fairy.kernels.fp8_linear").check_capability(device)


def serves(backend: str, device: torch.device, also: Iterable[str]) -> bool:
    """Whether these steps can be asked for: see `check_also`."""
    try:
        check_also(backend, device, tuple(also))
    except FairyError:
        return False
    return True


def steps_of(backend: str, device: torch.device, without: Sequence[str] = (), also: Sequence[str] = ()) -> Steps:
    """The steps that a backend asked for by name runs with, where it compiles or records itself."""
    if backend == "cuda-graphs":
        from fairy.engines.graphed import graphed_steps

        return graphed_steps(device, without, also)
    return choose_steps(without, device.type, also) if backend == "compiled" else NO_STEPS


def _best(model: Model, device: torch.device, dtype: torch.dtype, store: EngineStore, builders: Builders) -> Backend:
    """The first preferred backend whose engines all load; why a better one was not taken goes into the report."""
    reasons: list[str] = []
    for name in _PREFERRED[device.type] if store.engines() else ():
        try:
            backend = StoredBackend(name, store, model, device, dtype, builder=builders(name), substitute=True)
            _prepared(backend, model)
        except NotBuilt as error:
            _LOG.debug("%s", error)
        except FairyError as error:
            reasons.append(f"{name} was not used: {error}")
        else:
            _LOG.info("backend %s, engines of %s", name, store.root)
            return backend
    last = _last_resort(device)
    _LOG.info("backend %s%s", last.name, "".join(f"; {reason}" for reason in reasons))
    return last(model, device, dtype, fallbacks=tuple(reasons))


def _last_resort(device: torch.device) -> type[EagerBackend]:
    """What runs where no engines are: networks as PyTorch runs them, recorded on a GPU."""
    if device.type != "cuda":
        return EagerBackend
    from fairy.engines.graphed import GraphedBackend

    return GraphedBackend


def _prepared(backend: StoredBackend, model: Model) -> StoredBackend:
    graphs = model.graphs()
    try:
        backend.prepare(graphs[name] for name in model.usual_graphs)
    except BaseException:
        backend.close()
        raise
    return backend


def _check_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError("Backend 'cuda-graphs' records CUDA graphs and needs a GPU; choose auto or eager.")


def _check_name(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        raise InputError(f"Backend {name!r} is not available; choose auto or one of {', '.join(BACKENDS)}.")
