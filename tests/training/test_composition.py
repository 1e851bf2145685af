"""What is read from a clip is what its caption says."""

import numpy as np
import pytest

from training.captioned_clips import RATES, UNSEEN, Clip, random_clip, render_clip
from training.composition import look, obeyed

CLIPS = 120


@pytest.fixture(scope="module")
def clips() -> list[tuple[Clip, np.ndarray]]:
    made = []
    for seed in range(CLIPS):
        fps = RATES[seed % 2]
        clip = random_clip(seed, fps=fps, unseen=seed % 4 == 0)
        made.append((clip, render_clip(clip, fps=fps)))
    return made


def test_rendered_clips_obey_their_captions(clips) -> None:
    told = [obeyed(clip, look(frames)) for clip, frames in clips]
    for part in ("colour", "shape", "motion", "place"):
        share = np.mean([t[part] for t in told if part in t])
        assert share >= 0.98, part


def test_clips_of_other_captions_do_not(clips) -> None:
    shifted = [obeyed(clip, look(frames)) for (clip, _), (_, frames) in zip(clips, clips[7:], strict=False)]
    assert np.mean([t["all three"] for t in shifted]) < 0.1
    assert np.mean([t["motion"] for t in shifted]) < 0.4


def test_an_empty_clip_shows_nothing(clips) -> None:
    clip, frames = clips[0]
    assert not any(obeyed(clip, look(np.zeros_like(frames))).values())
    noise = np.random.default_rng(0).random(frames.shape, np.float32)
    assert not obeyed(clip, look(noise))["all three"]


def test_held_out_pairs_are_never_drawn_for_training(clips) -> None:
    for clip, _ in clips:
        drawn = random_clip(hash(clip.caption) % 10_000, fps=4.0)
        assert (drawn.colour, drawn.shape) not in UNSEEN
