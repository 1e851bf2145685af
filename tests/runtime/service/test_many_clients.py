"""Fifty clients at once, some slow, some gone in the middle; and schemathesis over everything in the OpenAPI."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.runtime.conftest import make_frames, write_clip
from tests.runtime.service.server import QUICK, Server
from tests.runtime.service.test_uploads import BOUNDARY, END, PROMPT, part


@pytest.mark.slow
def test_clients_at_once_lose_no_job(tmp_path: Path) -> None:
    _many_clients(tmp_path, 10)


@pytest.mark.nightly
def test_fifty_clients_at_once_lose_no_job_and_cost_no_memory(tmp_path: Path) -> None:
    _many_clients(tmp_path, 50)


def _many_clients(tmp_path: Path, count: int) -> None:
    small = write_clip(tmp_path / "small.mp4", make_frames(2), sound=False).read_bytes()
    server = Server(tmp_path / "data", "--per-key", "1000", "--queue", "1000")
    before = _resident_bytes(server.process.pid)
    outcomes = asyncio.run(_crowd(server.url, small, count))
    accepted = [video_id for kind, video_id in outcomes if kind == "accepted"]
    assert sum(kind == "gone" for kind, _ in outcomes) == count // 5
    assert len(accepted) == count - count // 5, outcomes
    videos = [server.done(video_id, 600) for video_id in accepted]
    assert [v["status"] for v in videos] == ["completed"] * len(videos)
    assert len({v["frames_sha256"] for v in videos}) == 1
    assert len(server.client.get("/v1/videos", params={"limit": 100}).json()["data"]) == len(accepted)
    assert _resident_bytes(server.process.pid) - before < 150 << 20
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.log), server.log


async def _crowd(url: str, clip: bytes, count: int) -> list[tuple[str, str]]:
    """Every fifth goes away in the middle of its upload, every seventh is slow, every third sends 20 MB more."""
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=httpx2.Limits(max_connections=count)) as client:
        return await asyncio.gather(*(_client(client, number, clip) for number in range(count)))


async def _client(client: httpx2.AsyncClient, number: int, clip: bytes) -> tuple[str, str]:
    free_box = b"" if number % 3 else (20_000_008).to_bytes(4) + b"free" + bytes(20_000_000)  # of MP4: may be any size
    fields = b"".join(part(name, value.encode()) for name, value in QUICK.items())
    body = part("input_reference", clip + free_box, file_name="a.mp4") + fields + PROMPT + END
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    await asyncio.sleep(random.Random(number).random())
    if number % 5 == 0:
        headers["content-length"] = str(len(body) + 100)
        try:
            await client.post("/v1/videos", content=_cut_off(body), headers=headers)
        except (httpx2.HTTPError, RuntimeError):
            return "gone", ""
    content: Any = _slowly(body) if number % 7 == 0 else body
    answer = await client.post("/v1/videos", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    video_id = answer.json()["id"]
    for _ in range(20):
        assert (await client.get(f"/v1/videos/{video_id}")).status_code == 200
    return "accepted", video_id


async def _cut_off(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    raise RuntimeError("the client's own end")


async def _slowly(body: bytes) -> AsyncIterator[bytes]:
    size = -(-len(body) // 30)
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(0.1)


def _resident_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(service: Server) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
        *("--checks", "not_a_server_error", "--exclude-path-regex", "/events$", "--seed", "1", "--no-color"),
        *("--max-examples", "10", "--max-time", "20", "--request-timeout", "20", "--generation-database", "none"),
        *("--suppress-health-check", "all", "--warnings", "off"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "generated" in done.stdout
    for video in service.client.get("/v1/videos", params={"limit": 100}).json()["data"]:
        service.client.delete(f"/v1/videos/{video['id']}")
