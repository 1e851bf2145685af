"""Every sampler, step by step, against diffusers' scheduler of that name given the same noise."""

from typing import Any

import numpy as np
import pytest
import torch

from fairy.kernels.errors import InputError
from fairy.runtime.denoise.log_snr import alpha_bar, log_snr
from fairy.runtime.denoise.sampler import Schedule, make_schedule, needs_noise, scale_model_input, step

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
    "thresholding": {**BASE, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.7},
    "largest variance": {**BASE, "clip_sample": False, "variance_type": "fixed_large"},
}
CLASSES = {
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
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


@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_step_by_step_as_diffusers(sampler: str, prediction: str, config: str, steps: int) -> None:
    if sampler == "euler_ancestral" and prediction == "sample":
        pytest.skip("diffusers has no Euler ancestral for x0 prediction; see the test of the formula below")
    if config == "zero snr" and prediction == "epsilon":
        pytest.skip("x0 cannot be told from noise alone at zero signal")
    if config == "thresholding" and sampler not in ("ddim", "ddpm"):
        pytest.skip("thresholding is not offered with this sampler")
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
        ("euler", {"thresholding": True}, 4, "Thresholding"),
        ("ddim", {}, 2000, "2000 steps are not possible with ddim"),
        ("euler", {"beta_schedule": "odd"}, 4, "scheduler configuration is not possible"),
        ("euler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, 4, "trained by flow matching"),
        ("flow_match_euler", {}, 4, "trained otherwise"),
        ("lcm", {}, 51, "51 steps are not possible with lcm"),
    ],
)
def test_impossible_schedules_are_refused(sampler: str, config: dict[str, Any], steps: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_schedule(sampler, {**BASE, **config}, steps)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("config", "shift"),
    [
        ({"shift": 3.0}, None),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, 0.8),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear", "stochastic_sampling": True}, 1.7),
    ],
)
def test_flow_matching_step_by_step_as_diffusers(config: dict[str, Any], shift: float | None) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling

    steps, full = 4, {**FLOW, **config}
    scheduler, ours = (
        FlowMatchEulerDiscreteScheduler.from_config(full),
        make_schedule("flow_match_euler", full, steps, shift=shift),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
    assert ours.timesteps == tuple(scheduler.timesteps.tolist())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 6, 5, generator=generator)
    for i, t in enumerate(scheduler.timesteps):
        output, noise = (torch.randn(x.shape, generator=generator) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:  # it draws noise by itself
            patch.setattr(scheduling, "randn_tensor", lambda *_, noise=noise, **__: noise)
            expected = scheduler.step(output, t, x, return_dict=False)[0]
        found = step(ours, i, x, output, noise if needs_noise(ours, i) else None)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        x = expected


CONTINUOUS = {"_class_name": "CosineLogSNR", "logsnr_max": 20, "logsnr_min": -20, "prediction_type": "v_prediction"}


def test_log_snr_is_the_cosine_schedule() -> None:
    """α = cos(πt/2), σ = sin(πt/2) but for the ends, where λ is bounded."""
    t = np.linspace(0.01, 0.99, 50)
    found = np.array([alpha_bar(log_snr(x)) for x in t])
    np.testing.assert_allclose(found, np.cos(np.pi * t / 2) ** 2, atol=2e-4)
    assert (log_snr(0.0), log_snr(1.0)) == pytest.approx((20.0, -20.0))


def _published(gamma: float, now: float, then: float, z: np.ndarray, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """One ancestral step as Imagen Video writes it (its equations for the mean and the γ-interpolated deviation)."""
    a_t, a_s = np.sqrt(alpha_bar(now)), np.sqrt(alpha_bar(then))
    s_t, s_s = np.sqrt(alpha_bar(-now)), np.sqrt(alpha_bar(-then))
    r = np.exp(now - then)
    mean = r * (a_s / a_t) * z + (1 - r) * a_s * x
    smallest, largest = (1 - r) * s_s**2, (1 - r) * s_t**2
    return mean + np.sqrt(smallest ** (1 - gamma) * largest**gamma) * noise


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_ancestral_step_is_the_published_one(gamma: float, prediction: str) -> None:
    ours = make_schedule("ddpm", CONTINUOUS | {"gamma": gamma, "prediction_type": prediction}, 8)
    rng = np.random.default_rng(0)
    x, epsilon, noise = rng.standard_normal((3, 1, 3, 4, 4))
    for i in range(7):
        now, then = log_snr(1 - i / 8), log_snr(1 - (i + 1) / 8)
        a, s = np.sqrt(alpha_bar(now)), np.sqrt(alpha_bar(-now))
        z = a * x + s * epsilon
        output = {"epsilon": epsilon, "v_prediction": a * epsilon - s * x, "sample": x}[prediction]
        found = step(ours, i, *map(torch.from_numpy, (z, output, noise)))
        # x0 is lost in rounding where epsilon is predicted and next to all is noise
        loose = 1e-6 if prediction == "epsilon" and i == 0 else 1e-11
        np.testing.assert_allclose(found.numpy(), _published(gamma, now, then, z, x, noise), rtol=loose, atol=loose)
    assert not needs_noise(ours, 7)


def test_ddim_of_v_is_a_rotation() -> None:
    """z_s = cos(φ_s − φ_t)·z_t + sin(φ_s − φ_t)·v, φ = arctan(σ / α) (Salimans & Ho, appendix D)."""
    ours = make_schedule("ddim", CONTINUOUS, 6)
    z, v = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i, (now, then) in enumerate(ours.alphas):
        turn = np.arctan2((1 - then) ** 0.5, then**0.5) - np.arctan2((1 - now) ** 0.5, now**0.5)
        torch.testing.assert_close(step(ours, i, z, v, None), np.cos(turn) * z + np.sin(turn) * v, rtol=0, atol=1e-12)


def test_the_stochastic_step_goes_two_down_and_one_up() -> None:
    """Given the true noise, what is left is a sample of the next level: its mean and its variance, in closed form."""
    ours = make_schedule("ddim_stochastic", CONTINUOUS | {"prediction_type": "epsilon"}, 4)
    x, epsilon, noise = torch.randn(3, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        now, (between, below) = ours.alphas[i][0], ours.alphas[i + 1]
        z = now**0.5 * x + (1 - now) ** 0.5 * epsilon
        mean = (between / below) ** 0.5 * (below**0.5 * x + (1 - below) ** 0.5 * epsilon)
        wanted = mean + (1 - between / below) ** 0.5 * noise
        torch.testing.assert_close(step(ours, i, z, epsilon, noise), wanted, rtol=0, atol=1e-9)
        assert between / below * (1 - below) + (1 - between / below) == pytest.approx(1 - between)
    z = ours.alphas[3][0] ** 0.5 * x + (1 - ours.alphas[3][0]) ** 0.5 * epsilon
    torch.testing.assert_close(step(ours, 3, z, epsilon, None), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "config", "words"),
    [
        ("euler", {}, "euler has no continuous time; choose one of ddim, ddpm"),
        ("ddim", {"beta_start": 0.1}, "A CosineLogSNR has no 'beta_start'"),
        ("ddim", {"logsnr_min": 20}, "needs logsnr_min below logsnr_max"),
        ("ddpm", {"gamma": 1.5}, "give gamma, 0 to 1"),
        ("ddim", {"prediction_type": "flow"}, "'flow' is not known"),
    ],
)
def test_impossible_continuous_schedules_are_refused(sampler: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_schedule(sampler, CONTINUOUS | config, 4)


def test_a_schedule_is_plain_data() -> None:
    ours = make_schedule("lcm", CONFIGS["sd15"], 4)
    assert isinstance(ours, Schedule)
    assert hash(ours) == hash(make_schedule("lcm", CONFIGS["sd15"], 4))
