"""One segment of a job on several workers: who computes what, and what happens when one of them is lost.

The first worker, the leader, computes phase A and broadcasts the bank; the others start their micro-batches at once
and wait for each step's keys and values. Micro-batches go to whichever worker has fewest; they come back in any order
and leave in theirs. A worker that ended, or was silent for too long, loses its micro-batches to the others. Whoever
lost the bank computes phase A again by itself: that takes no longer than getting it from another one, needs nobody
else, and gives the same bytes.

What is computed from a bank that the leader has not yet vouched for is held back: 16 bit may turn out not to suffice.
"""

import queue
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fairy.engines.engine import Usage
from fairy.export.steps import in_order
from fairy.kernels.errors import MachineError
from fairy.runtime.device import DTYPES
from fairy.runtime.executor import Edited, frames_of, load_anchors, load_latents, save_anchors, save_latents
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.record.run import Run
from fairy.runtime.video.wire import Message
from fairy.runtime.workers.process import Event, WorkerProcess
from fairy.runtime.workers.protocol import (
    describe_segment,
    error_of,
    pack_finished,
    pack_frames,
    unpack_edited,
)

_POLL_S = 0.1
_MOST_TRIES = 3
"""So many workers may be lost over one micro-batch; then it is the micro-batch that is at fault."""

Assignment = int | Literal["anchors"]


@dataclass(slots=True, eq=False)
class Member:
    """What the controller knows of one worker in one job.

    Attributes:
        tasks: numbers of the parts it has, and "anchors", oldest first.
        shares: its bank comes from the leader; complete: all of it has arrived.
        generation: grows when its bank is void; what was computed with an older one is not used.
        since: when it was last given something while it had nothing.
    """

    worker: WorkerProcess
    device: str
    tasks: deque[Assignment] = field(default_factory=deque)
    shares: bool = False
    complete: bool = False
    generation: int = 0
    since: float = 0.0


