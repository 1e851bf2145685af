"""The worker processes of an Editor: started once, given one job after another, replaced when they were lost."""

import itertools
import queue
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fairy.engines.backends import steps_of
from fairy.engines.engine import Engine, Usage
from fairy.export.graphs import GraphSpec
from fairy.export.lora import Lora
from fairy.kernels.errors import FairyError, MachineError
from fairy.runtime.executor import Edited
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.record.run import Run
from fairy.runtime.temporary import WorkingFolder
from fairy.runtime.video.wire import Message
from fairy.runtime.workers.dispatch import Dispatch
from fairy.runtime.workers.nursery import Nursery, can_fork
from fairy.runtime.workers.process import COMMAND, Event, WorkerProcess, environment, run_command
from fairy.runtime.workers.protocol import error_of

_POLL_S = 0.1
_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What every worker loads, and how long it may take.

    Attributes:
        model, variant: a folder in diffusers' format, and which of its files.
        devices: one for every worker.
        dtype, backend, store, threads, without, also, bank: as for `Editor.from_pretrained`, resolved.
        decoder: the folder of a small decoder, if there is one. loras: with absolute paths. config:
            where `model` is one file, the folder that has its configuration.
        deadline_s: no worker that has something to do may be silent for longer: the time for one denoising step, or
            for compiling where a backend does that on the spot. start_deadline_s: the same for loading the model.
        controls, depth_estimator: folders of what guides edits, and how strongly. ip_adapter: the file of its weights.
        command: what starts a worker; None = on the CPU a fork of one process (`nursery.py`), else a new one.
    """

    model: Path
    variant: str | None
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    backend: str
    store: Path
    threads: int = 1
    without: tuple[str, ...] = ()
    bank: str = "device"
    decoder: Path | None = None
    deadline_s: float = 600.0
    start_deadline_s: float = 600.0
    command: Sequence[str] | None = None
    also: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    config: Path | None = None
    controls: tuple[tuple[Path, float], ...] = ()
    depth_estimator: Path | None = None
    ip_adapter: Path | None = None


class WorkerPool:
    """An `Executor` of several processes. To the Editor it is a backend too, one whose engines are elsewhere."""

    def __init__(self, options: PoolOptions) -> None:
        """Start the workers and wait until all have loaded the model.

        Raises:
            InputError: the model or the backend is not possible. MachineError: a worker ended or took too long.
        """
        self._options = options
        self._events: queue.Queue[Event] = queue.Queue()
        self._workers: dict[int, WorkerProcess] = {}
        self._jobs = itertools.count(1)
        self.steps = steps_of(options.backend, options.devices[0], options.without, options.also)
        self._usage = Usage()
        self._folder = WorkingFolder()
        # Workers end with the thread that starts them (see worker.py), so that thread lives as long as the pool.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="fairy-starter")
        self._nurseries: list[Nursery] = []  # one, or none
        self._finalizer = weakref.finalize(self, _end, self._workers, self._starter, self._nurseries, self._folder)
        self.name = options.backend
        try:
            failures = self._start()
            if failures:
                raise next(iter(failures.values()))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are there."""
        return tuple(worker.pid for worker in self._workers.values() if worker.alive)

    @property
    def workers(self) -> int:
        """How many there are when none is lost."""
        return len(self._options.devices)

    def edit(self, run: Run, reads: Iterator[list[Frames]]) -> Generator[Edited, None, None]:
        """Compute a job; see `Executor`. Workers that were lost in an earlier one are replaced first."""
        self._replace_lost(run)
        workers = [(worker, str(self._options.devices[i])) for i, worker in sorted(self._workers.items())]
        run.tally.workers = len(workers)
        for segment in range(len(run.plan.segments)):
            number = next(self._jobs)
            meeting = str(self._folder.path / f"job-{number}")
            deadline_s = self._options.deadline_s
            dispatch = Dispatch(
                number,
                run,
                segment,
                workers,
                self._events,
                meeting=meeting,
                deadline_s=deadline_s,
                shares_bank=self._options.bank == "device" and run.plan.params.bank_dtype is None,
            )
            done = False
            try:
                with closing(dispatch.run(reads)) as edits:
                    yield from edits
                done = True
            finally:
                if not (
                    done and run.plan.params.continue_look
                ):  # else the next segment needs what they keep of this one
                    dispatch.stop()
                self._usage = self._usage.joined(dispatch.usage)
            workers = dispatch.workers

    def take_usage(self) -> Usage:
        """What the workers' backends ran in the last job."""
        usage, self._usage = self._usage, Usage()
        return usage

    def engine(self, graph: GraphSpec, precision: torch.dtype | None = None) -> Engine:
        """There is none in this process."""
        raise FairyError(f"The engine of {graph.name} is in the workers.")

    def close(self) -> None:
        """End all workers; closing again does nothing."""
        self._finalizer()

    def _replace_lost(self, run: Run) -> None:
        lost = [number for number, worker in self._workers.items() if not worker.alive]
        for number in lost:
            self._workers.pop(number).kill()
        if len(self._workers) == len(self._options.devices):
            return
        for number, error in self._start().items():
            run.tally.notes.append(f"Worker {number} could not be started again: {error}")
            self._workers.pop(number).kill()
        if not self._workers:
            raise MachineError("No worker could be started again; make another Editor.")

    def _start(self) -> dict[int, FairyError]:
        """Start every worker that is not there; returns why, for those that could not be started."""
        options = self._options
        waiting = [number for number in range(len(options.devices)) if number not in self._workers]
        for number in waiting:
            self._workers[number] = self._starter.submit(self._start_one, number).result()
            self._workers[number].post(self._load_message(number))
        return self._await(set(waiting))

    def _start_one(self, number: int) -> WorkerProcess:
        """In the starter's thread, with which everything that it starts ends."""
        options = self._options
        if options.command is not None or not can_fork(options.devices):
            return WorkerProcess(number, self._events, partial(run_command, command=options.command or COMMAND))
        if not (self._nurseries and self._nurseries[0].alive):
            self._nurseries[:] = [Nursery(self._load_message(number), environment())]
        try:
            fork = partial(self._nurseries[0].fork, timeout_s=options.start_deadline_s)
            return WorkerProcess(number, self._events, fork)
        except OSError:  # it ended, as for want of memory
            return WorkerProcess(number, self._events, run_command)

    def _load_message(self, number: int) -> Message:
        options = self._options
        return {
            "do": "load",
            "model": str(options.model),
            "variant": options.variant,
            "device": str(options.devices[number]),
            "dtype": str(options.dtype).removeprefix("torch."),
            "backend": options.backend,
            "store": str(options.store),
            "threads": options.threads,
            "bank": options.bank,
            "decoder": None if options.decoder is None else str(options.decoder.absolute()),
            "without": list(options.without),
            "also": list(options.also),
            "config": None if options.config is None else str(options.config),
            "loras": [[str(lora.path), lora.scale] for lora in options.loras],
            "controls": [[str(folder), scale] for folder, scale in options.controls],
            "ip_adapter": None if options.ip_adapter is None else str(options.ip_adapter),
            "depth_estimator": None if options.depth_estimator is None else str(options.depth_estimator.absolute()),
        }

    def _await(self, waiting: set[int]) -> dict[int, FairyError]:
        """Wait until these workers are ready, or have failed."""
        failures: dict[int, FairyError] = {}
        deadline = time.monotonic() + self._options.start_deadline_s
        while waiting:
            if time.monotonic() > deadline:
                late = f"loading the model took more than {self._options.start_deadline_s:g} s"
                failures |= {number: MachineError(f"Worker {number} was given up: {late}.") for number in waiting}
                break
            try:
                event = self._events.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            number = event.worker.number
            if number in waiting and self._workers.get(number) is event.worker:
                failure = self._answer(event)
                if failure is not None:
                    failures[number] = failure
                waiting.discard(number)
        return failures

    def _answer(self, event: Event) -> FairyError | None:
        """What is wrong with a worker that answered "load", if anything."""
        if event.message is None:
            event.worker.kill()
            return MachineError(
                f"Worker {event.worker.number} ended while it was starting ({event.worker.last_words()})."
            )
        if event.message["is"] == "error":
            return error_of(event.message)
        if self._options.backend == "auto" and self.name == "auto":
            self.name = event.message["backend"]
        if event.message["backend"] != self.name:
            return MachineError(
                f"Workers chose different backends, {self.name} and {event.message['backend']}; name one of them."
            )
        return None


def _end(
    workers: dict[int, WorkerProcess],
    starter: ThreadPoolExecutor,
    nurseries: list[Nursery],
    folder: WorkingFolder,
) -> None:
    """End every process of a pool, also of one that was forgotten."""
    for worker in workers.values():
        worker.kill(_GRACE_S)
    workers.clear()
    while nurseries:
        nurseries.pop().close()
    starter.shutdown(wait=False)
    folder.close()
