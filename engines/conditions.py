"""What a UNet engine is told beside pictures and anchors: text and time, or what it computed of them beforehand.

Engines keep nothing between calls. One that can compute something once a job or once a step does so in `prepare`, hands
it out as `Conditions`, and gets it back with every call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from fairy.engines.engine import Engine


@dataclass(frozen=True, slots=True)
class Conditions:
    """Inputs of an engine that do not depend on the pictures.

    Attributes:
        constant: the same at every step, by the input's name.
        by_step: what a step adds.
    """

    constant: Mapping[str, Tensor]
    by_step: Sequence[Mapping[str, Tensor]]

    def at(self, step: int) -> dict[str, Tensor]:
        """All of one step."""
        return {**self.constant, **self.by_step[step]}


@runtime_checkable
class Preparing(Protocol):
    """An engine that computes ahead of the loop what its calls share."""

    def prepare(self, text: Tensor, timesteps: Tensor, frames: int) -> Conditions:
        """What its calls take in place of `text` [groups, tokens, channels] and `timestep`.

        Args:
            timesteps: [steps], float32, the same for all frames.
            frames: how many pictures a call has.
        """
        ...


def prepare(engine: Engine, text: Tensor, timesteps: Tensor, frames: int) -> Conditions:
    """The conditions of calls of any UNet engine; arguments as of `Preparing.prepare`."""
    if isinstance(engine, Preparing):
        return engine.prepare(text, timesteps, frames)
    return Conditions({"text": text}, [{"timestep": t.expand(frames)} for t in timesteps])
