"""The denoising loop: it knows no method and no model, only what predicts and the sampler's rule."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fairy.engines.engine import Engine
from fairy.export.steps import NO_STEPS, Steps
from fairy.runtime.guidance import Guidance, guide
from fairy.runtime.prediction import Ahead, Pictures, Prediction, Update, first_step, fused_update
from fairy.runtime.sampler import Schedule, needs_noise, scale_model_input, step


def denoise(
    engine: Engine,
    schedule: Schedule,
    guidance: Guidance,
    *,
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
        text: [branches, tokens, channels].
        image_latents: [frames, c, h, w], not scaled, in the engine's precision.
        latents: unit noise [frames or 1, c, h, w], float32.
        noise: step to unit noise of that shape, asked only where the sampler draws some.
        context: step to the keys and values that the graph takes.
        targets: step to the tensors that the graph's keys and values are written to.
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
    predict = Prediction(
        engine,
        ahead.conditions_of(engine, text, dtype, times, frames),
        Pictures(guidance, image_latents, steps),
        context,
        targets,
        None if alone is None else first_step(steps, guidance, latents, alone, ahead),
    )
    update = fused_update(schedule, guidance, steps, device) or plain_update(schedule, guidance)
    x = (latents * schedule.init_noise_sigma).expand(frames, -1, -1, -1)
    for i in range(len(schedule)):
        output = predict(i, scale_model_input(schedule, i, x))
        fresh = noise(i) if needs_noise(schedule, i) else None
        x = update(i, x, output, fresh)
        on_step(i)
    return x


def plain_update(schedule: Schedule, guidance: Guidance) -> Update:
    """Guidance over the branches, then the sampler's own step."""

    def update(i: int, x: Tensor, output: Tensor, fresh: Tensor | None) -> Tensor:
        return step(schedule, i, x, guide(guidance, output), fresh)

    return update
