"""Working folders: removed with their process, or by the next one where that was killed; others' are left alone."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fairy.runtime.temporary import WorkingFolder, remove_abandoned

HOLDER = (
    "import time; from fairy.runtime.temporary import WorkingFolder as W; print(W().path, flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_goes_with_its_owner(place: Path) -> None:
    folder = WorkingFolder()
    assert folder.path.parent == place
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "job-1").write_text("x")
    folder.close()
    folder.close()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(place: Path) -> None:
    killed, lives = (
        subprocess.Popen([sys.executable, "-P", "-c", HOLDER], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    left, kept = (Path(process.stdout.readline().strip()) for process in (killed, lives))
    mine = place / "fairy-tales"
    mine.mkdir()
    (place / "fairy-link").symlink_to(kept)
    (place / "fairy-file").write_text("not a folder")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=20)
        assert left.is_dir()
        folder = WorkingFolder()
        assert not left.exists()
        assert all(path.exists() for path in (kept, mine, place / "fairy-link", place / "fairy-file", folder.path))
        folder.close()
    finally:
        lives.kill()
        lives.wait(timeout=20)
        for process in (killed, lives):
            process.stdout.close()
    remove_abandoned()
    assert not kept.exists()
    assert mine.exists()


def test_another_users_folder_is_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WorkingFolder()
    os.close(folder._lock)  # as if its process had ended
    monkeypatch.setattr(os, "getuid", lambda: folder.path.stat().st_uid + 1)
    remove_abandoned()
    assert folder.path.exists()
