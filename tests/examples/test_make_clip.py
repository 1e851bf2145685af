"""The demo's clip is a real video: H.264 and AAC, moving, the same every time."""

from pathlib import Path

import numpy as np

from examples.make_clip import render, tone, write_clip
from fairy.runtime.video import probe, read_frames


def test_the_clip_is_playable_and_has_sound(tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    write_clip(out, 12, 128, 96)
    info = probe(out)
    assert (info.num_frames, info.width, info.height) == (12, 128, 96)
    assert info.codec == "h264"
    assert info.audio == ("aac",)
    assert info.frame_rate == 24
    assert not info.color_assumed
    frames = np.stack(list(read_frames(info))).astype(int)
    rendered = np.stack(list(render(12, 128, 96))).astype(int)
    assert np.abs(frames - rendered).mean() < 4


def test_everything_moves() -> None:
    frames = np.stack(list(render(8, 128, 96))).astype(int)
    changes = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert changes.min() > 1
    assert np.array_equal(frames, np.stack(list(render(8, 128, 96))))


def test_the_tone_lasts_as_long_as_the_picture() -> None:
    blocks = list(tone(0.5))
    assert sum(block.samples for block in blocks) == 22050
    assert [block.pts for block in blocks][:3] == [0, 1024, 2048]
