"""The samplers by name, and diffusers' scheduler from which each takes its spacing and offsets."""

SCHEDULERS = {
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "ddim_stochastic": "DDIMScheduler",
    "lcm": "LCMScheduler",
}
SAMPLERS = tuple(SCHEDULERS)
