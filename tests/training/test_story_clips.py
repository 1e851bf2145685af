"""Stories show what their scenes say, as the checker reads them, and only what was said changes."""

import numpy as np
import pytest

from training.captioned_clips import UNSEEN
from training.evaluate_phenaki import SCENES, Tally, tally
from training.story_clips import KINDS, NOTHING, TOLD, TURNING, labels, random_story, render_story


@pytest.mark.parametrize("kind", KINDS[1:])
def test_what_a_scene_says_is_to_be_seen(kind: str) -> None:
    counts = Tally()
    kinds = ("snow", "clear") if kind == "clear" else (kind, "colour")
    for seed in range(40, 43):
        story = random_story(seed, SCENES, kinds=kinds)
        tally(story, render_story(story), counts)
    assert all(share == 1 for share in counts.shares().values()), counts.shares()


def test_a_story_is_a_function_of_its_seed() -> None:
    first, again, other = (random_story(seed, (9, 8)) for seed in (3, 3, 4))
    assert first.scenes == again.scenes != other.scenes
    assert np.array_equal(render_story(first), render_story(again))


def test_scenes_that_follow_change_nothing_before() -> None:
    short, long = random_story(7, (9, 8)), random_story(7, (9, 8, 8))
    assert long.scenes[:2] == short.scenes
    assert np.array_equal(render_story(long)[:17], render_story(short))


def test_a_colour_goes_over_within_a_few_frames() -> None:
    stories = (random_story(seed, (9, 8), kinds=("colour",)) for seed in range(20))
    story = next(story for story in stories if story.scenes[0].direction == "still")
    frames = render_story(story)
    moving = np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 1e-3
    assert moving.tolist() == [False] * 8 + [True] * TURNING + [False] * 4


def test_held_out_pairs_are_only_in_held_out_stories() -> None:
    seen = {(s.scenes[0].colour, s.scenes[0].shape) for s in (random_story(i, (9,)) for i in range(60))}
    held = {(s.scenes[0].colour, s.scenes[0].shape) for s in (random_story(i, (9,), unseen=True) for i in range(20))}
    assert not seen & set(UNSEEN)
    assert held <= set(UNSEEN)


def test_labels_name_what_the_caption_speaks_of() -> None:
    for seed in range(20):
        for scene in random_story(seed, (9, 8)).scenes:
            told = labels(scene)
            names = [None if n == NOTHING else values[n] for values, n in zip(TOLD, told, strict=True)]
            assert names[5] == scene.kind
            assert (names[0] is None) == (scene.colour not in scene.caption or scene.kind not in ("opening", "colour"))
