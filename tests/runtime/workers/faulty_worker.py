"""A real worker whose memory suffices for fewer frames than it is given: `python faulty_worker.py MOST_FRAMES`."""

import sys

import torch

from fairy.runtime.denoise.prediction import Prediction
from fairy.runtime.workers import worker

most = int(sys.argv[1])
ask = Prediction.__call__


def limited(self, steps, scaled):
    if self.engine.spec.graph.name == "unet_frame" and len(steps) > most:
        raise torch.OutOfMemoryError(f"{len(steps)} frames are more than {most}")
    return ask(self, steps, scaled)


Prediction.__call__ = limited
worker.main()
