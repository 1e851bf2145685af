"""A film of two thousand frames takes no more memory than one of a few hundred."""

from pathlib import Path

import pytest

from benchmarks.soak import soak


@pytest.mark.slow
@pytest.mark.nightly
def test_memory_is_the_same_for_two_thousand_frames(checkpoint_folder: Path) -> None:
    """Every process of the command together, through a whole edit; the first third is for it to settle."""
    one_branch = ("--guidance-scale", "1", "--image-guidance-scale", "1", "--micro-batch", "8")
    result = soak(2000, 32, 32, 1, 0.0, str(checkpoint_folder), one_branch)
    third = len(result.mebibytes) // 3
    assert third >= 3, "the edit was too short to be watched"
    settled, later = max(result.mebibytes[:third]), max(result.mebibytes[third:])
    assert later < settled + 24, f"{settled} MiB, later {later} MiB: {result.mebibytes}"
    assert result.first_frame_s < result.total_s / 4
