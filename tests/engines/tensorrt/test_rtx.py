"""NVIDIA's real parser and builder on what we export, for three kinds of GPU, on a machine without one."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_a_unet_is_built(tensorrt_rtx: dict[str, str], run_script: Callable[..., str], tmp_path: Path) -> None:
    said = run_script("drive_rtx.py", tensorrt_rtx, tmp_path, "unet", limit_s=900)
    assert "passed unet" in said


@pytest.mark.nightly
def test_the_stages_of_a_generator_are_built(
    tensorrt_rtx: dict[str, str], run_script: Callable[..., str], tmp_path: Path
) -> None:
    assert "passed stages" in run_script("drive_rtx.py", tensorrt_rtx, tmp_path, "stages", limit_s=900)


def test_fallbacks_failures_and_stopping(
    tensorrt_rtx: dict[str, str], run_script: Callable[..., str], tmp_path: Path
) -> None:
    checks = ("failures", "interrupt", "attention")
    said = run_script("drive_rtx.py", tensorrt_rtx, tmp_path, *checks)
    assert all(f"passed {check}" in said for check in checks)
