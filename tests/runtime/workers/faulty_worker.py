"""A real worker whose memory suffices for fewer frames than it is given: `python faulty_worker.py MOST_FRAMES`."""

import sys

import torch

from fairy.runtime.denoise import networks
from fairy.runtime.workers import worker

most = int(sys.argv[1])
real = networks.denoise


def denoise(engine, *arguments, **named):
    frames = named["image_latents"].shape[0]
    if engine.spec.graph.name == "unet_frame" and frames > most:
        raise torch.OutOfMemoryError(f"{frames} frames are more than {most}")
    return real(engine, *arguments, **named)


networks.denoise = denoise
worker.main()
