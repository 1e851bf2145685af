"""Who computes windows: this process, or worker processes that are replaced when they die.

A window's result is a function of what is handed over, so that it does not matter who computes it, or how often. The
worker processes are the standard library's (`ProcessPoolExecutor`); a worker that dies takes its pool with it, and
the windows that were not done are handed to a new one.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fairy.kernels.errors import MachineError
from fairy.runtime.device import cpu_threads

_POLL_S = 0.1
_PARENT_POLL_S = 1.0
_MOST_DEATHS = 3  # without a window done between them

Make = Callable[[torch.device], Any]
"""Makes the networks on a device; it is sent to the workers."""


class Pending(Protocol):
    """A window that was handed over."""

    def result(self) -> Any:
        """What came of it."""
        ...


class WindowComputer(Protocol):
    """Computes windows."""

    @property
    def ahead(self) -> int:
        """How many windows should be handed over before the first result is taken."""
        ...

    @property
    def lost(self) -> Sequence[str]:
        """Workers that ended before the job did, in sentences."""
        ...

    def begin(self, check: Callable[[], None]) -> None:
        """A job begins; `check` is called while windows are waited for, and raises to stop."""
        ...

    def submit(self, method: str, *arguments: Any) -> Pending:
        """Have a method of the networks called."""
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


@dataclass(slots=True)
class _Done:
    call: Callable[[], Any]

    def result(self) -> Any:
        return self.call()


class HereComputer:
    """The networks of this process, one window after the other."""

    ahead = 0
    lost: Sequence[str] = ()

    def __init__(self, networks: Any, threads: int) -> None:
        self.networks, self._threads = networks, threads

    def begin(self, check: Callable[[], None]) -> None:
        """Nothing is waited for here."""

    def submit(self, method: str, *arguments: Any) -> Pending:
        """The method is called when the result is asked for."""

        def call() -> Any:
            with cpu_threads(self._threads):
                return getattr(self.networks, method)(*arguments)

        return _Done(call)

    def close(self) -> None:
        """Forget the networks."""
        del self.networks


@dataclass(slots=True)
class _Handed:
    pool: "PoolComputer"
    method: str
    arguments: tuple[Any, ...]
    future: Future[Any] = field(default_factory=Future)
    generation: int = -1

    def result(self) -> Any:
        return self.pool.wait(self)


class PoolComputer:
    """Worker processes, each with the networks on a device of its own."""

    def __init__(self, make: Make, devices: Sequence[torch.device], *, threads: int, timeout_s: float) -> None:
        """Processes start with the first window.

        Args:
            timeout_s: seconds that a window may take once it is waited for.
        """
        self._make, self._devices, self._threads, self._timeout_s = make, tuple(devices), threads, timeout_s
        self._check: Callable[[], None] = lambda: None
        self.lost: list[str] = []
        self._deaths = 0
        self._generation = 0
        self._executor = self._start()

    @property
    def ahead(self) -> int:
        """Two windows a worker."""
        return 2 * len(self._devices)

    def begin(self, check: Callable[[], None]) -> None:
        """A job begins: no worker was lost in it yet."""
        self._check, self.lost = check, []

    def submit(self, method: str, *arguments: Any) -> Pending:
        """Hand a window to the workers."""
        handed = _Handed(self, method, arguments)
        self._hand(handed)
        return handed

    def wait(self, handed: _Handed) -> Any:
        """The result of a window, which is handed over again where its worker died."""
        started = time.monotonic()
        while True:
            if handed.generation != self._generation and not _is_good(handed.future):
                self._hand(handed)
                started = time.monotonic()
            try:
                self._check()
                result = handed.future.result(_POLL_S)
            except FutureTimeoutError:
                if time.monotonic() - started > self._timeout_s:
                    self._replace(f"A worker took longer than {self._timeout_s:g} s for a window and was ended.")
            except BrokenProcessPool:
                if handed.generation == self._generation:
                    self._replace("A worker process ended; its windows were computed again.")
            else:
                self._deaths = 0
                return result

    def close(self) -> None:
        """End the processes."""
        self._kill()

    def _hand(self, handed: _Handed) -> None:
        try:
            handed.future = self._executor.submit(_call, handed.method, handed.arguments)
        except BrokenProcessPool:
            self._replace("A worker process ended; its windows were computed again.")
            handed.future = self._executor.submit(_call, handed.method, handed.arguments)
        handed.generation = self._generation

    def _replace(self, sentence: str) -> None:
        self._deaths += 1
        self.lost.append(sentence)
        self._kill()
        if self._deaths > _MOST_DEATHS:
            raise MachineError(
                f"{self._deaths} times in a row a worker ended without finishing a window; see its messages, or "
                "choose one worker."
            )
        self._generation += 1
        self._executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        devices = context.SimpleQueue()
        for device in self._devices:
            devices.put(str(device))
        arguments = (self._make, devices, self._threads, os.getpid())
        return ProcessPoolExecutor(len(self._devices), context, _begin, arguments)

    def _kill(self) -> None:
        processes = list((self._executor._processes or {}).values())
        for process in processes:
            process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _is_good(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool)


_networks: Any = None
_threads = 1


def _begin(make: Make, devices: Any, threads: int, parent: int) -> None:
    """In a worker: load the networks, and end with the process that started it."""
    global _networks, _threads
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _threads = threads
    torch.set_num_threads(threads)
    _networks = make(torch.device(devices.get()))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    with cpu_threads(_threads):
        return getattr(_networks, method)(*arguments)
