"""A builder whose engines are a few bytes on disk and eager in memory, and which fails where a test wants it to."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fairy.engines.eager import EagerEngine
from fairy.engines.engine import EngineSpec
from fairy.export.bases.stable_diffusion import build_graph
from fairy.kernels.errors import Cancelled


class Spoiled:
    """An engine with its outputs changed."""

    def __init__(self, engine: EagerEngine, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.engine, self.change, self.spec = engine, change, engine.spec

    def __call__(self, inputs, out=None):
        outputs = {name: self.change(tensor) for name, tensor in self.engine(inputs).items()}
        return outputs | {name: target.copy_(outputs[name]) for name, target in (out or {}).items()}

    def close(self) -> None:
        self.engine.close()


@dataclass
class FakeBuilder:
    """Builds `engine.json`, which names the graph, and `parts/weights.bin`.

    Attributes:
        changes: how the outputs of an engine are spoiled, by graph.
        environment_error, load_error: raised where they are given; load_error by graph.
        built, loaded: names of graphs, in order.
    """

    checkpoint: object
    name: str = "onnxruntime"
    version: str = "1"
    environment_error: Exception | None = None
    load_error: dict[str, Exception] = field(default_factory=dict)
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)
    built: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def environment(self, device: torch.device) -> dict[str, str]:
        if self.environment_error is not None:
            raise self.environment_error
        return {"fake": self.version}

    def build(self, checkpoint, spec, shapes, options, folder: Path, on_progress) -> None:
        assert not list(folder.iterdir())
        self.built.append(spec.graph.name)
        for done in range(2):
            if not on_progress("make", done, 2):
                raise Cancelled("The build was cancelled.")
            (folder / "parts").mkdir(exist_ok=True)
            (folder / "parts" / "weights.bin").write_bytes(spec.graph.name.encode() * 1000)
        (folder / "engine.json").write_text(json.dumps({"graph": spec.graph.name}))

    def load(self, spec: EngineSpec, folder: Path, device: torch.device):
        name = spec.graph.name
        self.loaded.append(name)
        if name in self.load_error:
            raise self.load_error[name]
        assert json.loads((folder / "engine.json").read_text()) == {"graph": name}
        assert (folder / "parts" / "weights.bin").read_bytes() == name.encode() * 1000
        engine = EagerEngine(spec, build_graph(self.checkpoint, spec.graph))
        return Spoiled(engine, self.changes[name]) if name in self.changes else engine
