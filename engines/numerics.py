"""What torch's libraries may and may not choose while an engine runs.

The promise is the same bytes for any number of workers, so no library may time algorithms and take the fastest, nor
take one whose sums come in any order. And float32 is float32: cuDNN's convolutions otherwise round their inputs to
TF32, which has float16's mantissa. cuBLAS is left alone: on one stream it gives the same bytes every time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

_INDUCTOR = ("deterministic",)  # it otherwise times matrix products and reductions, in every worker for itself


@dataclass(slots=True)
class _Switch:
    """A process-wide setting that several threads may hold at once: the first sets it, the last puts it back."""

    name: str
    wanted: bool
    holders: int = 0
    before: bool | None = None
    lock: Any = field(default_factory=threading.Lock)

    def hold(self) -> None:
        with self.lock:
            if self.holders == 0:
                try:
                    self.before = getattr(torch.backends.cudnn, self.name)
                    setattr(torch.backends.cudnn, self.name, self.wanted)
                except RuntimeError:  # someone set torch's newer precisions of single operators: left alone
                    self.before = None
            self.holders += 1

    def let_go(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0 and self.before is not None:
                setattr(torch.backends.cudnn, self.name, self.before)


_DETERMINISTIC = (_Switch("deterministic", True), _Switch("benchmark", False))
_WHOLE = _Switch("allow_tf32", False)


@contextmanager
def steady_numerics(precision: str) -> Iterator[None]:
    """Within it an engine of `precision` gives the same bytes for the same call, and "float32" is not rounded."""
    held = (*_DETERMINISTIC, _WHOLE) if precision == "float32" else _DETERMINISTIC
    for switch in held:
        switch.hold()
    try:
        yield
    finally:
        for switch in held:
            switch.let_go()


@contextmanager
def steady_compiler() -> Iterator[None]:
    """Within it Inductor chooses no algorithm by timing it."""
    from torch._inductor import config

    known = {name: True for name in _INDUCTOR if hasattr(config, name)}
    with config.patch(known):
        yield
