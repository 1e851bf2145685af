"""Samplers: the schedule of a job, and one pure function a step rule.

A `Schedule` holds plain numbers, made once from the checkpoint's own scheduler configuration by diffusers' scheduler
of the same name, so that spacing, offsets and sigma options mean here what they mean there. The step functions are
pure: everything random comes in as an argument. x, output and noise are float32 [frames, channels, h, w].

Sources: Euler and Euler ancestral, Karras et al. (arXiv 2206.00364) as in k-diffusion; DDIM, Song et al. (arXiv
2010.02502), η = 0; DDPM, Ho et al. (arXiv 2006.11239), its variance between the two bounds by γ as in Imagen Video
(arXiv 2210.02303); DDIM's stochastic sampler for distilled networks, Meng et al. (arXiv 2210.03142); LCM, Luo et al.
(arXiv 2310.04378); dynamic thresholding, Saharia et al. (arXiv 2205.11487); flow matching, Esser et al. (arXiv
2403.03206), whose networks predict the velocity from pictures to noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.denoise.log_snr import TIME_SCALE, alphas_of, is_continuous, times_of
from fairy.runtime.denoise.schedulers import FLOW, SAMPLERS, SCHEDULERS

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything a sampler needs to know before the loop starts, as plain numbers.

    Attributes:
        timesteps: what the network is told, one a step; floats, since Euler's lie between the trained ones.
        sigmas: noise level of every step and of the end (Euler samplers; steps + 1 values, else empty).
        alphas: cumulative ᾱ of every step and of the one after it (all but Euler; pairs, else empty).
        init_noise_sigma: what unit noise is multiplied with to become the first latents.
        clip: the bound x0 is clamped to, where the configuration asks for it (all but Euler).
        boundary: LCM's (c_skip, c_out) of every step.
        flow: share of noise t of every step and of the end, x = (1 − t)·x0 + t·ε (flow matching; steps + 1 values).
        stochastic: of flow matching, whether every step goes to x0 and draws fresh noise.
        threshold: (share, most) of dynamic thresholding, where the configuration asks for it: x0 is clamped to that
            quantile of its magnitudes, from 1 to `most`, and divided by it.
        gamma: of DDPM's variance, 0 (that of the posterior) to 1 (that of the noise added in training).
        skipped: how many steps were left out before the first, as by a strength below 1.
    """

    sampler: str
    prediction_type: str
    timesteps: tuple[float, ...]
    init_noise_sigma: float
    sigmas: tuple[float, ...] = ()
    alphas: tuple[tuple[float, float], ...] = ()
    clip: float | None = None
    boundary: tuple[tuple[float, float], ...] = ()
    threshold: tuple[float, float] | None = None
    gamma: float = 0.0
    skipped: int = 0
    flow: tuple[float, ...] = ()
    stochastic: bool = False

    def __len__(self) -> int:
        return len(self.timesteps)


