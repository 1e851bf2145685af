"""The scheduler: every unit once, nothing before what it needs, as few waves as there can be, and what is kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairy.runtime import InputError
from fairy.runtime.methods import PIX2VIDEO
from fairy.runtime.plan.order import Unit, alike, check_causal, depths, most_kept, ready_units

SIZES = {"num_frames": st.integers(1, 9), "steps": st.integers(1, 7)}


@st.composite
def causal_sources(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Any rule by which frames read earlier frames."""
    count = draw(st.integers(1, 8))
    return [tuple(draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True))) if i else () for i in range(count)]


@settings(deadline=None)
@given(causal_sources(), SIZES["steps"], st.sampled_from(["wavefront", "step-major"]), st.integers(1, 5))
def test_every_unit_once_and_nothing_before_what_it_needs(
    sources: list[tuple[int, ...]], steps: int, order: str, at_once: int
) -> None:
    done: set[Unit] = set()
    for units in ready_units(order, sources, steps):  # type: ignore[arg-type]
        for batch in alike(units, sources, at_once):
            assert 1 <= len(batch) <= at_once
            assert len({len(sources[i]) for i, _ in batch}) == 1
            for i, k in batch:
                assert k == 0 or Unit(i, k - 1) in done
                assert all(Unit(j, k) in done for j in sources[i])
        assert not done & set(units)
        done |= set(units)
    assert done == {Unit(i, k) for i in range(len(sources)) for k in range(steps)}


@settings(deadline=None)
@given(causal_sources(), SIZES["steps"])
def test_a_wave_comes_as_early_as_it_can(sources: list[tuple[int, ...]], steps: int) -> None:
    """Waves counted unit by unit, from what each waits for."""
    wave: dict[Unit, int] = {}
    for k in range(steps):
        for i, read in enumerate(sources):
            waits = [wave[Unit(j, k)] for j in read] + ([wave[Unit(i, k - 1)]] if k else [])
            wave[Unit(i, k)] = 1 + max(waits, default=-1)
    found = {unit: w for w, units in enumerate(ready_units("wavefront", sources, steps)) for unit in units}
    assert found == wave


@given(**SIZES)
def test_pix2video_takes_n_plus_t_minus_1_waves(num_frames: int, steps: int) -> None:
    waves = list(ready_units("wavefront", PIX2VIDEO.all_sources(num_frames, (0,)), steps))
    assert len(waves) == num_frames + steps - 1
    assert max(map(len, waves)) == min(num_frames, steps)
    assert all(i + k == w for w, units in enumerate(waves) for i, k in units)


@given(**SIZES, at_once=st.integers(1, 4))
def test_pix2video_keeps_two_units_for_each_frame_at_work(num_frames: int, steps: int, at_once: int) -> None:
    """About 2·min(N, T); besides, the batch at hand and a copy of what it reads, three units a frame."""
    kept = most_kept("wavefront", PIX2VIDEO.all_sources(num_frames, (0,)), steps, at_once)
    assert kept <= 2 * min(num_frames, steps) + 3 * at_once + 1
    assert most_kept("step-major", PIX2VIDEO.all_sources(num_frames, (0,)), steps, 1) <= 2 + 3


def test_what_is_kept_in_numbers() -> None:
    sources = PIX2VIDEO.all_sources(50, (0,))
    assert 100 <= most_kept("wavefront", sources, 50, 8) <= 125
    assert most_kept("step-major", sources, 50, 1) == 5
    assert most_kept("wavefront", [()], 3, 1) == 1


def test_depths() -> None:
    assert depths([(), (0,), (0,), (1, 2), ()]) == [0, 1, 1, 2, 0]


def test_a_rule_that_reads_later_frames_is_refused() -> None:
    check_causal("fine", [(), (0,)])
    with pytest.raises(InputError, match=r"'both ways' lets frame 0 read frames \[1\]"):
        check_causal("both ways", [(1,), (0,)])
