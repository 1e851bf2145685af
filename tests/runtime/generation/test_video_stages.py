"""Smoother and larger videos: stamps, cuts, sound, windows and tiles."""

import itertools
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from fairy.kernels.errors import Cancelled, InputError
from fairy.runtime.generation import networks as networks_module
from fairy.runtime.generation.networks import CascadeNetworks
from fairy.runtime.generation.params import InterpolateParams, UpscaleParams
from fairy.runtime.generation.video_stages import Interpolator, Upscaler, finer_clock, places_at_rate
from fairy.runtime.generation.windows import (
    Window,
    interpolation_windows,
    regular_places,
    super_resolution_windows,
)
from fairy.runtime.video import Clock, probe
from tests.runtime.conftest import make_frames, write_clip


@pytest.fixture(scope="module")
def interpolator(small_generator: Path):
    with Interpolator.from_pretrained(small_generator) as opened:
        yield opened


@pytest.fixture(scope="module")
def upscaler(small_generator: Path):
    with Upscaler.from_pretrained(small_generator) as opened:
        yield opened


def test_known_frames_stay_what_they_are(interpolator: Interpolator) -> None:
    frames = make_frames(5, 24, 32)
    made = interpolator.run(frames, InterpolateParams(times=3)).frames
    assert made.shape == (13, 24, 32, 3)
    np.testing.assert_array_equal(made[::3], frames)
    assert not np.array_equal(made[1], frames[0])


