"""Every sampler, step by step, against diffusers' scheduler of that name given the same noise."""

from typing import Any

import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.runtime.denoise.sampler import SAMPLERS, Schedule, make_schedule, needs_noise, scale_model_input, step

BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {**BASE, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000},
    "trailing": {**BASE, "timestep_spacing": "trailing", "clip_sample": False},
    "leading": {
        **BASE,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "clip_sample": True,
        "clip_sample_range": 2.0,
    },
    "zero snr": {**BASE, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "clip_sample": False},
    "karras": {**BASE, "use_karras_sigmas": True},
}
CLASSES = {
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "lcm": "LCMScheduler",
}


def _theirs(sampler: str, config: dict[str, Any], steps: int) -> Any:
    import diffusers

    scheduler = getattr(diffusers, CLASSES[sampler]).from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def _their_step(scheduler: Any, sampler: str, output: torch.Tensor, t: Any, x: torch.Tensor, seed: int) -> torch.Tensor:
    extra = {} if sampler == "ddim" else {"generator": torch.Generator().manual_seed(seed)}
    return scheduler.step(output, t, x, return_dict=False, **extra)[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_step_by_step_as_diffusers(sampler: str, prediction: str, config: str, steps: int) -> None:
    if sampler == "euler_ancestral" and prediction == "sample":
        pytest.skip("diffusers has no Euler ancestral for x0 prediction; see the test of the formula below")
    if config == "zero snr" and prediction == "epsilon":
        pytest.skip("x0 cannot be told from noise alone at zero signal")
    full = {**CONFIGS[config], "prediction_type": prediction}
    scheduler, ours = _theirs(sampler, full, steps), make_schedule(sampler, full, steps)
    assert ours.timesteps == tuple(scheduler.timesteps.float().tolist())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 6, 5, generator=generator) * ours.init_noise_sigma
    assert ours.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma))
    for i, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(scale_model_input(ours, i, x), scheduler.scale_model_input(x, t))
        output = torch.randn(x.shape, generator=generator)
        expected = _their_step(scheduler, sampler, output, t, x, seed=i)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) if needs_noise(ours, i) else None
        found = step(ours, i, x, output, noise)
        scale = max(expected.abs().max().item(), x.abs().max().item())  # at zero signal x is 4096 times the result
        torch.testing.assert_close(found, expected, atol=1e-6 * scale, rtol=1e-5, msg=lambda m, i=i: f"step {i}: {m}")
        x = expected  # every step is judged by itself


def test_euler_ancestral_with_x0_prediction_lands_on_x0() -> None:
    ours = make_schedule("euler_ancestral", {**BASE, "prediction_type": "sample"}, 3)
    x, original = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(step(ours, 2, x, original, None), original)


def test_a_perfect_network_is_sampled_back_to_the_picture() -> None:
    """With the true noise as prediction every deterministic sampler returns the clean latents."""
    clean, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    for sampler in ("euler", "ddim"):
        ours = make_schedule(sampler, CONFIGS["trailing"] | {"prediction_type": "epsilon"}, 10)
        if ours.sigmas:
            x = clean + ours.sigmas[0] * noise
        else:
            x = ours.alphas[0][0] ** 0.5 * clean + (1 - ours.alphas[0][0]) ** 0.5 * noise
        for i in range(len(ours)):
            x = step(ours, i, x, noise, None)
        torch.testing.assert_close(x, clean, atol=1e-3, rtol=0)


def test_steps_are_pure() -> None:
    ours = make_schedule("euler_ancestral", CONFIGS["sd15"], 4)
    x, output, noise = (torch.randn(1, 4, 2, 2) for _ in range(3))
    kept = x.clone(), output.clone(), noise.clone()
    assert torch.equal(step(ours, 1, x, output, noise), step(ours, 1, x, output, noise))
    assert all(torch.equal(a, b) for a, b in zip((x, output, noise), kept, strict=True))


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "words"),
    [
        ("heun", {}, 4, "'heun' is not known; choose one of euler_ancestral"),
        ("euler", {"prediction_type": "flow"}, 4, "'flow' is not known"),
        ("ddim", {"thresholding": True}, 4, "Thresholding"),
        ("ddim", {}, 2000, "2000 steps are not possible with ddim"),
        ("euler", {"beta_schedule": "odd"}, 4, "scheduler configuration is not possible"),
        ("euler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, 4, "FlowMatchEulerDiscreteScheduler"),
        ("lcm", {}, 51, "51 steps are not possible with lcm"),
    ],
)
def test_impossible_schedules_are_refused(sampler: str, config: dict[str, Any], steps: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_schedule(sampler, {**BASE, **config}, steps)


def test_a_schedule_is_plain_data() -> None:
    ours = make_schedule("lcm", CONFIGS["sd15"], 4)
    assert isinstance(ours, Schedule)
    assert hash(ours) == hash(make_schedule("lcm", CONFIGS["sd15"], 4))