def make_schedule(
    sampler: str, scheduler_config: Mapping[str, Any], num_inference_steps: int, *, shift: float | None = None
) -> Schedule:
    """The schedule that diffusers' scheduler named by `sampler`, built from this configuration, would follow.

    Args:
        shift: of flow matching whose configuration shifts dynamically, diffusers' `mu`.

    Raises:
        InputError: unknown sampler, prediction type or number of steps, or an option that changes the step rule
            (thresholding) and is not offered with this sampler.
    """
    if sampler not in SCHEDULERS:
        raise InputError(f"Sampler {sampler!r} is not known; choose one of {', '.join(SAMPLERS)}.")
    if (sampler == FLOW) != is_flow(scheduler_config):
        trained = "by flow matching" if is_flow(scheduler_config) else "otherwise"
        remedy = f"choose {FLOW}" if is_flow(scheduler_config) else f"choose any but {FLOW}"
        problem = f"cannot sample this checkpoint, which was trained {trained}"
        raise InputError(problem, name="sampler", value=sampler, remedy=remedy)
    if sampler == FLOW:
        return _flow(scheduler_config, num_inference_steps, shift)
    if is_continuous(scheduler_config):
        return _continuous(sampler, scheduler_config, num_inference_steps)
    scheduler = _scheduler(sampler, scheduler_config)
    prediction_type = str(scheduler.config.prediction_type)
    if prediction_type not in PREDICTION_TYPES:
        raise InputError(
            f"The checkpoint's prediction type {prediction_type!r} is not known; "
            f"only {', '.join(PREDICTION_TYPES)} can be sampled."
        )
    if scheduler.config.get("thresholding", False) and sampler not in _WITH_THRESHOLD:
        raise InputError(f"Thresholding, which the checkpoint's scheduler asks for, is not offered with {sampler}.")
    most = int(scheduler.config.get("original_inference_steps", num_inference_steps))
    if num_inference_steps > most:
        raise InputError(f"{num_inference_steps} steps are not possible with {sampler}; choose at most {most}.")
    try:
        scheduler.set_timesteps(num_inference_steps)
    except ValueError as error:
        raise InputError(f"{num_inference_steps} steps are not possible with {sampler}: {error}") from error
    if len(scheduler.timesteps) != num_inference_steps:
        raise InputError(
            f"{num_inference_steps} steps are not possible with {sampler} and this checkpoint's schedule, "
            f"which gives {len(scheduler.timesteps)}; choose another number of steps."
        )
    common = (sampler, prediction_type, tuple(scheduler.timesteps.float().tolist()), float(scheduler.init_noise_sigma))
    if sampler in ("euler_ancestral", "euler"):
        return Schedule(*common, sigmas=tuple(scheduler.sigmas.tolist()))
    boundary = _lcm_boundary(scheduler) if sampler == "lcm" else ()
    return Schedule(
        *common,
        alphas=_alphas(sampler, scheduler),
        boundary=boundary,
        **_bounds(sampler, {**scheduler_config, **scheduler.config}),
    )


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is of a network trained by flow matching."""
    return config.get("_class_name") == SCHEDULERS[FLOW]


def _flow(config: Mapping[str, Any], steps: int, shift: float | None) -> Schedule:
    """Equal steps from noise to 1 / steps, then shifted as the configuration says; the last one goes to 0."""
    scheduler = _scheduler(FLOW, config)
    dynamic = bool(scheduler.config.get("use_dynamic_shifting", False))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift if dynamic else None)
    times, flow = scheduler.timesteps.float().tolist(), scheduler.sigmas.tolist()
    if len(times) != steps:
        raise InputError(f"{steps} steps are not possible with {FLOW} and this checkpoint's schedule.")
    stochastic = bool(scheduler.config.get("stochastic_sampling", False))
    return Schedule(FLOW, "flow_prediction", tuple(times), 1.0, flow=tuple(flow), stochastic=stochastic)


def _continuous(sampler: str, config: Mapping[str, Any], steps: int) -> Schedule:
    """A schedule in continuous time; see `log_snr.py`."""
    if sampler not in _WITH_THRESHOLD:
        raise InputError(f"{sampler} has no continuous time; choose one of {', '.join(_WITH_THRESHOLD)}.")
    prediction_type = str(config.get("prediction_type", "v_prediction"))
    if prediction_type not in PREDICTION_TYPES:
        raise InputError(
            f"The prediction type {prediction_type!r} is not known; choose one of {', '.join(PREDICTION_TYPES)}."
        )
    times = tuple(TIME_SCALE * t for t in times_of(steps))
    return Schedule(sampler, prediction_type, times, 1.0, alphas=alphas_of(config, steps), **_bounds(sampler, config))


def _bounds(sampler: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How x0 is kept in its range and, of DDPM, γ, as a configuration says."""
    gamma = _gamma(config) if sampler == "ddpm" else 0.0
    if config.get("thresholding", False):
        bound = float(config.get("dynamic_thresholding_ratio", 0.995)), float(config.get("sample_max_value", 1.0))
        return {"threshold": bound, "gamma": gamma}
    clips = bool(config.get("clip_sample", False))
    return {"clip": float(config.get("clip_sample_range", 1.0)) if clips else None, "gamma": gamma}


def _gamma(config: Mapping[str, Any]) -> float:
    """γ as it is said, or as the variance's name in diffusers says it."""
    variance = str(config.get("variance_type") or "fixed_small")
    gamma = config.get("gamma", {"fixed_large": 1.0, "fixed_small": 0.0}.get(variance))
    if gamma is None or not 0 <= float(gamma) <= 1:
        raise InputError(f"ddpm cannot sample with the variance {variance!r} and gamma {gamma!r}; give gamma, 0 to 1.")
    return float(gamma)


def without_first(schedule: Schedule, steps: int) -> Schedule:
    """The schedule without so many of its first steps; the others keep their numbers in all noise."""
    rest: dict[str, Any] = {
        name: getattr(schedule, name)[steps:] for name in ("timesteps", "sigmas", "alphas", "boundary", "flow")
    }
    return replace(schedule, **rest, skipped=schedule.skipped + steps)


def noised(schedule: Schedule, i: int, original: Tensor, noise: Tensor) -> Tensor:
    """x0 with the noise that latents have before step i, in the sampler's scale; after the last step there is none."""
    if i == len(schedule):
        return original
    if schedule.flow:
        return _blend(schedule.flow[i], original, noise)
    return original + noise * schedule.sigmas[i] if schedule.sigmas else _mix(schedule.alphas[i][0], original, noise)


