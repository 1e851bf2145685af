"""What frames begin with: their first latents, and what the network sees beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairy.runtime.denoise.denoiser import Denoiser
from fairy.runtime.denoise.guidance import make_guidance
from fairy.runtime.denoise.networks import Networks, finite
from fairy.runtime.denoise.noise import PlanNoise
from fairy.runtime.denoise.task_context import NoContext
from fairy.runtime.inputs.captions import caption
from fairy.runtime.inputs.depth import DepthFolder, estimated, from_map
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.inputs.inversion import inverted
from fairy.runtime.plan.geometry import pad_by_reflection, scale_frames
from fairy.runtime.record.run import Run


class Beginnings:
    """Noise and image latents for a model that sees the picture; inverted latents and depth for one that sees depth."""

    def __init__(self, networks: Networks, run: Run, noise: PlanNoise) -> None:
        """Nothing is computed yet. Raises InputError for a folder of depth maps that does not fit the video."""
        self._networks, self._run, self._noise = networks, run, noise
        self._folder: DepthFolder | None = None
        self._source_text: Tensor | None = None
        if run.plan.params.depth is not None:
            count, most = run.plan.source.num_frames, run.plan.params.max_pixels
            self._folder = DepthFolder.open(run.plan.params.depth, num_frames=count, max_pixels=most)

    def __call__(self, frames: Sequence[int], pictures: list[Frames]) -> tuple[Tensor, Tensor, Tensor]:
        """First latents [n, c, h, w], of unit variance, what the network sees beside them [n, c', h, w], and the
        encoder's latents of the frames [n, c, h, w]."""
        networks, run = self._networks, self._run
        image_latents = networks.encode(run, pictures)
        if networks.checkpoint.condition == "image":
            noise = self._noise.initial(frames)
            return noise.expand(len(frames), *noise.shape[1:]), image_latents, image_latents
        with run.monitor.timed("depth"):
            pairs = zip(frames, pictures, strict=True)
            depth = torch.cat([self._depth(frame, picture) for frame, picture in pairs])
        if run.plan.initial is not None:
            noise = self._noise.initial(frames)
            return noise.expand(len(frames), *noise.shape[1:]), depth, image_latents
        with run.monitor.timed("invert"):
            return self._inverted(image_latents, depth, pictures[0]), depth, image_latents

    def _depth(self, frame: int, picture: Frames) -> Tensor:
        """One frame's depth, given or estimated: [1, 1, h, w]."""
        geometry, size = self._run.plan.geometry, self._run.plan.latent_shape[1:]
        self._run.monitor.check()
        if self._folder is not None:
            return from_map(self._folder.read(frame).to(self._networks.device), geometry, size)
        levels = torch.from_numpy(picture.copy()).to(self._networks.device).permute(2, 0, 1).float().unsqueeze(0)
        padded = pad_by_reflection(scale_frames(levels, geometry.scaled), geometry.padded)
        return estimated(self._networks.checkpoint, padded, size)

    def _inverted(self, image_latents: Tensor, depth: Tensor, first: Frames) -> Tensor:
        """The noise that the unguided network would denoise into these frames: [n, c, h, w], float32."""
        networks, run = self._networks, self._run
        text = self._source_features(first)
        scaled = networks.as_edited(image_latents)

        schedule = inverted(run.plan.schedule)
        denoiser = Denoiser(schedule, make_guidance(1.0, 1.0), text, lambda g, p: networks.engine(run, g, p))
        calls = [(k,) * len(scaled) for k in range(len(schedule))]

        def attempt(precision: torch.dtype) -> Tensor:
            return denoiser.run(
                "unet",
                calls,
                scaled,
                depth.to(precision),
                NoContext(),
                noise=lambda step: scaled,
                tell=lambda call: run.monitor.check(),
            )

        return finite(run, attempt, "The inverted frames")

    def _source_features(self, first: Frames) -> Tensor:
        """Text features [1, tokens, channels] of what the video shows, by its first frame where the user asks so."""
        if self._source_text is None:
            prompt = self._run.plan.params.source_prompt or ""
            if prompt == "auto":
                prompt = caption(first)
                self._run.tally.notes.append(f"The first frame was captioned {prompt!r} for the inversion.")
            self._source_text = self._networks.text_features(self._run, {"source prompt": prompt})
        return self._source_text
