"""A plan at work: the plan, which nothing changes, and beside it what counts, what the report tells, what adapts.

Whoever computes is handed a `Run`; whoever only decides is handed its `plan`.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from fairy.runtime.plan.plan import Plan
from fairy.runtime.record.journal import Journal
from fairy.runtime.record.progress import Monitor


@dataclass(slots=True)
class Count:
    """How far it is: micro-batches and segments that are done, and the denoising steps that were told so far."""

    batches: int = 0
    segments: int = 0
    steps: int = 0


@dataclass(slots=True)
class Tally:
    """What the report will tell.

    Attributes:
        workers: how many processes compute; lost_workers: those that ended before it did, in sentences.
        redone_batches: micro-batches that others did again for them.
        bank_bytes: of the largest bank.
        masked: a mask has left something to edit.
        fallbacks, notes: sentences; see `EditReport`.
        sha256: of the edited frames so far.
    """

    workers: int = 1
    lost_workers: list[str] = field(default_factory=list)
    redone_batches: int = 0
    bank_bytes: int = 0
    masked: bool = False
    fallbacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)


@dataclass(slots=True)
class Pace:
    """What gives way to the machine.

    Attributes:
        precision: the plan's, or float32 for the rest of a segment whose bank needed it.
        frames_at_once: the plan's micro-batch, or less from the moment the memory did not suffice.
    """

    precision: torch.dtype
    frames_at_once: int


@dataclass(frozen=True, slots=True)
class Run:
    """One edit at work; `journal`: where finished micro-batches are kept, and found, while a file is edited."""

    plan: Plan
    monitor: Monitor
    tally: Tally
    pace: Pace
    count: Count = field(default_factory=Count)
    journal: Journal | None = None

    @classmethod
    def of(cls, plan: Plan, monitor: Monitor) -> "Run":
        """A run that has not begun."""
        return cls(plan, monitor, Tally(notes=list(plan.source.notes)), Pace(plan.precision, plan.micro_batch))

    def tell_resumed(self) -> None:
        """Report that a micro-batch did not have to be denoised. Raises Cancelled."""
        self.count.batches += 1
        self.tell_step("frames", -1)

    def tell_step(self, stage: str, step: int) -> None:
        """Report that a denoising step of the anchors or of the current micro-batch is done. Raises Cancelled."""
        plan, count, steps = self.plan, self.count, len(self.plan.schedule)
        if stage == "anchors":
            self.monitor.tell("anchors", count.segments * steps + step + 1, len(plan.segments) * steps)
        else:
            # A batch that is computed again in float32 does not make the progress run backwards.
            count.steps = max(count.steps, count.batches * steps + step + 1)
            self.monitor.tell("frames", count.steps, plan.batches * steps)

    def note_first_frame(self) -> None:
        """Remember when the first edited frames were ready."""
        self.monitor.times_ms.setdefault("first_frame", self.monitor.elapsed_ms())
