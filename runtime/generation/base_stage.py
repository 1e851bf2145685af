"""The base stage: from noise and text to the first frames, step by step, windows of a long clip side by side.

Where windows overlap their predictions are averaged at every step (`windows.blend_weights`), so that a clip longer than
the network's own window stays one clip (as in MultiDiffusion, Bar-Tal et al., arXiv 2302.08113, over time).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fairy.kernels.errors import InputError
from fairy.runtime.denoise.noise import INITIAL
from fairy.runtime.denoise.sampler import Schedule, needs_noise, step
from fairy.runtime.generation.cascade import Stage
from fairy.runtime.generation.networks import schedule_of, stage_noise
from fairy.runtime.generation.window_pool import WindowComputer
from fairy.runtime.generation.windows import base_windows, blend_weights


def run_base(
    stage: Stage,
    frames: int,
    fps: float,
    text_2LC: Tensor,
    computer: WindowComputer,
    *,
    seed: int,
    image: Tensor | None = None,
    tell: Callable[[int, int], object] = lambda done, total: None,
    latents: Tensor | None = None,
) -> Tensor:
    """The base stage's frames, float32 [F, 3, H, W] in 0 to 1.

    Args:
        text_2LC: features of the negative prompt and of the prompt.
        image: the first frame [3, H, W] in 0 to 1; it is put back at every step, noised as the others are.
        tell: hears of every step.
        latents: unit noise to begin with, [F, C, h, w]; None = from the seed, frame by frame.
    """
    schedule = schedule_of(stage)
    shape = (stage.channels, stage.height // stage.factor, stage.width // stage.factor)
    noise = _noise(stage, seed, INITIAL, frames, shape) if latents is None else latents
    if noise.shape != (frames, *shape):
        remedy = f"give {[frames, *shape]}"
        raise InputError("have the wrong shape", name="latents", value=list(noise.shape), remedy=remedy)
    x = noise * schedule.init_noise_sigma
    windows = base_windows(stage, frames)
    weights = torch.zeros(frames)
    shares = [torch.tensor(blend_weights(window, stage.overlap, frames)) for window in windows]
    for (start, stop), share in zip(windows, shares, strict=True):
        weights[start:stop] += share
    for i in range(len(schedule)):
        x = _with_image(schedule, i, x, noise, image)
        handed = [computer.submit("predict_base", stage, i, x[a:b], fps, text_2LC) for a, b in windows]
        if len(windows) == 1:
            out = handed[0].result()
        else:
            out = torch.zeros_like(x)
            for (start, stop), share, pending in zip(windows, shares, handed, strict=True):
                out[start:stop] += (share / weights[start:stop])[:, None, None, None] * pending.result()
        fresh = _noise(stage, seed, i, frames, shape)[None] if needs_noise(schedule, i) else None
        x = step(schedule, i, x[None], out[None], fresh)[0]  # the clip is one sample
        tell(i + 1, len(schedule))
    decoding = [computer.submit("decode_base", frame) for frame in x]
    made = torch.stack([pending.result() for pending in decoding])
    if image is not None:
        made[0] = image
    return made


def _noise(stage: Stage, seed: int, at: int, frames: int, shape: tuple[int, ...]) -> Tensor:
    """Unit noise of a step for every frame, [F, C, h, w]."""
    return torch.stack([stage_noise(seed, stage.name, f, shape, at) for f in range(frames)])


def _with_image(schedule: Schedule, i: int, x: Tensor, noise: Tensor, image: Tensor | None) -> Tensor:
    """The noisy frames with the given first one, at the noise level of step i."""
    if image is None:
        return x
    alpha = schedule.alphas[i][0]
    first = alpha**0.5 * (image * 2 - 1) + (1 - alpha) ** 0.5 * noise[0]
    return torch.cat([first[None], x[1:]])
