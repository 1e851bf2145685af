"""An engine's identity: everything that can change its bytes, and nothing else.

The digest of a key is the engine's name in the store. What a caller who needs an engine knows beforehand (the model,
the graph, the precision, this machine, this version) is the key's *request*; shapes and options are the rest, chosen
when the engine was built.
"""

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairy.engines.engine import Builder, BuildOptions, EngineSpec, Shapes
from fairy.export.graphs import GraphSpec
from fairy.export.model import Model
from fairy.kernels.errors import MachineError

_EXPORTING = ("torch", "diffusers", "transformers")  # what turns a checkpoint into a graph, whatever the backend
_CHOSEN_WHEN_BUILT = ("shapes", "options")
_NOT_WEIGHTS = ("transformers_version", "architectures", "dtype", "torch_dtype")  # of a config.json


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that can change an engine's bytes.

    Attributes:
        weights: digest of the network's weights and configuration; see `weights_digest`.
        graph: what it computes.
        backend, device, precision: "onnxruntime", "cpu" or "cuda", "float32".
        shapes: what it must serve; None for a backend whose engines serve any shape.
        options: how it is built. The timing cache is not part of it: it saves time and names no result.
        environment: versions of everything that builds it and, on CUDA, the GPU, sorted by name.
        source: fingerprint of our own source files that make it; see `source_fingerprint`.
    """

    weights: str
    graph: GraphSpec
    backend: str
    device: str
    precision: str
    shapes: Shapes | None
    options: BuildOptions
    environment: tuple[tuple[str, str], ...]
    source: str

    def to_json(self) -> dict[str, Any]:
        """The key as plain values."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        options = asdict(self.options)
        del options["timing_cache"]
        return plain | {
            "graph": asdict(self.graph),
            "shapes": None if self.shapes is None else asdict(self.shapes),
            "options": options,
            "environment": dict(sorted(self.environment)),
        }

    @property
    def digest(self) -> str:
        """SHA-256 over the key's canonical JSON, 64 hexadecimal digits."""
        return canonical_digest(self.to_json())


def make_key(
    model: Model,
    spec: EngineSpec,
    builder: Builder,
    environment: tuple[tuple[str, str], ...],
    shapes: Shapes | None = None,
    options: BuildOptions | None = None,
) -> EngineKey:
    """The key of the engine that `builder` makes of a model's graph here and now; see `full_environment`."""
    return EngineKey(
        weights=weights_digest(model, model.network_of(spec.graph)),
        graph=spec.graph,
        backend=spec.backend,
        device=spec.device.partition(":")[0],
        precision=spec.precision,
        shapes=shapes,
        options=options or BuildOptions(),
        environment=environment,
        source=source_fingerprint(type(builder).__module__),
    )


def canonical_digest(value: Any) -> str:
    """SHA-256 over a value's JSON with sorted names and no spaces, 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def request_digest(key: Mapping[str, Any]) -> str:
    """The digest of a key's JSON without what was chosen when the engine was built."""
    return canonical_digest({name: value for name, value in key.items() if name not in _CHOSEN_WHEN_BUILT})


def full_environment(builder: Builder, device: torch.device) -> tuple[tuple[str, str], ...]:
    """A builder's environment with what every build depends on: the exporting libraries and the kind of machine.

    Raises:
        MachineError: a package that the backend needs is not installed, or the backend does not work here.
    """
    try:
        own = builder.environment(device)
    except ImportError as error:
        raise MachineError(f"Backend {builder.name!r} needs the package {error.name}; install it.") from error
    common = {name: _version(name) for name in _EXPORTING}
    machine = {"machine": f"{sys.platform}-{os.uname().machine}"}
    return tuple(sorted({**common, **machine, **own}.items()))


def weights_digest(model: Model, part: str) -> str:
    """SHA-256 of one network: of its safetensors files and configuration, or of its tensors where it has no files.

    Files are read anew when their path, size, time or inode changed since this process last read them.
    """
    network = model.network(part)
    config = _config(network)
    files = model.weight_files(part)
    if files is None:
        parts = [f"{name} {tensor}" for name, tensor in _tensor_digests(network)]
    else:
        parts = [f"{path.name} {file_digest(path)}" for path in files]
        parts += [f"lora {file_digest(path)} {scale}" for path, scale in model.additions(part)]
    return canonical_digest([config, parts])


def file_digest(path: Path) -> str:
    """SHA-256 of a file; read anew when its path, size, time or inode changed since this process last read it."""
    return _file_digest(*_identity(path))


@lru_cache(maxsize=32)
def source_fingerprint(module: str) -> str:
    """SHA-256 of the source of a module of ours and of every module of ours that it imports, and of kernel configs.

    Imports inside functions count: that is how builders load what they need.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source_file(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += _imports(path)
    if "fairy.kernels.tuning" in found:
        configs = sorted((found["fairy.kernels.tuning"].parent / "configs").glob("*.json"))
        found |= {f"configs/{path.name}": path for path in configs}
    return canonical_digest([[name, hashlib.sha256(found[name].read_bytes()).hexdigest()] for name in sorted(found)])


def _source_file(module: str) -> Path | None:
    if not module.startswith("fairy."):
        return None
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # a name inside a module, taken for a module
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _config(network: Any) -> dict[str, Any]:
    """What a network's configuration says about its arithmetic: without names of files, versions and loading notes."""
    config = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
    kept = {name: value for name, value in config.items() if name[0] != "_" and name not in _NOT_WEIGHTS}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _identity(path: Path) -> tuple[str, int, int, int]:
    facts = path.stat()
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino


@lru_cache(maxsize=256)
def _file_digest(path: str, size: int, modified_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_digests(module: nn.Module) -> Iterator[tuple[str, str]]:
    from safetensors.torch import save

    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous().clone()
        yield name, hashlib.sha256(save({"t": plain})).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
