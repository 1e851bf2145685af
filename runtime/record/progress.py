"""How a job tells what it is doing, and how it is told to stop."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fairy.kernels.errors import Cancelled, InputError


@dataclass(frozen=True, slots=True)
class Progress:
    """One step forward.

    Attributes:
        stage: "probe" (frames counted), "shots" (frames looked at for cuts), "masks" (frames looked at for what is
            named), "anchors" or "frames" (denoising steps of micro-batches); of a cascade the names of its stages
            (steps of the first, windows of the others); "story" (stretches of codes).
        done, total: units of the stage; total 0 = not known yet.
    """

    stage: str
    done: int
    total: int


@dataclass(slots=True)
class Monitor:
    """Progress, cancellation and stage times of one job; `started` is when it was asked for."""

    on_progress: Callable[[Progress], object] | None = None
    cancel: threading.Event | None = None
    times_ms: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.cancel is not None and not hasattr(self.cancel, "is_set"):
            raise InputError("is not possible", name="cancel", value=self.cancel, remedy="give a threading.Event")

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress, after looking whether the job shall stop. Raises Cancelled."""
        self.check()
        if self.on_progress is not None:
            self.on_progress(Progress(stage, done, total))

    def check(self) -> None:
        """Raise Cancelled where the caller asked to stop."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("The edit was cancelled; no video was written.")

    def elapsed_ms(self) -> float:
        """Wall time since the job was asked for."""
        return (time.perf_counter() - self.started) * 1e3

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a block, in ms, to a stage of the report."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times_ms[stage] = self.times_ms.get(stage, 0.0) + (time.perf_counter() - start) * 1e3
