"""DDIM inversion: the noise that the same network would denoise into a given picture (Song et al., arXiv 2010.02502).

The sampler's own steps are taken backwards with the source's caption and without guidance. Noise is predicted at the
time step a step goes to, as Pix2Video does; with that, inverting and sampling meet where predictions agree.
"""

from dataclasses import replace
from typing import Any

from fairy.runtime.denoise.sampler import Schedule

# What a schedule must have to be run backwards; the library's defaults, clip and ᾱ = 1 at the end, lose the way.
INVERTIBLE: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}


def inverted(schedule: Schedule) -> Schedule:
    """A DDIM schedule run backwards, from the picture to noise."""
    assert schedule.sampler == "ddim"
    backwards = tuple((after, before) for before, after in reversed(schedule.alphas))
    return replace(schedule, timesteps=tuple(reversed(schedule.timesteps)), alphas=backwards)
