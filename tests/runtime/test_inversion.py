"""DDIM inversion against diffusers' inverse scheduler, and there and back again."""

import pytest
import torch

from fairy.runtime.denoise.sampler import make_schedule, step
from fairy.runtime.inputs.inversion import INVERTIBLE, inverted

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
CONFIG |= INVERTIBLE


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_steps_are_those_of_diffusers_inverse_scheduler(steps: int, offset: int, prediction: str) -> None:
    from diffusers import DDIMInverseScheduler

    config = CONFIG | {"steps_offset": offset, "prediction_type": prediction}
    schedule = inverted(make_schedule("ddim", config, steps))
    theirs = DDIMInverseScheduler.from_config(config)
    theirs.set_timesteps(steps)
    assert schedule.timesteps == tuple(theirs.timesteps.float().tolist())
    generator = torch.Generator().manual_seed(steps)
    x = y = torch.randn(2, 4, 6, 5, generator=generator)
    for i, t in enumerate(theirs.timesteps):
        output = torch.randn(2, 4, 6, 5, generator=generator)
        x, y = step(schedule, i, x, output, None), theirs.step(output, t, y).prev_sample
        torch.testing.assert_close(x, y, atol=2e-4, rtol=2e-4)


def test_there_and_back_again_where_the_prediction_does_not_change() -> None:
    schedule = make_schedule("ddim", CONFIG, 20)
    x = start = torch.randn(1, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    epsilon = torch.randn(1, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for i in range(20):
        x = step(inverted(schedule), i, x, epsilon, None)
    assert (x - start).abs().max() > 0.5
    for i in range(20):
        x = step(schedule, i, x, epsilon, None)
    torch.testing.assert_close(x, start, atol=1e-10, rtol=0)
