"""The sampler of masked codes against diffusers' own parts of the same rule, and what it promises."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_amused import mask_by_random_topk

from fairy.runtime.denoise.noise import keyed_generator
from fairy.runtime.generation.masked_sampler import draw_codes, gumbel_noise, mask_again, masked_after


def logits(codes: int = 60, kinds: int = 7) -> torch.Tensor:
    return 2 * torch.randn(codes, kinds, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 8.0])
@pytest.mark.parametrize("count", [1, 17, 39])
def test_who_is_masked_again_is_what_diffusers_chooses(count: int, temperature: float) -> None:
    given = logits()
    is_masked = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.7
    codes = draw_codes(given, torch.zeros(60, dtype=torch.long), is_masked, "draw")
    probabilities = given.softmax(1).gather(1, codes[:, None])[:, 0].masked_fill(~is_masked, math.inf)
    wanted = mask_by_random_topk(
        torch.tensor([[count]]), probabilities[None], temperature, generator=keyed_generator("choice")
    )[0]
    assert torch.equal(mask_again(given, codes, is_masked, count, temperature, "choice"), wanted)


def test_codes_are_drawn_as_often_as_they_are_likely_and_only_where_masked() -> None:
    one = logits(1).expand(40_000, -1)
    drawn = draw_codes(one, torch.full((40_000,), 3), torch.ones(40_000, dtype=torch.bool), "many")
    shares = torch.bincount(drawn, minlength=7) / 40_000
    torch.testing.assert_close(shares, one[0].softmax(0), rtol=0, atol=0.01)
    kept = draw_codes(one, torch.full((40_000,), 3), torch.zeros(40_000, dtype=torch.bool), "many")
    assert (kept == 3).all()


@pytest.mark.parametrize("steps", [1, 2, 12, 48, 300])
def test_the_number_of_masked_codes_falls_by_the_cosine(steps: int) -> None:
    masked = unknown = 256
    for step in range(steps - 1):
        count = masked_after(step, steps, unknown, masked)
        published = max(1, min(masked - 1, int(256 * math.cos(math.pi / 2 * (step + 1) / steps))))
        assert count == published
        masked = count
    assert masked >= 1


def test_noise_is_of_its_key_alone() -> None:
    assert torch.equal(gumbel_noise("a", (5, 3)), gumbel_noise("a", (5, 3)))
    assert not torch.equal(gumbel_noise("a", (5, 3)), gumbel_noise("b", (5, 3)))
    many = gumbel_noise("many", (200_000,))
    assert abs(float(many.mean()) - 0.5772) < 0.01
    assert abs(float(many.var()) - math.pi**2 / 6) < 0.03