class Dispatch:
    """The controller of one segment of a job; without shots or a schedule of instructions, of all of it."""

    def __init__(
        self,
        number: int,
        run: Run,
        segment: int,
        workers: Sequence[tuple[WorkerProcess, str]],
        events: "queue.Queue[Event]",
        *,
        meeting: str,
        deadline_s: float,
        shares_bank: bool = True,
    ) -> None:
        """
        Args:
            number: of this dispatch; what workers say of another one is not heard.
            segment: number of the job's segment.
            workers: processes that are ready, with their devices.
            meeting: a file that does not exist yet, in a private folder.
            deadline_s: no worker that has something to do may be silent for longer.
            shares_bank: the first worker computes the anchors for all; else each does for itself.
        """
        self._number, self._run, self._events = number, run, events
        self._index, self._segment = segment, run.plan.segments[segment]
        self._first = sum(len(earlier.parts) for earlier in run.plan.segments[:segment])
        self._members = [Member(worker, device) for worker, device in workers]
        self._meeting, self._deadline_s, self._shares_bank = meeting, deadline_s, shares_bank
        self._window = 2 * len(workers) + 2
        self._anchor_pictures: list[Frames] = []
        self._anchors: dict[int, Frames] | None = None  # once edited
        self._pictures: dict[int, list[Frames]] = {}
        self._edited: dict[int, dict[int, Frames]] = {}
        self._again: list[int] = []
        self._tries: dict[int, int] = {}
        self._resumed: set[int] = set()
        self._held: list[tuple[Member, Event]] = []
        self._next = self._emitted = self._finished = self._anchor_steps = 0
        self._steps: dict[int, int] = {}
        self._digests: dict[str, str] = {}
        self._fallbacks: list[str] = []
        self._without_bank = False  # everything is decoded from latents that were kept
        self._compiled_steps: set[str] = set()

    @property
    def usage(self) -> Usage:
        """What the workers' backends ran."""
        return Usage(self._digests, tuple(dict.fromkeys(self._fallbacks)), in_order(self._compiled_steps))

    @property
    def workers(self) -> list[tuple[WorkerProcess, str]]:
        """The processes that were not lost, with their devices."""
        return [(member.worker, member.device) for member in self._members]

    @property
    def _continues(self) -> bool:
        """Whether another segment will need what the workers' banks hold of this one."""
        return self._run.plan.params.continue_look and self._index + 1 < len(self._run.plan.segments)

    def run(self, reads: Iterator[list[Frames]]) -> Generator[Edited, None, None]:
        """The segment's anchors, then its parts in order; see `Executor.edit`."""
        self._anchor_pictures = next(reads)
        self._begin()
        while self._anchors is None:
            self._turn(reads)
        yield self._anchor_pictures, self._anchors
        for part in range(len(self._segment.parts)):
            while part not in self._edited:
                self._turn(reads)
            self._emitted = part + 1
            yield self._pictures.pop(part), self._edited.pop(part)
        while self._continues and any(m.tasks or (m.shares and not m.complete) for m in self._members):
            self._turn(reads)  # everybody will need the whole bank
        self._run.count.segments += 1
        self._run.count.batches += self._finished

    def stop(self) -> None:
        """Have every worker forget the segment, wherever it is."""
        for member in self._members:
            self._post(member, {"do": "stop"})

    def _begin(self) -> None:
        description, initial = describe_segment(self._run.plan, self._index, self._anchor_pictures)
        for member in self._members:
            self._post(member, {"do": "job", **description}, initial)
        if not self._segment.anchors:
            self._anchors = {}
            return
        if self._is_whole() and (latents := load_anchors(self._run, self._index)) is not None:
            self._without_bank = True
            leader = self._members[0]
            self._assign(leader, "anchors")
            self._post(
                leader, self._decoding(None, self._segment.anchors), pack_finished(latents, self._anchor_pictures)
            )
            return
        if not self._shares_bank:
            for member in self._members:
                self._assign_anchors(member, {})
            return
        leader, *others = self._members
        for rank, member in enumerate(others, start=1):
            member.shares = True
            self._post(member, {"do": "bank", "generation": 0, **self._group(member, rank)})
        self._assign_anchors(leader, self._group(leader, 0) if others else {})

    def _is_whole(self) -> bool:
        """Whether an interrupted edit had finished all of the segment, so that nobody needs the bank."""
        journal, parts = self._run.journal, enumerate(self._segment.parts, start=self._first)
        return journal is not None and not self._continues and all(journal.has(i) for i, part in parts if part.frames)

    def _fill_banks(self) -> None:
        """Something has to be computed after all: everybody computes the bank for itself."""
        self._without_bank = False
        for member in self._members:
            self._assign_anchors(member, {})

    def _decoding(self, part: int | None, frames: Sequence[int]) -> Message:
        precision = str(self._run.pace.precision).removeprefix("torch.")
        known = {"precision": precision} if self._without_bank else {}
        return {"do": "decode", "part": part, "frames": frames, **known}

    def _group(self, member: Member, rank: int) -> Message:
        # A transfer's clock starts when its step is there; who is really late is lost by the controller's own deadline.
        facts = {"meeting": self._meeting, "rank": rank, "size": len(self._members)}
        rest = {"steps": len(self._run.plan.schedule), "timeout_s": 2 * self._deadline_s}
        return {"group": facts | rest, "device": member.device}

    def _turn(self, reads: Iterator[list[Frames]]) -> None:
        """Hand out what can be handed out, then hear what one worker says, or look who is silent for too long."""
        self._run.monitor.check()
        self._hand_out(reads)
        try:
            event = self._events.get(timeout=_POLL_S)
        except queue.Empty:
            self._check_deadlines()
            return
        member = next((m for m in self._members if m.worker is event.worker), None)
        if member is None:
            return  # of a worker that was given up
        if event.message is None:
            member.worker.kill()
            self._lose(member, f"ended ({member.worker.last_words()})")
        elif event.message.get("job") == self._number:
            self._hear(member, event)

    def _hand_out(self, reads: Iterator[list[Frames]]) -> None:
        """Parts for whoever has fewest: two each, so that nobody waits for the controller; one each near the end."""
        while self._members:
            member = min(self._members, key=lambda m: len(m.tasks))
            remaining = len(self._segment.parts) - self._next + len(self._again)
            if len(member.tasks) >= (2 if remaining > len(self._members) else 1):
                return
            part = self._take_part(reads)
            if part is None:
                return
            frames = self._segment.parts[part].frames
            if not frames:
                self._edited[part] = {}
                continue
            self._assign(member, part)
            pictures = frames_of(self._segment.parts[part], self._pictures[part])
            latents = load_latents(self._run, self._first + part) if part not in self._tries else None
            if latents is not None:
                self._resumed.add(part)
                self._post(member, self._decoding(part, frames), pack_finished(latents, pictures))
                continue
            if self._without_bank:  # what was kept of this part is damaged
                self._fill_banks()
            self._post(member, {"do": "part", "part": part, "frames": frames}, pack_frames(pictures))

    def _take_part(self, reads: Iterator[list[Frames]]) -> int | None:
        """The first part that nobody has; None where there is none, or too many wait to leave."""
        if self._again:
            self._again.sort(reverse=True)
            return self._again.pop()
        if self._next == len(self._segment.parts) or self._next >= self._emitted + self._window:
            return None
        part, self._next = self._next, self._next + 1
        self._pictures[part] = next(reads)
        return part

    def _assign(self, member: Member, task: Assignment) -> None:
        if not member.tasks:
            member.since = time.monotonic()
        member.tasks.append(task)

    def _assign_anchors(self, member: Member, group: Message) -> None:
        self._assign(member, "anchors")
        message = {"do": "anchors", "generation": member.generation, **group}
        self._post(member, message, pack_frames(self._anchor_pictures))

    def _post(self, member: Member, message: Message, payload: bytes = b"") -> None:
        member.worker.post(message | {"job": self._number}, payload)

    def _hear(self, member: Member, event: Event) -> None:
        message = event.message or {}
        what = message["is"]
        if what == "step":
            self._hear_step(member, message)
        elif what == "bank":
            self._hear_of_bank(member, message)
        elif what in ("anchors", "part", "undone", "error"):
            task: Assignment = "anchors" if message["part"] is None else int(message["part"])
            if task in member.tasks:  # else it is the job itself that it could not begin
                member.tasks.remove(task)
            if member.shares and self._anchors is None:
                self._held.append((member, event))
            else:
                self._accept(member, event)

    def _accept(self, member: Member, event: Event) -> None:
        """Use a result, unless it came of a bank that is void."""
        message = event.message or {}
        part = message["part"]
        if part is not None and (message["is"] == "undone" or message["generation"] != member.generation):
            self._again.append(part)
        elif message["is"] == "error":
            raise error_of(message)
        elif message["is"] == "anchors":
            self._note(message)
            self._accept_anchors(message, event.payload)
        else:
            self._note(message)
            numbers = self._segment.parts[part].frames
            edited, latents = unpack_edited(
                event.payload, len(numbers), self._run.plan.result_size, self._run.plan.latent_shape
            )
            if part not in self._resumed:
                save_latents(self._run, self._first + part, latents)
                self._finished += 1
            self._edited[part] = dict(zip(numbers, edited, strict=True))
            self._steps.pop(part, None)

    def _accept_anchors(self, message: Message, payload: bytearray) -> None:
        if self._anchors is None:
            anchors, plan = self._segment.anchors, self._run.plan
            frames, latents = unpack_edited(payload, len(anchors), plan.result_size, plan.latent_shape)
            self._anchors = dict(zip(anchors, frames, strict=True))
            if not self._without_bank:
                save_anchors(self._run, self._index, latents, DTYPES[message["precision"]])
            self._run.tally.bank_bytes = max(self._run.tally.bank_bytes, message["bank_bytes"])
            self._release_held()

    def _release_held(self) -> None:
        """Look again at what was held back: the bank it came of is good, or void, by now."""
        held, self._held = self._held, []
        for member, event in held:
            if member.shares and self._anchors is None:
                self._held.append((member, event))
            else:
                self._accept(member, event)

    def _hear_step(self, member: Member, message: Message) -> None:
        run = self._run
        if message["stage"] == "anchors":
            self._anchor_steps = max(self._anchor_steps, message["done"])
            before = run.count.segments * len(run.plan.schedule)
            run.monitor.tell("anchors", before + self._anchor_steps, len(run.plan.segments) * len(run.plan.schedule))
        elif member.tasks and isinstance(member.tasks[0], int):
            # A micro-batch that is done again does not make the progress run backwards.
            part = member.tasks[0]
            self._steps[part] = max(self._steps.get(part, 0), message["done"])
            done = (run.count.batches + self._finished) * len(run.plan.schedule) + sum(self._steps.values())
            run.count.steps = max(run.count.steps, done)
            run.monitor.tell("frames", run.count.steps, run.plan.batches * len(run.plan.schedule))

    def _hear_of_bank(self, member: Member, message: Message) -> None:
        if message["generation"] != member.generation:
            return
        if message.get("void"):
            for other in self._sharing(complete_too=True):
                self._recompute(other)
        elif message.get("complete"):
            member.complete = True
        elif member.shares:
            self._give_up_sharing(member)

    def _sharing(self, *, complete_too: bool) -> list[Member]:
        return [m for m in self._members if m.shares and (complete_too or not m.complete)]

    def _give_up_sharing(self, lost: Member) -> None:
        """A member can take part in the broadcasts no more: nobody can, for they wait for each other.

        Where sockets are closed they would notice; NCCL's transfers on one machine would wait for ever, and with them
        whatever synchronises the leader's GPU.
        """
        for member in self._members:
            if not member.shares and member is not lost:
                self._post(member, {"do": "bank_off"})
        for member in self._sharing(complete_too=False):
            self._recompute(member)

    def _recompute(self, member: Member) -> None:
        """Have a member compute the bank for itself; its micro-batches that needed the lost one come back."""
        member.shares = member.complete = False
        member.generation += 1
        self._assign_anchors(member, {})
        self._release_held()

    def _lose(self, member: Member, reason: str) -> None:
        """Go on without a worker."""
        self._members.remove(member)
        name = f"Worker {member.worker.number} on {member.device}"
        self._run.tally.lost_workers.append(f"{name} {reason}.")
        for part in [task for task in member.tasks if task != "anchors"]:
            self._give_back(part, reason)
        if not self._members:
            raise MachineError(f"No worker is left: {' '.join(self._run.tally.lost_workers)} Start the edit again.")
        if not self._segment.anchors:
            return
        if self._without_bank and self._anchors is None:
            self._fill_banks()
        if member.shares and not member.complete:
            self._give_up_sharing(member)
            return
        led = not member.shares and self._anchors is None
        for other in self._sharing(complete_too=led):
            self._recompute(other)

    def _give_back(self, part: int, reason: str) -> None:
        self._again.append(part)
        self._run.tally.redone_batches += 1
        self._tries[part] = self._tries.get(part, 0) + 1
        if self._tries[part] >= _MOST_TRIES:
            frames = self._segment.parts[part].frames
            raise MachineError(
                f"Frames {frames[0]} to {frames[-1]} were given up after {_MOST_TRIES} workers were lost over them; "
                f"the last one {reason}."
            )

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for member in list(self._members):
            if member.tasks and now - max(member.worker.heard, member.since) > self._deadline_s:
                member.worker.kill()
                silent = f"was silent for {self._deadline_s:g} s and was ended"
                self._lose(member, f"{silent}; worker_timeout_s (--worker-timeout) gives more time")

    def _note(self, message: Message) -> None:
        """Put what a worker tells for the report where the report is made of."""
        times = self._run.monitor.times_ms
        for stage, ms in message["times_ms"].items():
            times[stage] = times.get(stage, 0.0) + ms
        self._run.tally.notes += message["notes"]
        self._run.tally.fallbacks += message["fallbacks"]
        self._digests.update(message["digests"])
        self._fallbacks += message["usage"]
        self._compiled_steps.update(message.get("steps", ()))
