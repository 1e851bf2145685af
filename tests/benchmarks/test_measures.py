"""The figures of quality on cases whose answer is known."""

import numpy as np
import pytest
import torch

from benchmarks.clips import make_clip
from benchmarks.measures import estimate, psnr, tem_con, warp, warp_error
from benchmarks.quality import Figures, Row, markdown, rows, summarise


def test_psnr_of_a_known_error() -> None:
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(frames, frames + 51) == pytest.approx(20 * np.log10(5))
    mask = np.zeros((2, 4, 4), bool)
    mask[0, 0, 0] = True
    worse = frames.copy()
    worse[0, 0, 0] = 151
    assert psnr(frames, worse, mask) == pytest.approx(20 * np.log10(5))


def test_warping_moves_by_the_flow() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    flow = np.zeros((6, 9, 2), np.float32)
    flow[..., 0] = 2.0
    moved = warp(picture, flow)
    assert np.allclose(moved[:, :7], picture[:, 2:], atol=1e-9)


def test_a_true_clip_has_almost_no_warp_error_and_flicker_has() -> None:
    clip = make_clip(1, "sepia", num_frames=4, size=96)
    still = warp_error(clip.source, clip.flows, clip.visible)
    target = warp_error(clip.target, clip.flows, clip.visible)
    flicker = clip.source.astype(int) + np.array([0, 25, 0, 25])[:, None, None, None]
    shaken = warp_error(flicker.clip(0, 255).astype(np.uint8), clip.flows, clip.visible)
    assert still < 15
    assert target < 15
    assert shaken > still + 0.5 * 1e4 * (25 / 255) ** 2
    assert min(mask.mean() for mask in clip.visible) > 0.2


def test_clips_are_the_same_every_time_and_show_what_is_asked() -> None:
    one, two = (make_clip(0, "palette", num_frames=3, size=64) for _ in range(2))
    assert np.array_equal(one.source, two.source)
    assert one.kind == "free"
    assert one.source.shape == one.target.shape == (3, 64, 64, 3)
    assert not np.array_equal(one.source[0], one.source[2])
    assert make_clip(0, "recolour", num_frames=2, size=64).mask.any()


def test_tem_con_is_one_for_a_still_and_less_otherwise() -> None:
    still = torch.nn.functional.normalize(torch.ones(4, 8), dim=-1)
    assert tem_con(still) == pytest.approx(1.0)
    turned = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=-1)
    assert tem_con(turned) == pytest.approx(0.5**0.5)


def test_intervals_hold_the_mean_and_shrink_with_more_cases() -> None:
    rng = np.random.default_rng(1)
    few, many = estimate(list(rng.normal(5, 1, 6))), estimate(list(rng.normal(5, 1, 600)))
    assert few.low <= few.mean <= few.high
    assert many.high - many.low < few.high - few.low
    assert many.low < 5 < many.high
    assert estimate([]).count == 0


def test_the_table_has_every_row_and_column() -> None:
    names = rows(["before", "after"])
    assert len(names) == 12
    figures = [
        Figures(row, f"{i}", kind, 1.0, None if kind == "free" else 20.0 + i, 10.0 - row.anchors, 0.9)
        for row in names
        for i, kind in enumerate(["global", "free", "local"])
    ]
    table = summarise(figures)
    assert [entry["row"] for entry in table] == names
    assert table[0]["exact psnr_db"].mean == 21.0
    assert table[0]["ambiguous psnr_db"].count == 0
    text = markdown(table, "some encoder", 3, 60)
    assert text.count("\n| ") == 12
    assert "not comparable" in text
    assert "3 anchors, after" in text
    assert Row("x", "shared", 1).title == "1 anchor, x"
