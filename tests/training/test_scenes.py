"""Scenes are functions of their seed, and their optical flow is exact."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from training import photographs
from training.flow import backward_flow
from training.random_scenes import APART, random_scene
from training.scenes import Motion, Photo, Scene, render
from training.textures import Texture


def warped(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """``image`` read at every pixel's position plus flow, by cubic splines."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    places = [y + flow[..., 1], x + flow[..., 0]]
    return np.stack([map_coordinates(image[..., c], places, order=3, mode="nearest") for c in range(3)], axis=-1)


@pytest.mark.parametrize("seed", [0, 7, 123456])
def test_same_seed_same_bytes(seed: int) -> None:
    first, second = (render(random_scene(seed, 96, 128), 1.5) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


def test_other_seed_other_picture() -> None:
    assert not np.array_equal(render(random_scene(0)).image, render(random_scene(1)).image)


def test_no_object_is_buried_under_another() -> None:
    """Centres keep their distance, in crowded scenes too, and most scenes still hold many objects."""
    scenes = [random_scene(seed, 96, 96, photos=0) for seed in range(50)]
    for scene in scenes:
        for index, sprite in enumerate(scene.sprites):
            for other in scene.sprites[:index]:
                apart = np.subtract(sprite.centre, other.centre)
                assert np.hypot(*apart) >= APART * (sprite.radius + other.radius)
    counts = [len(scene.sprites) for scene in scenes]
    assert min(counts) >= 1
    assert np.mean(counts) > 6, counts


@pytest.mark.parametrize("seed", range(6))
def test_flow_carries_the_earlier_frame_onto_the_later(seed: int) -> None:
    scene = random_scene(seed, 160, 192)
    before, after = render(scene, 0.0).image, render(scene, 3.0).image
    flow, visible = backward_flow(scene, 3.0, 0.0)
    assert visible.mean() > 0.5, f"{seed=} {visible.mean()=}"
    moved = np.abs(warped(before, flow) - after).mean(axis=2)[visible]
    still = np.abs(before - after).mean(axis=2)[visible]
    assert moved.mean() < 0.012, f"{seed=} {moved.mean()=}"
    assert moved.mean() < 0.5 * still.mean(), f"{seed=} {moved.mean()=} {still.mean()=}"


def test_flow_of_a_camera_shift_is_that_shift() -> None:
    plain = Texture("stripes", 9.0, 0.4, (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    scene = Scene(32, 48, plain, (), Motion(shift=(1.5, -0.5)))
    flow, visible = backward_flow(scene, 2.0, 0.0)
    np.testing.assert_allclose(flow, np.broadcast_to([3.0, -1.0], flow.shape), atol=1e-5)
    assert not visible[:, -4:].any()
    assert visible[4:-4, 4:-6].all()


def test_held_out_photographs_are_never_in_a_scene() -> None:
    backgrounds = [random_scene(seed, 32, 32, photos=1.0).background for seed in range(300)]
    names = {background.name for background in backgrounds if isinstance(background, Photo)}
    assert names == {*photographs.TRAINING, *photographs.TRAINING_GREY}
    assert not names & {*photographs.HELD_OUT}
