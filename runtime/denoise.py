"""The denoising loop: it knows no method and no model, only what predicts and the sampler's rule."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fairy.engines.engine import Engine
from fairy.export.steps import NO_STEPS, Steps
from fairy.runtime.guidance import Guidance, guide, unguided
from fairy.runtime.prediction import Ahead, Pictures, Prediction, Update, first_step, fused_update
from fairy.runtime.sampler import Schedule, needs_noise, scale_model_input, step

Stretch = tuple[Prediction, Update]
"""What predicts and what updates, for some consecutive steps."""


def denoise(
    engine: Engine,
    schedule: Schedule,
    guidance: Guidance,
    *,
    guided_steps: int | None = None,
    text: Tensor,
    image_latents: Tensor,
    latents: Tensor,
    noise: Callable[[int], Tensor],
    context: Callable[[int], Mapping[str, Tensor]],
    targets: Callable[[int], Mapping[str, Tensor] | None],
    on_step: Callable[[int], None],
    steps: Steps = NO_STEPS,
    ahead: Ahead | None = None,
    alone: Callable[[], Engine] | None = None,
) -> Tensor:
    """Denoise a batch of frames from noise to latents.

    Args:
        engine: a UNet graph.
        guided_steps: steps with all branches, from the first on; later ones compute the first branch alone (None: all).
        text: [branches, tokens, channels]; image_latents: [frames, c, h, w], not scaled, in the engine's precision.
        latents: unit noise [frames or 1, c, h, w], float32; noise: step to more of that, where the sampler draws some.
        context: step to the keys and values that the graph takes; targets: to those that it writes.
        on_step: called after every step with its number; it may raise to stop.
        steps: of the compiled path, which the engine knows.
        ahead: what the job has computed for all its batches; None = nothing.
        alone: gives the engine of a graph that reads no anchors, for one frame that stands for all.

    Returns:
        [frames, c, h, w], float32; scaled as the VAE's decoder graph expects them.
    """
    dtype, device, frames = image_latents.dtype, image_latents.device, image_latents.shape[0]
    ahead = ahead or Ahead()
    times = torch.tensor(schedule.timesteps, dtype=torch.float32, device=device)

    def stretch(guidance: Guidance, text: Tensor, ahead: Ahead, alone: Callable[[], Engine] | None) -> Stretch:
        predict = Prediction(
            engine,
            ahead.conditions_of(engine, text, dtype, times, frames),
            Pictures(guidance, image_latents, steps),
            lambda i: _branches(context(i), guidance),
            lambda i: _branches(targets(i) or {}, guidance) or None,
            None if alone is None else first_step(steps, guidance, latents, alone, ahead),
        )
        return predict, fused_update(schedule, guidance, steps, device) or plain_update(schedule, guidance)

    guided = len(schedule) if guided_steps is None else guided_steps
    predict, update = stretch(guidance, text, ahead, alone)
    x = (latents * schedule.init_noise_sigma).expand(frames, -1, -1, -1)
    for i in range(len(schedule)):
        if i == guided:
            predict, update = stretch(unguided(guidance), ahead.first_branch(text), ahead.unguided(), None)
        output = predict(i, scale_model_input(schedule, i, x))
        fresh = noise(i) if needs_noise(schedule, i) else None
        x = update(i, x, output, fresh)
        on_step(i)
    return x


def _branches(named: Mapping[str, Tensor], guidance: Guidance) -> dict[str, Tensor]:
    """Keys and values of the branches that are computed; those that are not are the last."""
    return {name: tensor[: guidance.groups] for name, tensor in named.items()}


def plain_update(schedule: Schedule, guidance: Guidance) -> Update:
    """Guidance over the branches, then the sampler's own step."""

    def update(i: int, x: Tensor, output: Tensor, fresh: Tensor | None) -> Tensor:
        return step(schedule, i, x, guide(guidance, output), fresh)

    return update