def noise_in(schedule: Schedule, i: int, x: Tensor, original: Tensor) -> Tensor:
    """The unit noise that `noised` would have made of x0 the latents x before step i."""
    if schedule.sigmas:
        return (x - original) / schedule.sigmas[i]
    if schedule.flow:
        return (x - original * (1 - schedule.flow[i])) / schedule.flow[i]
    alpha = schedule.alphas[i][0]
    noise: Tensor = (x - original * alpha**0.5) / (1 - alpha) ** 0.5
    return noise


def scale_model_input(schedule: Schedule, i: int, x: Tensor) -> Tensor:
    """The latents as the network expects them at step i: unit variance for the Euler samplers, else unchanged."""
    return x / (schedule.sigmas[i] ** 2 + 1) ** 0.5 if schedule.sigmas else x


def predicted_original(schedule: Schedule, i: int, x: Tensor, output: Tensor) -> Tensor:
    """x0 as the network's output at step i says it, clamped where the schedule clamps it."""
    if schedule.sigmas:
        return _original_from_sigma(schedule, i, x, output)
    if schedule.flow:
        return x - output * schedule.flow[i]
    return _clipped(schedule, _original_from_alpha(schedule, i, x, output)[0])


def scale_after(schedule: Schedule, i: int) -> float:
    """What latents of unit variance are multiplied by to be the sampler's after step i; 1 where those are."""
    if schedule.flow:
        return math.hypot(1 - schedule.flow[i + 1], schedule.flow[i + 1])
    return math.hypot(schedule.sigmas[i + 1], 1.0) if schedule.sigmas else 1.0


def needs_noise(schedule: Schedule, i: int) -> bool:
    """Whether step i draws fresh noise."""
    if schedule.sampler == "euler_ancestral":
        return schedule.sigmas[i + 1] > 0
    if schedule.flow:
        return schedule.stochastic and i < len(schedule) - 1
    return schedule.sampler in ("lcm", "ddpm", "ddim_stochastic") and i < len(schedule) - 1


def step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """The latents after step i, by the schedule's own rule; noise as `needs_noise` says, else None."""
    return _STEPS[schedule.sampler](schedule, i, x, output, noise)


def euler_ancestral_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """Euler down to σ_down, then fresh noise of σ_up, so that the variance is that of the next level."""
    sigma, sigma_next = schedule.sigmas[i], schedule.sigmas[i + 1]
    sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
    x = x + (x - _original_from_sigma(schedule, i, x, output)) * ((sigma_down - sigma) / sigma)
    return x if noise is None else x + noise * sigma_up


def euler_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """One Euler step of the probability-flow ODE; `noise` is not used."""
    sigma, sigma_next = schedule.sigmas[i], schedule.sigmas[i + 1]
    return x + (x - _original_from_sigma(schedule, i, x, output)) * ((sigma_next - sigma) / sigma)


def ddim_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """The deterministic DDIM step (η = 0); `noise` is not used."""
    return _ddim_to(schedule, i, schedule.alphas[i][1], x, output)


def ddpm_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """The posterior's mean given x0, and noise whose variance lies between the posterior's and the forward process's.

    With s the next level, r = SNR_t / SNR_s: mean = r·(α_s/α_t)·x + (1 − r)·α_s·x0, variance = (1 − r)·σ_s²⁽¹⁻ᵞ⁾·σ_t²ᵞ.
    """
    alpha, alpha_next = schedule.alphas[i]
    original = _clipped(schedule, _original_from_alpha(schedule, i, x, output)[0])
    rest, rest_next = 1 - alpha, 1 - alpha_next
    left = 1 - alpha * rest_next / (rest * alpha_next)  # 1 − r
    mean: Tensor = (alpha / alpha_next) ** 0.5 * (rest_next / rest) * x + left * alpha_next**0.5 * original
    if noise is None:
        return mean
    deviation = (left * rest_next ** (1 - schedule.gamma) * rest**schedule.gamma) ** 0.5
    noised: Tensor = mean + noise * deviation
    return noised


def ddim_stochastic_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """A DDIM step of double size, then noise back up to the next level; the last step is DDIM's."""
    if noise is None:
        return ddim_step(schedule, i, x, output, None)
    between, below = schedule.alphas[i + 1]
    far = _ddim_to(schedule, i, below, x, output)
    kept = between / below
    return _mix(kept, far, noise)


def lcm_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """The consistency function's estimate, noised again to the next level unless this is the last step."""
    _, alpha_next = schedule.alphas[i]
    c_skip, c_out = schedule.boundary[i]
    original, _ = _original_from_alpha(schedule, i, x, output)
    original = _clipped(schedule, original)
    denoised: Tensor = c_out * original + c_skip * x
    return denoised if noise is None else _mix(alpha_next, denoised, noise)


