"""What frames begin with: their first latents, and what the network sees beside them."""

from collections.abc import Sequence

from torch import Tensor

from fairy.runtime.job import Job
from fairy.runtime.networks import Networks
from fairy.runtime.source import Frames


class Conditions:
    """Image latents and noise, for a model that sees the picture itself."""

    def __init__(self, networks: Networks, job: Job) -> None:
        self._networks, self._job = networks, job

    def __call__(self, frames: Sequence[int], pictures: list[Frames]) -> tuple[Tensor, Tensor]:
        """First latents [n, c, h, w], of unit variance, and what the network sees beside them [n, c', h, w]."""
        image_latents = self._networks.encode(self._job, pictures)
        noise = self._networks.initial_noise(self._job, frames)
        return noise.expand(len(frames), *noise.shape[1:]), image_latents
