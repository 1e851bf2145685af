"""The service's side of an editor process: starts it, gives it one edit at a time, hears how that goes."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.service.messages import line_of

log = logging.getLogger("fairy.service")
COMMAND = (sys.executable, "-P", "-m", "fairy.runtime.service.editor_process")
RAY_COMMAND = (sys.executable, "-P", "-m", "fairy.runtime.service.ray_bridge")
"""And the cluster's address."""
_LONGEST_LINE_BYTES = 64 << 20
"""Of a report; far more than one of a day of video has."""


class EditorLost(Exception):
    """The process ended in the middle of something."""


class EditorLink:
    """One editor process and the pipes to it; `start` makes it anew where it has ended."""

    def __init__(
        self, number: int, setup: EditorSetup, most_frames: int, folder: Path, command: tuple[str, ...] = COMMAND
    ) -> None:
        """`folder`: the service's; `command`: what speaks for the editor."""
        self.number, self.starts = number, 0
        self.model: str | None = None
        self.usual: dict[str, Any] = {}
        self._setup, self._command = setup.absolute(), command
        self._more = {"number": number, "most_frames": most_frames, "folder": str(folder)}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and waits for work, or works."""
        return self.model is not None and self.alive

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> str:
        """Start the process and wait for its model; its name.

        Raises:
            InputError: the model cannot be loaded as asked; MachineError: the process ended.
        """
        await self.stop(0.0)
        self.starts += 1
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is the service's to handle
            env=os.environ | {"DIFFUSERS_DISABLE_REMOTE_CODE": "1"},
        )
        self._said: deque[str] = deque(maxlen=20)
        self._hearing = asyncio.create_task(self._hear_errors(self._process))
        setup = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self._setup).items()}
        self._send({"do": "open", "setup": setup, **self._more})
        try:
            message = await self._receive()
        except EditorLost as lost:
            raise MachineError(f"An editor ended before it had loaded its model ({lost}).") from None
        if "refused" in message:
            raise (InputError if message["code"] == 2 else MachineError)(message["refused"])
        self.model, self.usual = str(message["ready"]), message["usual"]
        return self.model

    async def edit(self, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Have it done; every message about it, the last with "completed" or "failed". Raises EditorLost."""
        self._send({"do": "edit", **order})
        while True:
            message = await self._receive()
            if message.get("id") != order["id"]:
                continue
            yield message
            if "completed" in message or "failed" in message:
                return

    def cancel(self, job_id: str) -> None:
        """Ask for the end of an edit."""
        self._send({"do": "cancel", "id": job_id})

    async def stop(self, grace_s: float) -> None:
        """End of stdin, then, after the grace, of the process with all it started."""
        process, self.model = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace_s) if grace_s else None
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._hearing.cancel()
        self._process = None

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(ConnectionError, RuntimeError):  # its end is heard by whoever receives
            self._process.stdin.write(line_of(message))

    async def _receive(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            code = await self._process.wait()
            raise EditorLost(_why(code, self._said))
        message: dict[str, Any] = json.loads(line)
        return message

    async def _hear_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            self._said.append(text)
            log.info("editor said: %s", text, extra={"editor": self.number})


def _why(code: int, said: deque[str]) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return said[-1] if said else f"exit code {code}"
