"""An editor on a machine of a Ray cluster: `python -m fairy.runtime.service.ray_bridge ADDRESS`.

To the service it looks like any editor process: JSON lines in and out. The editor itself is an actor, which Ray places
where there is room; where it is lost this process ends, the service starts the next one, and the job goes on from its
journal wherever Ray places that. The service's folder must lie on a file system that every machine shares.
"""

import os
import platform
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fairy.kernels.errors import FairyError, InputError, MachineError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.fleet.cluster import connected, first_line
from fairy.runtime.fleet.fleet_options import with_gpus
from fairy.runtime.service.messages import Lines

_WAIT_S = 1.0
_STOP_S = 10.0
_START_S = 600.0
Message = dict[str, Any]


class _Queues:
    """What `Lines` is between processes, within one."""

    def __init__(self) -> None:
        self.commands: SimpleQueue[Message | None] = SimpleQueue()
        self.answers: SimpleQueue[Message | None] = SimpleQueue()

    def send(self, message: Message) -> None:
        """An answer of the editor."""
        self.answers.put(message)

    def receive(self) -> Message | None:
        """The next command; None at the end."""
        return self.commands.get()


class EditorOnNode:
    """The actor: the same editor process as everywhere, in a thread, between two queues."""

    def __init__(self, folder: Path) -> None:
        from fairy.runtime.allocation import keep_freed_memory

        # Ray puts the driver's folder first on the path of its workers, where it could hide a library.
        sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
        os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
        keep_freed_memory()
        self._queues, self._folder = _Queues(), folder
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, message: Message | None) -> None:
        """A command; None is the end."""
        self._queues.commands.put(message)

    def receive(self) -> list[Message | None]:
        """The answers since the last time, after a moment at most; None is the end."""
        try:
            found = [self._queues.answers.get(timeout=_WAIT_S)]
        except Empty:
            return []
        while not self._queues.answers.empty():
            found.append(self._queues.answers.get())
        return found

    def _run(self) -> None:
        from fairy.runtime.service.editor_process import EditorProcess

        try:
            if not self._folder.is_dir():
                raise InputError(
                    f"The node {platform.node()} does not see {self._folder} as the service does; put --data on a file "
                    "system that every node shares, under the same path."
                )
            EditorProcess(self._queues).run()
        except FairyError as error:
            self._queues.send({"refused": str(error), "code": error.exit_code})
        finally:
            self._queues.answers.put(None)


def run(address: str, lines: Lines) -> int:
    """Between the service's pipes and an actor; the exit code."""
    opening = lines.receive()
    if opening is None:
        return 0
    try:
        with connected(address) as ray:
            return _forward(ray, opening, lines)
    except FairyError as error:
        lines.send({"refused": str(error), "code": error.exit_code})
        return error.exit_code


def _forward(ray: Any, opening: Message, lines: Lines) -> int:
    gpus_at_hand = ray.cluster_resources().get("GPU", 0) >= 1
    setup = with_gpus(EditorSetup(**opening["setup"]), None, gpus_at_hand=gpus_at_hand, placed_by_ray=True)
    gpus = setup.gpus if setup.device == "cuda" else 0
    # One call waits for answers while another brings a command.
    actor_class = ray.remote(num_cpus=setup.threads, num_gpus=gpus, max_concurrency=3, max_restarts=0)(EditorOnNode)
    actor = actor_class.remote(Path(opening["folder"]))
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(setup).items()}
    actor.send.remote({**opening, "setup": values})
    threading.Thread(target=_bring_commands, args=(actor, lines), daemon=True).start()
    try:
        messages = _first(ray, actor, gpus, setup.threads)
        while True:
            for message in messages:
                if message is None:
                    return 0
                lines.send(message)
            messages = ray.get(actor.receive.remote())
    except ray.exceptions.RayError as error:
        print(f"the editor on the cluster was lost ({first_line(error)})", file=sys.stderr)
        return 1
    finally:
        ray.kill(actor)


def _first(ray: Any, actor: Any, gpus: int, cpus: int) -> list[Message | None]:
    """The first answers, which come when Ray has placed the actor. Raises MachineError where it finds no room."""
    answers = actor.receive.remote()
    if not ray.wait([answers], timeout=_START_S)[0]:
        takes = f"{gpus} GPU and {cpus} CPU" if gpus else f"{cpus} CPU"
        raise MachineError(f"The cluster had no room for an editor in {_START_S:g} s: each takes {takes}.")
    found: list[Message | None] = ray.get(answers)
    return found


def _bring_commands(actor: Any, lines: Lines) -> None:
    """Commands as they come; at the end of stdin the editor gets a moment to keep its journal."""
    while (message := lines.receive()) is not None:
        actor.send.remote(message)
    actor.send.remote(None)
    threading.Event().wait(_STOP_S)
    os._exit(0)


def main() -> int:
    """Take stdin and stdout for the protocol and run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    return run(sys.argv[1], Lines(0, answers))


if __name__ == "__main__":
    sys.exit(main())
