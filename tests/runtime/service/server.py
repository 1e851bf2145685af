"""The real service as a process, for tests."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

QUICK = {"num_inference_steps": "1", "anchors": "2"}
_URL = re.compile(r"http://\S+?:\d+")
_READY_S = 180.0


class Server:
    """`fairy serve` on a free port over a folder."""

    def __init__(self, data: Path, *arguments: str, key: str | None = None, ready: bool = True) -> None:
        self.data, self.log = data, []
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fairy.runtime.cli", "serve", "--port", "0", "--data", str(data), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._listening = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listening.wait(60), self.log
        self.client = httpx2.Client(base_url=self.url, headers=self.headers, timeout=60)
        if ready:
            self.wait_until_ready()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            found = _URL.search(line)
            if "listening" in line and found:
                self.url = found[0]
                self._listening.set()
        self._listening.set()

    def wait_until_ready(self) -> None:
        ends = time.monotonic() + _READY_S
        while self.client.get("/ready").status_code != 200:
            assert time.monotonic() < ends, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.1)

    def create(self, clip: Path | bytes, prompt: str = "make it sepia", **fields: Any) -> httpx2.Response:
        data = clip if isinstance(clip, bytes) else clip.read_bytes()
        headers = fields.pop("headers", {})
        name = fields.pop("file_name", "clip.mp4")
        files = {"input_reference": (name, data, "video/mp4")}
        return self.client.post("/v1/videos", data={"prompt": prompt, **QUICK, **fields}, files=files, headers=headers)

    def made(self, clip: Path | bytes, **fields: Any) -> dict[str, Any]:
        answer = self.create(clip, **fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def get(self, video_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/videos/{video_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def done(self, video_id: str, limit_s: float = 240.0) -> dict[str, Any]:
        """The record of a video that has ended."""
        ends = time.monotonic() + limit_s
        while (video := self.get(video_id))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < ends, (video, self.log[-20:])
            time.sleep(0.1)
        return video

    def editor_pids(self) -> list[int]:
        """Processes of editors, by the system's own table."""
        pids = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if b"fairy.runtime.service.editor_process" in words and parent == self.process.pid:
                pids.append(int(folder.name))
        return pids

    def kill(self) -> None:
        """As a power cut would, as far as processes go."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.client.close()

    def stop(self, limit_s: float = 60.0, *, told: bool = False) -> int:
        """Politely; the exit code. `told`: it has had its signal, and a second one would end it at once."""
        self.client.close()
        if self.process.poll() is None and not told:
            self.process.terminate()
        code = self.process.wait(limit_s)
        self._reader.join(10)
        return code


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        fields: Mapping[str, str] = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


def status_of(url: str) -> int:
    """Of a GET without any header of ours."""
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
