"""The tests of the Triton kernels in Triton's interpreter: in a process of its own, since importing chooses it."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

FOLDER = Path(__file__).parent / "interpreter"


ATTENTION = FOLDER / "test_anchor_attention_kernel.py"


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter's own process")
@pytest.mark.parametrize(
    ("words", "least"),
    [
        pytest.param([ATTENTION, "-m", "not nightly"], 25, id="attention"),
        pytest.param([FOLDER, "--ignore", ATTENTION, "-m", "not nightly"], 50, id="elementwise and linears"),
        pytest.param([FOLDER, "-m", "nightly"], 15, id="sweeps", marks=pytest.mark.nightly),
    ],
)
def test_kernels_in_the_interpreter(words: list, least: int) -> None:
    if Version(version("triton")) < Version("3.7.1") and Version(version("numpy")) >= Version("2.4"):
        pytest.skip(
            "Triton's interpreter before 3.7.1 does not work with NumPy 2.4: install one of them older or newer"
        )
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *map(str, words)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=FOLDER.parents[2], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed.group(1)) >= least
    assert "skipped" not in done.stdout, done.stdout
