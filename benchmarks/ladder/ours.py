"""(d) ours: the compiled path with some of its steps, and eager, the reference of all."""

import torch
from torch import Tensor

from fairy.benchmarks.ladder.case import Case, Lap, Laps, work_bytes
from fairy.benchmarks.ladder.networks import BRANCHES, unet_graphs
from fairy.engines.compiled import CompiledBackend
from fairy.engines.eager import EagerBackend
from fairy.export.graphs import vae_decoder_spec, vae_encoder_spec
from fairy.export.steps import ALL_STEPS, Steps
from fairy.runtime.bank.anchor_bank import AnchorBank
from fairy.runtime.denoise.denoiser import Denoiser
from fairy.runtime.denoise.task_context import BankReader, BankWriter, NoContext, TaskContext


class OurRung:
    """Both phases and the autoencoder by a backend's engines, in the runtime's own loop."""

    anchored = True

    def __init__(self, case: Case, key: str, name: str, steps: Steps | None) -> None:
        """`steps`: those that are on; None = the backend eager."""
        self.key, self.name, self._case = key, name, case
        backend: EagerBackend = EagerBackend(case.networks, case.device, case.dtype)
        if steps is not None:
            chosen = {"without": sorted(ALL_STEPS - steps), "also": sorted(steps)}
            backend = CompiledBackend(case.networks, case.device, case.dtype, **chosen)
        self._backend = backend
        self._graphs = unet_graphs(case.networks.unet)
        self._encode = backend.engine(vae_encoder_spec(4))
        self._decode = backend.engine(vae_decoder_spec(4))

    @torch.inference_mode()
    def run(self) -> Lap:
        """Phase A, then one batch of phase B."""
        case, denoiser = self._case, self._denoiser()
        with work_bytes(case.device) as memory:
            laps = Laps(case.device)
            self._encode({"image": case.pictures[:1]})
            encode_ms = laps.lap()
            bank = self._new_bank()
            writer = BankWriter(bank, lambda bank, step: None)
            self._denoise(denoiser, "unet_anchor", case.image_latents[case.anchors], laps, writer)
            anchors_ms = (laps.times[-2], laps.times[-1])
            latents = self._denoise(denoiser, "unet_frame", case.image_latents[case.frames], laps, BankReader(bank))
            frames_ms = (laps.times[-2], laps.times[-1])
            self._decode({"latents": latents[:1].to(case.dtype)})
            decode_ms = laps.lap()
        return Lap(encode_ms, decode_ms, frames_ms, anchors_ms, len(latents), latents, *memory)

    @torch.inference_mode()
    def without_anchors(self) -> Tensor:
        """The batch's latents where frames look at themselves alone: what rungs without anchors are compared with."""
        case = self._case
        return self._denoise(self._denoiser(), "unet", case.image_latents[case.frames], Laps(case.device), NoContext())

    def _denoiser(self) -> Denoiser:
        case = self._case
        return Denoiser(
            case.schedule,
            case.guidance,
            case.text,
            lambda graph, precision: self._backend.engine(self._graphs[graph], precision),
            steps=self._backend.steps,
            alike=True,
        )

    def _denoise(
        self, denoiser: Denoiser, graph: str, image_latents: Tensor, laps: Laps, context: TaskContext
    ) -> Tensor:
        case, frames = self._case, len(image_latents)
        if graph == "unet_frame":  # what a segment has computed once when its second batch begins
            times = torch.tensor(case.schedule.timesteps, dtype=torch.float32, device=case.device)
            engine = denoiser.engines(graph, case.dtype)
            denoiser.ahead.conditions_of(engine, case.text, case.dtype, times, frames)
        first = (case.noise * case.schedule.init_noise_sigma).expand(frames, -1, -1, -1)
        calls = [(k,) * frames for k in range(len(case.schedule))]
        laps.start()
        return denoiser.run(
            graph, calls, first, image_latents, context, noise=lambda step: case.noise, tell=laps.after_step
        )

    def _new_bank(self) -> AnchorBank:
        case = self._case
        return AnchorBank.allocate(
            self._graphs["unet_anchor"],
            num_inference_steps=len(case.schedule),
            branches=BRANCHES,
            num_anchors=case.size.anchors,
            latent_size=case.size.latent,
            dtype=case.dtype,
            device=case.device,
        )
