"""The denoising loop: it knows no method and no model, only an engine and what its inputs are at each step."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fairy.engines.engine import Engine
from fairy.runtime.guidance import Guidance, branch_image, guide
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
) -> Tensor:
    """Denoise a batch of frames from noise to latents.

    Args:
        engine: a UNet graph.
        text: [branches, tokens, channels], in the engine's precision, as are
        image_latents: [frames, c, h, w], not scaled.
        latents: unit noise [frames or 1, c, h, w], float32.
        noise: step to unit noise of that shape, asked only where the sampler draws some.
        context: step to the keys and values that the graph takes.
        targets: step to the tensors that the graph's keys and values are written to.
        on_step: called after every step with its number; it may raise to stop.

    Returns:
        [frames, c, h, w], float32; scaled as the VAE's decoder graph expects them.
    """
    dtype, device, frames = image_latents.dtype, image_latents.device, image_latents.shape[0]
    image = branch_image(guidance, image_latents)  # [branches, frames, c, h, w]
    times = torch.tensor(schedule.timesteps, dtype=torch.float32, device=device)
    x = (latents * schedule.init_noise_sigma).expand(frames, -1, -1, -1)
    for i in range(len(schedule)):
        scaled = scale_model_input(schedule, i, x).to(dtype).expand(guidance.groups, -1, -1, -1, -1)
        inputs = {
            "sample": torch.cat([scaled, image], dim=2),
            "timestep": times[i].expand(frames),
            "text": text,
            **context(i),
        }
        output = engine(inputs, targets(i))["output"]
        fresh = noise(i) if needs_noise(schedule, i) else None
        x = step(schedule, i, x, guide(guidance, output), fresh)
        on_step(i)
    return x
