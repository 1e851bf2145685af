"""The judge's figures for edits whose quality is known."""

import numpy as np
import pytest

from training.evaluate_editors import EditCase, as_markdown, by_row, grown, judge, with_details

GREY = np.full((64, 64, 3), 0.5, np.float32)
PAINTED = GREY.copy()
PAINTED[16:32, 16:32] = 0.9
CASE = EditCase("recolour", "paint it", GREY, PAINTED)
SAME = EditCase("absent", "paint what is not there", GREY, GREY)


def test_the_exact_edit_is_obeyed_and_does_not_stray() -> None:
    figures = judge(CASE, PAINTED, GREY)
    assert (figures["obeyed"], figures["strayed"], figures["strayed_from_source"]) == (1, 0, 0)
    assert figures["psnr"] == figures["psnr_region"] == 100


def test_no_edit_is_not_obeyed() -> None:
    figures = judge(CASE, GREY, GREY)
    assert figures["obeyed"] == 0
    assert figures["psnr_region"] == pytest.approx(-20 * np.log10(0.4), abs=1e-3)
    assert figures["psnr"] == pytest.approx(figures["psnr_region"] + 10 * np.log10(16), abs=1e-3)


@pytest.mark.parametrize(("share", "obeyed"), [(0.5, 0), (0.57, 0), (0.6, 1)])
def test_obeyed_is_nearer_to_the_target_by_three_decibels(share: float, obeyed: int) -> None:
    """A step of share s on the way leaves (1 - s)^2 to the target and s^2 to the source: even at s = 0.586."""
    edited = (1 - share) * GREY + share * PAINTED
    assert judge(CASE, edited, GREY)["obeyed"] == obeyed


def test_straying_is_counted_beyond_the_margin_only() -> None:
    edited = PAINTED.copy()
    edited[8:40, 8:40] = 0.9
    assert judge(CASE, edited, GREY)["strayed"] == 0
    edited[:4] = 0.9
    outside = 64 * 64 - 32 * 32
    assert judge(CASE, edited, GREY)["strayed"] == pytest.approx(4 * 64 / outside)


def test_what_should_stay_is_obeyed_if_it_does() -> None:
    edited = GREY.copy()
    assert judge(SAME, edited, GREY)["obeyed"] == 1
    edited[:4] += 9 / 255
    assert judge(SAME, edited, GREY)["obeyed"] == 0
    assert "psnr_region" not in judge(SAME, edited, GREY)


def test_the_region_grows_by_a_latent() -> None:
    region = np.zeros((64, 64), bool)
    region[20, 30] = True
    assert grown(region).sum() == 17 * 17


def test_rows_are_means_and_stand_beside_each_other() -> None:
    cases = [CASE, CASE, SAME]
    rows = by_row(cases, [judge(CASE, PAINTED, GREY), judge(CASE, GREY, GREY), judge(SAME, GREY, GREY)])
    assert rows["recolour"]["obeyed"] == 0.5
    assert rows["recolour"]["cases"] == 2
    table = as_markdown({"old": rows, "new": {"recolour": rows["recolour"]}})
    assert "| recolour | 2 |" in table
    assert "obeyed %, old | obeyed %, new" in table


def test_details_are_kept_as_the_runtime_keeps_them() -> None:
    """Where nothing was edited the source comes back, in its levels, whatever the autoencoder made of it."""
    rng = np.random.default_rng(0)
    source = (rng.integers(60, 190, (64, 64, 3)) / 255).astype(np.float32)
    restored = np.clip(source + rng.normal(0, 0.05, source.shape), 0, 1).astype(np.float32)
    assert np.abs(with_details(source, restored, restored) - source).max() < 1e-6
    edited = restored.copy()
    edited[:, :32] = 0.9
    mended = with_details(source, edited, restored)
    assert np.abs(mended[:, 60:] - source[:, 60:]).max() < 1e-6
    assert mended[:, :16].mean() == pytest.approx(0.9, abs=0.02)