def flow_match_euler_step(schedule: Schedule, i: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """One Euler step along the predicted velocity, or to the predicted x0 and back up with fresh noise."""
    t, following = schedule.flow[i], schedule.flow[i + 1]
    if noise is None:
        return x + output * (following - t)
    return _blend(following, x - output * t, noise)


_STEPS: dict[str, Callable[[Schedule, int, Tensor, Tensor, Tensor | None], Tensor]] = {
    "euler_ancestral": euler_ancestral_step,
    "euler": euler_step,
    "ddim": ddim_step,
    "ddpm": ddpm_step,
    "ddim_stochastic": ddim_stochastic_step,
    "lcm": lcm_step,
    "flow_match_euler": flow_match_euler_step,
}


_WITH_THRESHOLD = ("ddim", "ddpm", "ddim_stochastic")


def _ddim_to(schedule: Schedule, i: int, alpha_next: float, x: Tensor, output: Tensor) -> Tensor:
    """DDIM from step i's level to another one: of v it is a rotation of (x, v)."""
    alpha = schedule.alphas[i][0]
    original, epsilon = _original_from_alpha(schedule, i, x, output)
    if schedule.prediction_type == "sample":
        epsilon = (x - alpha**0.5 * original) / (1 - alpha) ** 0.5
    return _mix(alpha_next, _clipped(schedule, original), epsilon)


def _mix(alpha: float, original: Tensor, noise: Tensor) -> Tensor:
    """√ᾱ·x0 + √(1 − ᾱ)·ε."""
    mixed: Tensor = original * alpha**0.5 + noise * (1 - alpha) ** 0.5
    return mixed


def _blend(t: float, original: Tensor, noise: Tensor) -> Tensor:
    """(1 − t)·x0 + t·ε."""
    return original * (1 - t) + noise * t


def _clipped(schedule: Schedule, original: Tensor) -> Tensor:
    """x0 in its range; dynamic thresholding looks at every entry of the first dimension by itself."""
    if schedule.threshold is not None:
        share, most = schedule.threshold
        rows = original.flatten(1) if original.dim() > 3 else original.flatten()[None]
        bound = torch.quantile(rows.abs().float(), share, dim=1).clamp(1.0, max(most, 1.0)).to(original.dtype)
        bound = bound.view(-1, *(1,) * (original.dim() - 1))
        return original.clamp(-bound, bound) / bound
    return original if schedule.clip is None else original.clamp(-schedule.clip, schedule.clip)


def _original_from_sigma(schedule: Schedule, i: int, x: Tensor, output: Tensor) -> Tensor:
    """x0 where x = x0 + σ·ε."""
    sigma = schedule.sigmas[i]
    if schedule.prediction_type == "epsilon":
        return x - output * sigma
    if schedule.prediction_type == "v_prediction":
        norm = math.hypot(sigma, 1.0)
        return x / (norm * norm) - output * (sigma / norm)
    return output


def _original_from_alpha(schedule: Schedule, i: int, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, ε) where x = √ᾱ·x0 + √(1 − ᾱ)·ε."""
    a, b = schedule.alphas[i][0] ** 0.5, (1 - schedule.alphas[i][0]) ** 0.5
    if schedule.prediction_type == "epsilon":
        return (x - b * output) / a, output
    if schedule.prediction_type == "v_prediction":
        return a * x - b * output, a * output + b * x
    return output, output


def _scheduler(sampler: str, config: Mapping[str, Any]) -> Any:
    import diffusers

    trained = str(config.get("_class_name", ""))
    if ("Flow" in trained and sampler != FLOW) or config.get("timestep_type", "discrete") != "discrete":
        raise InputError(
            f"The checkpoint was trained for {trained or 'continuous time steps'}, which {sampler} cannot sample; "
            "choose a checkpoint with a discrete noise schedule."
        )
    try:
        return getattr(diffusers, SCHEDULERS[sampler]).from_config(dict(config))
    except (NotImplementedError, ValueError, TypeError) as error:
        raise InputError(f"The checkpoint's scheduler configuration is not possible: {error}.") from error


def _alphas(sampler: str, scheduler: Any) -> tuple[tuple[float, float], ...]:
    steps = [int(t) for t in scheduler.timesteps]
    if sampler == "lcm":
        following = [*steps[1:], steps[-1]]
    else:
        following = [t - scheduler.config.num_train_timesteps // len(steps) for t in steps]
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    cumprod = scheduler.alphas_cumprod.to(torch.float64)
    return tuple(
        (float(cumprod[t]), float(cumprod[n]) if n >= 0 else final) for t, n in zip(steps, following, strict=True)
    )


def _lcm_boundary(scheduler: Any) -> tuple[tuple[float, float], ...]:
    pairs = (scheduler.get_scalings_for_boundary_condition_discrete(int(t)) for t in scheduler.timesteps)
    return tuple((float(c_skip), float(c_out)) for c_skip, c_out in pairs)
