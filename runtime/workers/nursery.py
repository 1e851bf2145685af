"""Workers on the CPU are forked from one process that has loaded the libraries and the model.

    controller ─socket─► nursery: imports, loads the model, then forks a worker whenever it is asked to
                            ├─ worker 0    pipes to the controller, weights shared with the others
                            └─ worker 1

So a worker is there in a moment, and the weights lie in memory once, however many read them (pages are copied only when
somebody writes). The nursery computes nothing and has one thread, which is what makes forking it safe. It ends with the
controller's thread that started it, and every worker with it. A GPU is not shared so: CUDA does not survive a fork.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

import torch

from fairy.runtime.video import wire

COMMAND = (sys.executable, "-P", "-m", "fairy.runtime.workers.nursery")
_PIPES = 3  # stdin, stdout, stderr
_LONGEST = 1 << 16  # bytes of a message


def can_fork(devices: Sequence[torch.device]) -> bool:
    """Whether workers on these devices may be forked."""
    return sys.platform == "linux" and all(device.type == "cpu" for device in devices)


class Nursery:
    """The controller's end."""

    def __init__(self, load: wire.Message, environment: dict[str, str]) -> None:
        """Start it; it loads at once what `load` names, as a worker would."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what cannot be loaded, each worker says by itself
                env=environment,
                start_new_session=True,  # Ctrl-C is the controller's to handle
            )
        self._socket = ours
        self._children: dict[int, Forked] = {}
        self._born: list[Forked] = []
        self._heard = threading.Condition()
        self._gone = self._late = False
        self._socket.send(json.dumps(load).encode())
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether it can be asked for a worker."""
        return not self._gone and not self._late and self._process.poll() is None

    def fork(self, stderr: IO[bytes], timeout_s: float) -> "Forked":
        """A new worker, whose errors go to a file, as soon as the model is loaded.

        Raises OSError where the nursery ended, or did not answer in time; it is not asked again then, since its late
        answer would be taken for the next one.
        """
        from_us, to_worker = os.pipe()
        from_worker, to_us = os.pipe()
        stdin, stdout = os.fdopen(to_worker, "wb", buffering=0), os.fdopen(from_worker, "rb", buffering=0)
        try:
            fds = array.array("i", [from_us, to_us, stderr.fileno()])
            self._socket.sendmsg([b"fork"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            child = self._answer(timeout_s)
        except OSError:
            stdin.close()
            stdout.close()
            raise
        finally:
            os.close(from_us)
            os.close(to_us)
        child.stdin, child.stdout = stdin, stdout
        return child

    def _answer(self, timeout_s: float) -> "Forked":
        with self._heard:
            self._heard.wait_for(lambda: self._born or self._gone, timeout_s)
            if not self._born:
                self._late = True
                raise OSError("the process that starts workers ended, or did not answer")
            return self._born.pop(0)

    def close(self) -> None:
        """End it, and with it every worker."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _listen(self) -> None:
        try:
            while message := self._socket.recv(_LONGEST):
                told = json.loads(message)
                with self._heard:
                    if "born" in told:
                        self._children[told["born"]] = Forked(told["born"], self._heard)
                        self._born.append(self._children[told["born"]])
                    else:
                        self._children.pop(told["ended"]).ended(told["code"])
                    self._heard.notify_all()
        except OSError:
            pass
        with self._heard:
            self._gone = True
            for child in self._children.values():
                child.ended(-signal.SIGKILL)  # the kernel ends them with the nursery
            self._heard.notify_all()


class Forked:
    """A worker that was forked; as much of `subprocess.Popen` as its owner needs."""

    stdin: IO[bytes]
    stdout: IO[bytes]

    def __init__(self, pid: int, heard: threading.Condition) -> None:
        self.pid = pid
        self._heard = heard
        self._code: int | None = None
        self._fd = -1
        with contextlib.suppress(ProcessLookupError):  # it has ended already, which will be told next
            self._fd = os.pidfd_open(pid)  # names this process and never another that gets its number

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        with self._heard:
            if not self._heard.wait_for(lambda: self._code is not None, timeout):
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self._code or 0

    def kill(self) -> None:
        """End it at once."""
        with self._heard, contextlib.suppress(ProcessLookupError):
            if self._code is None and self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def ended(self, code: int) -> None:
        """The nursery said that it ended."""
        if self._code is None:
            self._code = code
            if self._fd >= 0:
                os.close(self._fd)


def main() -> None:
    """Load what the controller names, then fork workers until it is gone."""
    from fairy.runtime.workers import worker

    worker.end_with_parent()
    controller = socket.socket(fileno=os.dup(0))
    load = json.loads(controller.recv(_LONGEST))
    checkpoint = worker.load_model(load)
    gc.collect()
    gc.freeze()  # a collection in a worker would touch, and so copy, everything that is shared
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        listened: list[Any] = [controller, woken]
        ready, _, _ = select.select(listened, [], [])
        if woken in ready:
            os.read(woken, 4096)
            _tell_of_the_dead(controller)
        if controller in ready:
            fds = _asked(controller)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                controller.close()
                _become_worker(fds, checkpoint)
            for fd in fds:
                os.close(fd)
            controller.send(json.dumps({"born": pid}).encode())


def _asked(controller: socket.socket) -> list[int]:
    """The pipes of the worker that the controller wants; ends the process where that is gone."""
    message, ancillary, _, _ = controller.recvmsg(16, socket.CMSG_SPACE(_PIPES * array.array("i").itemsize))
    if not message:
        os._exit(0)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _tell_of_the_dead(controller: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        controller.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become_worker(fds: list[int], checkpoint: Any) -> None:
    """In the new process: its pipes in the usual places, then a worker's life."""
    from fairy.runtime.workers import worker

    os.setsid()
    for place, fd in enumerate(fds):
        os.dup2(fd, place)
        os.close(fd)
    worker.main(checkpoint)


if __name__ == "__main__":
    main()
