"""What one would run without us: diffusers frame by frame, the same batched, and anchors joined through SDPA."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairy.benchmarks.ladder.case import IMAGE_SCALE, TEXT_SCALE, Case, Lap, Laps, work_bytes
from fairy.runtime.denoise.guidance import branch_image, guide
from fairy.runtime.denoise.sampler import scale_model_input, step


class PipelineRung:
    """(a) diffusers' `StableDiffusionInstructPix2PixPipeline`, one frame a call, as its documentation runs it."""

    key, name, anchored = "a", "diffusers, frame by frame", False

    def __init__(self, case: Case) -> None:
        from diffusers import EulerDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

        parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
        networks = case.networks
        unet = copy.deepcopy(networks.unet)  # the graphs of others give theirs attention of their own
        set_plain_attention(unet)
        scheduler = EulerDiscreteScheduler.from_config(dict(networks.scheduler_config))
        self._pipe = StableDiffusionInstructPix2PixPipeline(
            vae=networks.vae, unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts
        )
        self._pipe.set_progress_bar_config(disable=True)
        self._case = case

    @torch.inference_mode()
    def run(self) -> Lap:
        """Every frame of the batch; times are those of the last one."""
        case, laps = self._case, Laps(self._case.device)
        with work_bytes(case.device) as memory:
            edited = [self._edit(picture, laps) for picture in case.pictures[case.frames]]
            self._pipe.vae.encode(case.pictures[:1])
            laps.start()
            self._pipe.vae.encode(case.pictures[:1])
            encode_ms = laps.lap()
            self._pipe.vae.decode(edited[0], return_dict=False)
            decode_ms = laps.lap()
        first, later = laps.times[-4:-2]
        # The pipeline encodes the picture before its first step.
        steps = (max(first - encode_ms, later / 2), later)
        return Lap(encode_ms, decode_ms, steps, None, 1, torch.cat(edited).float(), *memory)

    def _edit(self, picture: Tensor, laps: Laps) -> Tensor:
        case = self._case

        def note(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            laps.lap()
            return kwargs

        laps.start()
        latents: Tensor = self._pipe(
            image=picture[None] / 2 + 0.5,
            prompt_embeds=case.text[:1],
            negative_prompt_embeds=case.text[1:2],
            latents=case.noise.to(case.dtype),
            num_inference_steps=len(case.schedule),
            guidance_scale=TEXT_SCALE,
            image_guidance_scale=IMAGE_SCALE,
            output_type="latent",
            callback_on_step_end=note,
        ).images
        return latents


class BatchedRung:
    """(b) the same networks, frames and branches in one batch, channels last, compiled; (c) with anchors joined.

    (c) is what an expert would write in a day: attention processors that keep the anchors' keys and values and join
    them to every frame's own for SDPA.
    """

    def __init__(self, case: Case, *, anchored: bool, compiled: bool) -> None:
        self.anchored = anchored
        self.key = "c" if anchored else "b"
        how = "torch.compile, channels last" if compiled else "channels last"
        self.name = f"{'anchors joined, ' if anchored else 'batched, '}{how}"
        self._case = case
        networks = case.networks
        copies = [_channels_last(net) for net in (networks.unet, networks.vae)]
        compiler: Callable[[Any], Any] = partial(torch.compile, dynamic=False) if compiled else lambda call: call
        self._unet = compiler(copies[0].forward)
        self._encode, self._decode = compiler(_encoder(copies[1])), compiler(_decoder(copies[1]))
        if anchored:
            for name in [n.removesuffix(".processor") for n in copies[0].attn_processors]:
                copies[0].get_submodule(name).set_processor(_JoinedAttention(name))
        else:
            set_plain_attention(copies[0])

    @torch.inference_mode()
    def run(self) -> Lap:
        """One batch of frames, after the anchors where there are some."""
        case, anchors_ms = self._case, None
        with work_bytes(case.device) as memory:
            laps = Laps(case.device)
            self._encode(case.pictures[:1].contiguous(memory_format=torch.channels_last))
            encode_ms = laps.lap()
            banks: list[dict[str, Tensor]] = []
            if self.anchored:
                self._denoise(case.image_latents[case.anchors], laps, banks, keep=True)
                anchors_ms = (laps.times[-2], laps.times[-1])
            latents = self._denoise(case.image_latents[case.frames], laps, banks, keep=False)
            frames_ms = (laps.times[-2], laps.times[-1])
            self._decode(latents[:1].to(case.dtype))
            decode_ms = laps.lap()
        return Lap(encode_ms, decode_ms, frames_ms, anchors_ms, len(latents), latents, *memory)

    def _denoise(self, image_latents: Tensor, laps: Laps, banks: list[dict[str, Tensor]], *, keep: bool) -> Tensor:
        case, frames = self._case, len(image_latents)
        image = branch_image(case.guidance, image_latents)
        text = case.text.repeat_interleave(frames, 0)
        x = (case.noise * case.schedule.init_noise_sigma).expand(frames, -1, -1, -1)
        laps.start()
        for i, t in enumerate(torch.tensor(case.schedule.timesteps, device=case.device)):
            if keep:
                banks.append({})
            scaled = scale_model_input(case.schedule, i, x).to(case.dtype).expand(len(image), -1, -1, -1, -1)
            sample = torch.cat([scaled, image], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            told = {"bank": banks[i] if banks else {}, "keep": keep, "frames": frames} if self.anchored else None
            output = self._unet(sample, t, text, cross_attention_kwargs=told, return_dict=False)[0]
            guided = guide(case.guidance, output.unflatten(0, (-1, frames)))
            x = step(case.schedule, i, x, guided, None)
            laps.lap()
        return x


class _JoinedAttention:
    """Self-attention with the anchors' keys and values joined to the frame's own; cross-attention as it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *,
        bank: dict[str, Tensor], keep: bool, frames: int,
    ) -> Tensor:  # fmt: skip
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if encoder_hidden_states is None:
            if keep:  # anchors: all of them at once, which is their own keys too
                k, v = (t.unflatten(0, (-1, frames)).flatten(1, 2) for t in (k, v))
                bank[f"{self._name}.k"], bank[f"{self._name}.v"] = k, v
                k, v = (t.repeat_interleave(frames, 0) for t in (k, v))
            else:
                joined = (bank[f"{self._name}.{n}"].repeat_interleave(frames, 0) for n in ("k", "v"))
                k, v = (torch.cat([own, far], 1) for own, far in zip((k, v), joined, strict=True))
        by_head = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[0](out)
        return projected


def set_plain_attention(unet: Any) -> None:
    """Give a UNet diffusers' own attention back, whatever ran on it before."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet.set_attn_processor(AttnProcessor2_0())


def _channels_last(net: Any) -> Any:
    made: Any = copy.deepcopy(net)
    return made.to(memory_format=torch.channels_last)


def _encoder(vae: nn.Module) -> Callable[[Tensor], Tensor]:
    encode: Any = vae.encode
    return lambda image: encode(image).latent_dist.mode()


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    factor = vae.config.scaling_factor
    return lambda latents: vae.decode(latents / factor, return_dict=False)[0]
