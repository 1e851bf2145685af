"""Training state on disk: written whole or not at all, resumed to the same weights as an uninterrupted run."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

Tensors = dict[str, torch.Tensor]


@dataclass(slots=True)
class Trainee:
    """A module in training: its optimisers, the moving average of its weights, and the steps done so far."""

    module: nn.Module  # on its device
    optimisers: tuple[torch.optim.Optimizer, ...]
    average: Tensors
    step: int = 0
    losses: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    writes: bool = True  # files and the log; of several processes one does

    @classmethod
    def start(
        cls, module: nn.Module, optimisers: tuple[torch.optim.Optimizer, ...], *, writes: bool = True
    ) -> "Trainee":
        """Nothing done yet; the average starts at the present weights."""
        average = {k: v.detach().clone() for k, v in module.state_dict().items()}
        return cls(module, optimisers, average, writes=writes)

    def update(self, loss: torch.Tensor, learning_rate: float, decay: float = 0.999) -> None:
        """One step of the optimisers with clipped gradients, then the moving average of the weights."""
        self.module.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            optimiser.step()
        self.step += 1
        self._average(min(decay, (1 + self.step) / (10 + self.step)))

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    def run(
        self,
        path: Path,
        loss_at: Callable[[int], torch.Tensor],
        *,
        steps: int,
        peak: float,
        deadline: float,
        save_every: int = 500,
        decay: float = 0.999,
    ) -> "Trainee":
        """Trains until so many steps are done or ``deadline`` (time.monotonic) has passed, and goes on from ``path``.

        Args:
            loss_at: the loss of a step, by its number alone.
            peak: the learning rate before it falls; decay: of the average of the weights.
        """
        self.resume(path)
        while self.step < steps and time.monotonic() < deadline:
            loss = loss_at(self.step)
            self.update(loss, learning_rate(peak, self.step, steps), decay)
            self.log(float(loss.detach()), path)
            if self.step % save_every == 0:
                self.save(path)
        self.save(path)
        return self

    def log(self, loss: float, path: Path) -> None:
        """Keeps the mean loss of every 100 steps, prints it, and saves every 500 steps."""
        self.recent.append(loss)
        if len(self.recent) == 100:
            self.losses.append(sum(self.recent) / 100)
            self.recent.clear()
            if self.writes:
                print(f"{path.stem} step {self.step} loss {self.losses[-1]:.5f}", flush=True)
        if self.step % 500 == 0:
            self.save(path)

    def save(self, path: Path) -> None:
        """Weights, average and the optimisers' state in one safetensors file."""
        if not self.writes:
            return
        tensors = {f"weights/{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        for number, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser/{number}/{index}/{k}": v for k, v in state.items()}
        notes = {"step": str(self.step), "losses": json.dumps(self.losses), "recent": json.dumps(self.recent)}
        save_tensors(path, tensors, notes)

    def load(self, path: Path) -> None:
        """Continues where ``save`` left off."""
        tensors, notes = load_file(path), read_notes(path)
        self.module.load_state_dict(_part(tensors, "weights/"))
        self.average = {k: v.to(self.average[k].device) for k, v in _part(tensors, "average/").items()}
        self.step, self.losses = int(notes["step"]), json.loads(notes["losses"])
        self.recent = json.loads(notes.get("recent", "[]"))
        for number, optimiser in enumerate(self.optimisers):
            _load_optimiser(optimiser, _part(tensors, f"optimiser/{number}/"))

    def resume(self, path: Path) -> None:
        """``load`` if there is something to continue."""
        if path.exists():
            self.load(path)


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: Tensors) -> None:
    states: dict[int, Tensors] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        states.setdefault(int(index), {})[key] = value
    groups: list[Any] = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": states, "param_groups": groups})


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_tensors(path: Path, tensors: Tensors, notes: dict[str, str] | None = None) -> None:
    """A safetensors file that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial, notes)
    os.replace(partial, path)


def read_notes(path: Path) -> dict[str, str]:
    """The text notes in a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def load_average(module: nn.Module, path: Path) -> None:
    """Loads the averaged weights of a checkpoint."""
    module.load_state_dict(_part(load_file(path), "average/"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def save_json(path: Path, content: object) -> None:
    """A JSON file that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def learning_rate(peak: float, step: int, steps: int, warm_up: int = 50) -> float:
    """Linear warm-up, a plateau, and a straight line to zero over the last 40 % of the steps."""
    left = (steps - step) / (0.4 * steps)
    return peak * min(1.0, (step + 1) / warm_up, max(left, 0.02))
