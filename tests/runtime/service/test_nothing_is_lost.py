"""Kills of service and editors, orderly ends, full disks: every accepted job ends, with the same bytes."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fairy.runtime import Editor, EditParams
from tests.runtime.conftest import make_frames, write_clip
from tests.runtime.service.server import Server

STEPS, FRAMES = 12, 10
PARAMS = {"num_inference_steps": str(STEPS), "anchors": "2", "seed": "3"}


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", make_frames(FRAMES, 96, 128))


@pytest.fixture(scope="module")
def expected(long_clip: Path) -> str:
    params = EditParams("make it sepia", num_inference_steps=STEPS, anchors=2, seed=3)
    with Editor.from_pretrained() as editor:
        return editor.edit(long_clip, params).report.frames_sha256


def _wait_for_frames(server: Server, video_id: str, share: float) -> None:
    """Until that share of the frames' steps is done, or the job."""
    while True:
        video = server.get(video_id)
        if video["status"] in ("completed", "failed"):
            return
        if video["stage"] == "frames" and video["stage_done"] >= share * video["stage_total"]:
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_service_goes_on_with_every_job(tmp_path: Path, long_clip: Path, expected: str) -> None:
    _kill_and_go_on(tmp_path, long_clip, expected, kills=1)


@pytest.mark.nightly
def test_ten_kills(tmp_path: Path, long_clip: Path, expected: str) -> None:
    _kill_and_go_on(tmp_path, long_clip, expected, kills=10)


def _kill_and_go_on(tmp_path: Path, long_clip: Path, expected: str, *, kills: int) -> None:
    dice = random.Random(7)
    accepted: list[str] = []
    for _ in range(kills):
        server = Server(tmp_path / "data")
        accepted += [server.made(long_clip, **PARAMS)["id"] for _ in range(1 if accepted else 2)]
        _wait_for_frames(server, next(i for i in accepted if server.get(i)["status"] != "completed"), dice.random())
        server.kill()
    server = Server(tmp_path / "data")
    videos = [server.done(video_id) for video_id in accepted]
    assert [v["status"] for v in videos] == ["completed"] * len(accepted), videos
    assert {v["frames_sha256"] for v in videos} == {expected}
    assert any("jobs go on that were interrupted" in line for line in server.log)
    assert server.stop() == 0


@pytest.mark.slow
def test_a_killed_editor_costs_no_job_and_a_resumed_one_has_the_same_bytes(
    service: Server, long_clip: Path, expected: str
) -> None:
    first, second = (service.made(long_clip, **PARAMS)["id"] for _ in range(2))
    _wait_for_frames(service, first, 0.6)
    (pid,) = service.editor_pids()
    os.kill(pid, signal.SIGKILL)
    videos = [service.done(first), service.done(second)]
    assert [v["status"] for v in videos] == ["completed"] * 2
    assert {v["frames_sha256"] for v in videos} == {expected}
    report = service.client.get(f"/v1/videos/{first}/content", params={"variant": "report"}).json()
    assert report["resumed_batches"] > 0


@pytest.mark.nightly
def test_a_job_that_ends_every_editor_is_given_up(service: Server, clip: Path) -> None:
    poison = service.made(clip, num_inference_steps="90")["id"]
    other = service.made(clip)["id"]
    killed: set[int] = set()
    while service.get(poison)["status"] in ("queued", "in_progress"):
        for pid in set(service.editor_pids()) - killed:
            if service.get(poison)["stage"] is not None:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.05)
    assert service.get(poison)["error"]["code"] == "editor_lost"
    assert len(killed) == 3
    assert service.done(other)["status"] == "completed"


@pytest.mark.slow
def test_sigterm_lets_the_running_edit_end_and_refuses_new_ones(tmp_path: Path, long_clip: Path, expected: str) -> None:
    server = Server(tmp_path / "data")
    running, waiting = (server.made(long_clip, **PARAMS)["id"] for _ in range(2))
    _wait_for_frames(server, running, 0.1)
    with server.client.stream("GET", "/v1/events") as stream:
        server.process.terminate()
        for _ in stream.iter_text():  # the stream ends by itself
            pass
    assert server.client.get("/ready").status_code == 503
    refused = server.create(long_clip)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
    assert server.get(running)["status"] == "in_progress"
    assert server.stop(told=True) == 0, server.log
    server = Server(tmp_path / "data", "--grace", "1s")
    assert server.get(running)["status"] == "completed"
    assert server.get(running)["frames_sha256"] == expected
    _wait_for_frames(server, waiting, 0.6)
    assert server.stop() == 0  # after a second of grace, with its journal kept
    server = Server(tmp_path / "data")
    assert server.done(waiting)["frames_sha256"] == expected
    assert server.stop() == 0


@pytest.mark.slow
def test_a_full_disk_refuses_uploads_and_breaks_no_job(tmp_path: Path, clip: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts no small disk")
    try:
        server = Server(disk / "data")
        running = server.made(clip, num_inference_steps="30")["id"]
        (disk / "filler").write_bytes(b"\0" * (60 << 20))
        refused = server.create(b"x" * (5 << 20))
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        assert server.done(running)["status"] == "completed"
        (disk / "filler").unlink()
        assert server.create(clip).status_code == 200
        assert server.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_model_that_is_not_there_ends_the_service_with_a_sentence(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--model", str(tmp_path / "nothing"), ready=False)
    assert server.process.wait(120) == 2
    server._reader.join(10)
    assert any("nothing" in line and line.startswith("error: ") for line in server.log), server.log
