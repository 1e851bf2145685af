"""(d) ours: the compiled path with some of its steps, and eager, the reference of all."""

import torch
from torch import Tensor

from fairy.benchmarks.ladder.case import Case, Lap, Laps, work_bytes
from fairy.benchmarks.ladder.networks import BRANCHES, unet_graphs
from fairy.engines.compiled import CompiledBackend
from fairy.engines.eager import EagerBackend
from fairy.export.graphs import vae_decoder_spec, vae_encoder_spec
from fairy.export.steps import ALL_STEPS, Steps
from fairy.runtime.anchors import AnchorBank
from fairy.runtime.denoise import denoise
from fairy.runtime.prediction import Ahead


class OurRung:
    """Both phases and the autoencoder by a backend's engines, in the runtime's own loop."""

    anchored = True

    def __init__(self, case: Case, key: str, name: str, steps: Steps | None) -> None:
        """`steps`: those that are on; None = the backend eager."""
        self.key, self.name, self._case = key, name, case
        backend: EagerBackend = EagerBackend(case.networks, case.device, case.dtype)
        if steps is not None:
            backend = CompiledBackend(case.networks, case.device, case.dtype, without=sorted(ALL_STEPS - steps))
        self._backend = backend
        self._graphs = unet_graphs(case.networks.unet)
        self._encode = backend.engine(vae_encoder_spec(4))
        self._decode = backend.engine(vae_decoder_spec(4))

    @torch.inference_mode()
    def run(self) -> Lap:
        """Phase A, then one batch of phase B."""
        case, ahead = self._case, Ahead()
        with work_bytes(case.device) as memory:
            laps = Laps(case.device)
            self._encode({"image": case.pictures[:1]})
            encode_ms = laps.lap()
            bank = self._new_bank()
            self._denoise("unet_anchor", case.image_latents[case.anchors], ahead, laps, bank)
            anchors_ms = (laps.times[-2], laps.times[-1])
            latents = self._denoise("unet_frame", case.image_latents[case.frames], ahead, laps, bank)
            frames_ms = (laps.times[-2], laps.times[-1])
            self._decode({"latents": latents[:1].to(case.dtype)})
            decode_ms = laps.lap()
        return Lap(encode_ms, decode_ms, frames_ms, anchors_ms, len(latents), latents, *memory)

    def without_anchors(self) -> Tensor:
        """The batch's latents where frames look at themselves alone: what rungs without anchors are compared with."""
        case = self._case
        return self._denoise("unet", case.image_latents[case.frames], Ahead(), Laps(case.device), None)

    @torch.inference_mode()
    def _denoise(self, graph: str, image_latents: Tensor, ahead: Ahead, laps: Laps, bank: AnchorBank | None) -> Tensor:
        case, backend = self._case, self._backend
        engine = backend.engine(self._graphs[graph])
        if graph == "unet_frame":  # what a job has computed once when its second batch begins
            times = torch.tensor(case.schedule.timesteps, dtype=torch.float32, device=case.device)
            ahead.conditions_of(engine, case.text, case.dtype, times, len(image_latents))
        laps.start()
        return denoise(
            engine,
            case.schedule,
            case.guidance,
            text=case.text,
            image_latents=image_latents,
            latents=case.noise,
            noise=lambda step: case.noise,
            context=lambda step: bank.context(step, case.dtype) if bank and graph == "unet_frame" else {},
            targets=lambda step: bank.targets(step) if bank and graph == "unet_anchor" else None,
            on_step=laps.after_step,
            steps=backend.steps,
            ahead=ahead,
            alone=lambda: backend.engine(self._graphs["unet" if graph == "unet" else "unet_anchor"]),
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
