"""The editor's loss: which times it learns at, and that the first step of sampling is learned from noise alone."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from training.editor import (
    NOTHING,
    TRAIN_STEPS,
    Batch,
    EditorPlan,
    TextEditor,
    alphas_cumprod,
    draw_times,
    editor_loss,
    shapes_loss,
)

LAST = TRAIN_STEPS - 1


class Listener(nn.Module):
    """Answers what it is told to, and remembers what it saw."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.seen = torch.empty(0)

    def forward(
        self, noisy_BCHW: torch.Tensor, image_BCHW: torch.Tensor, time_B: torch.Tensor, tokens_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen = noisy_BCHW
        return self.answer, torch.zeros(2, 7, 4, 4)


def batch(time: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    target, image, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    shapes = torch.full((2, 8, 8), NOTHING)
    return Batch(target, image, shapes, torch.zeros(2, 24, dtype=torch.long), noise, torch.full((2,), time))


def loss(listener: Listener, of: Batch) -> float:
    return float(editor_loss(cast(TextEditor, listener), of, alphas_cumprod(), torch.ones(2, 1, 8, 8), 1.0))


@pytest.mark.parametrize("time", [0, 500, LAST - 1])
def test_input_is_the_target_under_noise(time: int) -> None:
    of = batch(time)
    a = float(alphas_cumprod()[time])
    listener = Listener(a**0.5 * of.noise - (1 - a) ** 0.5 * of.target)
    assert loss(listener, of) < 1e-10
    torch.testing.assert_close(listener.seen, a**0.5 * of.target + (1 - a) ** 0.5 * of.noise)


def test_at_the_last_time_there_is_no_trace_of_the_target() -> None:
    """And a right answer there still is the v from which a sampler finds the target."""
    of, other = batch(LAST), replace(batch(LAST), target=torch.zeros(2, 4, 8, 8))
    a = float(alphas_cumprod()[LAST])
    answer = a**0.5 * of.noise - (1 - a) ** 0.5 * of.target
    listener = Listener(answer)
    assert loss(listener, of) < 1e-10
    seen = listener.seen
    loss(listener, other)
    assert torch.equal(seen, listener.seen), "the input must not depend on the target"
    found = a**0.5 * seen - (1 - a) ** 0.5 * answer
    torch.testing.assert_close(found, of.target, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("blind", "early"), [(0.3, 0.3), (1.0, 0.0), (0.0, 0.0)])
def test_times_come_in_the_shares_of_the_plan(blind: float, early: float) -> None:
    times = draw_times(EditorPlan(blind=blind, early=early), np.random.default_rng(0), 20_000)
    assert times.min() >= 0
    assert times.max() <= LAST
    evenly = 1 - blind - early
    assert abs((times == LAST).mean() - blind) < 0.01
    assert abs((times < 750).mean() - 0.75 * evenly) < 0.015


def test_recognised_shapes_count_only_where_they_are_known() -> None:
    """Right and sure costs nothing, no opinion costs log 7; a sample without an image costs nothing at all."""
    shapes = torch.randint(7, (3, 8, 8), generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 1)
    shapes = shapes.repeat_interleave(4, 2)
    sure = 50 * torch.nn.functional.one_hot(shapes, 7).permute(0, 3, 1, 2).float()
    assert float(shapes_loss(sure, shapes)) < 1e-3
    assert abs(float(shapes_loss(torch.zeros(3, 7, 16, 16), shapes)) - np.log(7)) < 1e-5
    partly = shapes.clone()
    partly[1:] = NOTHING
    wrong = sure.clone()
    wrong[1:] = -wrong[1:]
    assert float(shapes_loss(wrong, partly)) < 1e-3
    assert float(shapes_loss(wrong, torch.full_like(shapes, NOTHING))) == 0