def test_the_stamps_of_a_variable_rate_lie_between_their_neighbours(
    interpolator: Interpolator, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "smooth.mp4"
    report = interpolator.run_file(clip, out, InterpolateParams(times=2))
    source, made = probe(clip), probe(out)
    assert report.num_frames == made.num_frames == 9
    seconds = (made.pts - made.pts[0]) * float(made.time_base)
    np.testing.assert_allclose(seconds, [0, 0.02, 0.04, 0.065, 0.09, 0.105, 0.12, 0.16, 0.2], atol=2e-3)
    assert made.duration_s == pytest.approx(source.duration_s, abs=2e-3)
    assert made.audio == source.audio


def test_a_constant_rate_of_a_variable_one(interpolator: Interpolator, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "sixty.mp4"
    interpolator.run_file(clip, out, InterpolateParams(fps=60))
    made = probe(out)
    assert made.frame_rate == 60
    assert made.duration_s == pytest.approx(probe(clip).duration_s, abs=1 / 60)


def test_places_at_a_rate_follow_the_clock() -> None:
    clock = Clock(np.array([0, 40, 90, 120, 200]), Fraction(1, 1000), 40)
    places, made = places_at_rate(clock, Fraction(50))
    seconds = np.interp([float(p) for p in places], range(5), [0, 0.04, 0.09, 0.12, 0.2])
    np.testing.assert_allclose(seconds[:11], np.arange(11) / 50, atol=1e-4)
    assert places[2] == 1
    assert places[-1] == 4
    assert len(made.pts) == 12
    assert made.end * made.time_base == Fraction(240, 1000)
    assert finer_clock(clock, 2).end * finer_clock(clock, 2).time_base == Fraction(240, 1000)


def test_nothing_is_made_across_a_cut(interpolator: Interpolator) -> None:
    frames = np.concatenate([np.full((3, 16, 16, 3), 10, np.uint8), np.full((3, 16, 16, 3), 240, np.uint8)])
    made = interpolator.run(frames, InterpolateParams(times=4, shots=(3,))).frames
    assert set(np.unique(made[9:12])) == {10}
    windows = interpolation_windows(regular_places(6, 4), 6, (3,))
    assert [w.reads for w in windows] == [(0, 2), (1, 3), (2, 3), (3, 5), (4, 6), (5, 6)]


def test_every_frame_is_made_once_and_windows_read_their_shot_alone(small_generator: Path) -> None:
    stage = CascadeNetworks(small_generator, torch.device("cpu"), torch.float32).cascade.stages[2]
    for frames, cuts in ((1, ()), (7, ()), (20, (4, 5, 17))):
        windows = super_resolution_windows(stage, frames, cuts)
        assert list(itertools.chain.from_iterable(range(*w.makes) for w in windows)) == list(range(frames))
        for window in windows:
            assert not any(window.reads[0] < cut < window.reads[1] for cut in cuts)
            assert len(range(*window.reads)) <= stage.window


def test_a_picture_in_tiles_is_the_picture(small_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = CascadeNetworks(small_generator, torch.device("cpu"), torch.float32)
    frames = torch.from_numpy(make_frames(3, 100, 72)).permute(0, 3, 1, 2).float() / 255
    window = Window((0, 3), (0, 3), tuple(map(Fraction, range(3))))
    whole = networks.super_resolve(networks.cascade.stages[2], window, frames, 0)
    monkeypatch.setattr(networks_module, "_TILE", 16)
    monkeypatch.setattr(networks_module, "_TILE_MARGIN", 32)
    tiled = networks.super_resolve(networks.cascade.stages[2], window, frames, 0)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-5)


def test_all_frames_begin_with_the_same_noise(small_generator: Path) -> None:
    """A still video stays still, however noisy its beginning."""
    with Upscaler.from_pretrained(small_generator) as upscaler:
        still = np.repeat(make_frames(1, 16, 16), 4, axis=0)
        made = upscaler.run(still, UpscaleParams(times=4, shots="off")).frames
    by_frame = CascadeNetworks(small_generator, torch.device("cpu"), torch.float32)
    one = torch.from_numpy(still[:1]).permute(0, 3, 1, 2).float() / 255
    window = Window((0, 1), (0, 1), (Fraction(0),))
    alone = by_frame.super_resolve(by_frame.cascade.stages[3], window, one, 0)
    again = by_frame.super_resolve(by_frame.cascade.stages[3], Window((2, 3), (2, 3), (Fraction(2),)), one, 0)
    assert torch.equal(alone, again)
    assert made.shape == (4, 64, 64, 3)


@pytest.mark.parametrize("workers", [2])
def test_workers_and_a_stop_change_no_byte(
    workers: int, upscaler: Upscaler, small_generator: Path, tmp_path: Path
) -> None:
    source = write_clip(tmp_path / "clip.mp4", make_frames(19, 18, 26))
    params, out = UpscaleParams(times=2, shots=(6,)), tmp_path / "large.mp4"
    alone = upscaler.run_file(source, out, params)
    made = probe(out)
    assert (made.width, made.height, made.num_frames, made.audio) == (52, 36, 19, probe(source).audio)
    with Upscaler.from_pretrained(small_generator, workers=workers) as several:
        assert several.run_file(source, out, params).frames_sha256 == alone.frames_sha256
    cancel, seen = threading.Event(), itertools.count()

    def stop(progress) -> None:
        if progress.stage == "super_resolution" and next(seen) == 4:
            cancel.set()

    with pytest.raises(Cancelled):
        upscaler.run_file(source, tmp_path / "other.mp4", params, on_progress=stop, cancel=cancel)
    resumed = upscaler.run_file(source, tmp_path / "other.mp4", params, resume=True)
    assert resumed.resumed_frames > 0
    assert resumed.frames_sha256 == alone.frames_sha256


@pytest.mark.parametrize(
    ("kind", "params", "sentence"),
    [
        (Upscaler, UpscaleParams(times=3), "times = 3 is none that the stages make; choose one of 2, 4"),
        (Upscaler, UpscaleParams(times=4, max_pixels=2000), "would make 128×96"),
        (Interpolator, InterpolateParams(fps=30), "needs a clock"),
        (Interpolator, InterpolateParams(shots=(9,)), "names frame 9"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(kind, params, sentence: str, small_generator: Path) -> None:
    with kind.from_pretrained(small_generator) as stages, pytest.raises(InputError, match=sentence):
        stages.run(make_frames(3, 24, 32), params)


def test_times_and_fps_together_are_refused() -> None:
    with pytest.raises(InputError, match="beside times"):
        InterpolateParams(times=2, fps=30)
