"""The samplers by name, and diffusers' scheduler from which each takes its spacing and offsets."""

SCHEDULERS = {
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "ddim_stochastic": "DDIMScheduler",
    "lcm": "LCMScheduler",
    "flow_match_euler": "FlowMatchEulerDiscreteScheduler",
}
SAMPLERS = tuple(SCHEDULERS)

FLOW = "flow_match_euler"
"""The one that models trained by flow matching are sampled with, and no others."""
