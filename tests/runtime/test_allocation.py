"""Freed memory stays with the process, and who has chosen otherwise keeps what they chose."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from fairy.runtime.allocation import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
np.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 20)  # 8 MiB
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(word: str, **environment: str) -> tuple[str, int]:
    run = [sys.executable, "-P", "-c", SCRIPT, word]
    said = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ | environment).stdout.split()
    return said[0], int(said[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way")
def test_memory_is_not_asked_for_again_and_again() -> None:
    kept, faults = _faults("keep")
    assert kept == "True"
    assert faults < 2500  # 50 times 2048 pages otherwise, or 50 huge ones


def test_a_user_s_own_choice_stays() -> None:
    assert _faults("keep", MALLOC_TOP_PAD_="65536")[0] == "False"
