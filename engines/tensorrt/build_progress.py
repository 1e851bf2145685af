"""BuildProgress of a TensorRT build, and the two ways to stop one: the caller's wish and Ctrl-C.

TensorRT reports from threads of its own, through which no Python exception may pass, and it holds the calling thread
until it is done. So a build runs in a thread beside the caller's, which stays free to notice Ctrl-C.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from fairy.engines.engine import OnBuild
from fairy.kernels.errors import Cancelled

T = TypeVar("T")
_START_S = 1.0


class BuildProgress:
    """Hands TensorRT's steps to `on_progress(phase, done, total)`, one at a time, until somebody asks to stop."""

    def __init__(self, on_progress: OnBuild) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._stopped = threading.Event()

    def start(self, phase: str, total: int) -> None:
        """A phase of so many steps begins."""
        with self._lock:
            self._totals[phase] = total
        self._tell(phase, 0)

    def step(self, phase: str, done: int) -> bool:
        """So many steps of a phase are done; False where the build is to stop."""
        return self._tell(phase, done)

    def finish(self, phase: str) -> None:
        """A phase is over, whether or not every step was reported."""
        self._tell(phase, self._totals.get(phase, 0))

    def stop(self) -> None:
        """Ask the build to stop at its next step."""
        self._stopped.set()

    def check(self) -> None:
        """Raise what `on_progress` raised, or `Cancelled` where the build was asked to stop."""
        if self._failure is not None:
            raise self._failure
        if self._stopped.is_set():
            raise Cancelled("The build was cancelled; nothing was kept.")

    def _tell(self, phase: str, done: int) -> bool:
        with self._lock:
            if not self._stopped.is_set():
                try:
                    wanted = self._on_progress(phase, done, self._totals.get(phase, 0))
                except BaseException as error:  # kept, and raised in the caller's thread by `check`
                    self._failure, wanted = error, False
                if not wanted:
                    self._stopped.set()
        return not self._stopped.is_set()


def run_beside(work: Callable[[], T], progress: BuildProgress) -> T:
    """Run `work` in a thread and wait for it; Ctrl-C, or a signal to end, asks it to stop and waits until it has.

    Raises:
        Cancelled: it was stopped.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised in the caller's thread by `result`
            future.set_exception(error)

    thread = threading.Thread(target=run, name="build")
    try:
        thread.start()
        return future.result()
    except (KeyboardInterrupt, SystemExit) as error:
        progress.stop()
        wait([future], _START_S)  # Ctrl-C may come while the thread is being started, and even keep it from starting
        while thread.is_alive():
            wait([future], _START_S)
        if isinstance(error, SystemExit):
            raise
        raise Cancelled("The build was interrupted; nothing was kept.") from None


def progress_monitor(trt: Any, progress: BuildProgress) -> Any:
    """An `IProgressMonitor` for a builder configuration; it has to live as long as the builder."""
    return type("ProgressMonitor", (_BuildMonitor, trt.IProgressMonitor), {})(progress)


class _BuildMonitor:
    """The methods of an `IProgressMonitor`."""

    def __init__(self, progress: BuildProgress) -> None:
        super().__init__()
        self._progress = progress

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._progress.start(phase_name, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        return self._progress.step(phase_name, step + 1)

    def phase_finish(self, phase_name: str) -> None:
        self._progress.finish(phase_name)
