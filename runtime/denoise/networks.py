"""The networks of one model as an edit uses them: text, pictures to latents, noise to latents, latents to pictures.

Every result is looked at: where values became NaN or infinite, the same is computed once more in float32, and the
job's report says so.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairy.engines.engine import Backend, Engine
from fairy.export.model import EditModel
from fairy.kernels.errors import NumericalError
from fairy.runtime.bank.anchor_bank import AnchorBank, CarriedAnchor, StepBank
from fairy.runtime.bank.float8 import Float8Bank
from fairy.runtime.bank.host import HostBank
from fairy.runtime.denoise.details import kept_details
from fairy.runtime.denoise.guidance import branch_text
from fairy.runtime.inputs.conditions import condition_of
from fairy.runtime.inputs.encoded import EncodedPictures, key_of
from fairy.runtime.inputs.frames import Frames
from fairy.runtime.inputs.masks import colours, composite, scaled_weights
from fairy.runtime.plan.controls import ControlUse
from fairy.runtime.plan.geometry import pad_by_reflection, scale_frames
from fairy.runtime.record.run import Run
from fairy.runtime.video.images import load_picture

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "Failed to allocate memory")  # torch, CUDA, ONNX Runtime


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """A frame uint8 [H, W, 3] as it was read, and its image latents [1, c, h, w] where they are known."""

    picture: Frames
    latents: Tensor | None


class Networks:
    """A backend's engines, called in a job's precision on its device. It keeps nothing of a job.

    Attributes:
        encoded: pictures that were encoded, where they are kept from job to job.
    """

    def __init__(
        self, checkpoint: EditModel, backend: Backend, device: torch.device, *, bank_on_host: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self.device = device
        self.bank_on_host = bank_on_host
        self.encoded: EncodedPictures | None = None

    def encode_text(self, run: Run, prompt: str, picture: Frames | None = None) -> Tensor:
        """Text features of every guidance branch for an instruction: [branches, …, tokens, channels].

        `picture`: what the text is encoded with, where the model's text sees one.
        """
        texts = {"instruction": prompt, "negative prompt": run.plan.params.negative_prompt}
        if "text_encoder" not in run.plan.graphs and run.plan.guidance.branches == (0,):
            del texts["negative prompt"]  # nobody reads it
        wanted, *unwanted = self.text_features(run, texts, picture)
        return branch_text(run.plan.guidance, wanted, unwanted[0] if unwanted else wanted)

    def style(self, run: Run) -> tuple[Tensor, float] | None:
        """A picture's tokens for every guidance branch [branches, tokens, channels], and their scale; none = None.

        As in diffusers, it is shown where the instruction is, and none in the two null branches.
        """
        adapter, style = self.checkpoint.ip_adapter, run.plan.style
        if adapter is None or style is None:
            return None
        with run.monitor.timed("text"):
            shown, none = adapter.features(load_picture(style[0], run.plan.params.max_pixels))
            return branch_text(run.plan.guidance, shown, none), style[1]

    def text_features(self, run: Run, texts: Mapping[str, str], picture: Frames | None = None) -> Tensor:
        """Features of texts, by what the report calls them: [texts, …, tokens, channels]."""
        words, model, ids = list(texts.values()), self.checkpoint, None
        if "text_encoder" in run.plan.graphs:
            ids, cut = model.text_ids(words)
            self._note_cut(run, texts, cut)

        def attempt(precision: torch.dtype) -> Tensor:
            if ids is not None:
                return self.engine(run, "text_encoder", precision)({"input_ids": ids.to(self.device)})["text"]
            features, cut = model.encode_text(words, picture, self.device)
            self._note_cut(run, texts, cut)
            return features.to(precision)

        with run.monitor.timed("text"):
            return finite(run, attempt, "The text features")

    def _note_cut(self, run: Run, texts: Mapping[str, str], cut: Sequence[bool]) -> None:
        """Tell of texts whose end was not used."""
        length = self.checkpoint.text_tokens
        run.tally.notes += [
            f"The {name} is longer than the model's {length} tokens; its end was not used."
            for name, is_cut in zip(texts, cut, strict=True)
            if is_cut
        ]

    def encode(self, run: Run, pictures: Sequence[Frames]) -> Tensor:
        """Frames [H, W, 3] to image latents [n, c, h, w]; one at a time, so that a batch's shape never varies."""

        def encode_one(image: Tensor) -> Tensor:
            run.monitor.check()

            def attempt(precision: torch.dtype) -> Tensor:
                return self.engine(run, "vae_encoder", precision)({"image": image.to(precision)})["image_latents"]

            return finite(run, attempt, "The image latents")

        def latents_of(picture: Frames) -> Tensor:
            def encode() -> Tensor:
                return encode_one(self._network_input(run, picture))

            if self.encoded is None:
                return encode()
            precision = run.pace.precision
            key = key_of(picture, (run.plan.geometry, precision))
            latents = self.encoded.get(key, self.device, encode)
            if run.pace.precision != precision:  # it was not enough, which the next job must find out too
                self.encoded.forget(key)
            return latents

        with run.monitor.timed("encode"):
            return torch.cat([latents_of(picture) for picture in pictures])

    def conditions(self, run: Run, picture: Frames) -> tuple[Mapping[str, Tensor], ...]:
        """What each control of the edit makes of a frame as it is handed on, by name, without a batch's dimension."""
        if not run.plan.controls:
            return ()
        with run.monitor.timed("controls"):
            return tuple(self._condition(run, use, picture) for use in run.plan.controls)

    def _condition(self, run: Run, use: ControlUse, picture: Frames) -> dict[str, Tensor]:
        run.monitor.check()
        image = condition_of(self.checkpoint, use, picture, run.plan.geometry, self.device)
        name = f"adapter_{use.number}" if use.kind == "adapter" else f"condition_{use.number}"
        spec = run.plan.graphs[name]
        if spec.inputs[0].dims[1] == 1:
            image = image.mean(1, keepdim=True)
        for precision in precisions(run, "What a control sees"):
            found = self.engine(run, name, precision)({"image": image.to(precision)})
            if all(bool(torch.isfinite(t).all()) for t in found.values()):
                break
        return {key: t[0] for key, t in found.items()}

    def decode(self, run: Run, latents: Tensor) -> list[Frames]:
        """Latents [n, c, h, w] to frames [height, width, 3] at the size of the result, one at a time."""
        with run.monitor.timed("decode"):
            levels = (self._decoded(run, latents[i : i + 1]) for i in range(len(latents)))
            return [_to_numpy(scale_frames(picture, run.plan.result_size))[0] for picture in levels]

    def decode_with_details(self, run: Run, latents: Tensor, sources: Sequence[SourceFrame]) -> list[Frames]:
        """`decode` of edits of these frames, which keep what the autoencoder loses of them; see `details.py`."""
        frames = []
        for latent, source in zip(latents.split(1), sources, strict=True):
            known = source.latents
            if known is None or known.dtype != run.pace.precision:  # as an edit that goes on later finds it
                known = self.encode(run, [source.picture])
            with run.monitor.timed("decode"):
                edited, restored = self._decoded(run, latent), self._decoded(run, self.as_edited(known))
                frames.append(_with_details(run, self._tensor(source.picture), edited, restored))
        return frames

    def _decoded(self, run: Run, latent: Tensor) -> Tensor:
        """Latents [1, c, h, w] to a picture [1, 3, height, width] in levels of 0 to 255, before it is scaled back."""
        run.monitor.check()

        def attempt(precision: torch.dtype) -> Tensor:
            return self.engine(run, "vae_decoder", precision)({"latents": latent.to(precision)})["image"]

        return _levels(run, finite(run, attempt, "A decoded frame"))

    def as_edited(self, image_latents: Tensor) -> Tensor:
        """The encoder's latents in the scale in which edited ones are, in float32."""
        return self.checkpoint.as_edited(image_latents)

    def source_like_result(self, run: Run, pictures: Sequence[Frames]) -> Frames:
        """Source frames at the size of the result: uint8 [n, height, width, 3]."""
        sources = [colours(picture) for picture in pictures]
        if run.plan.result_size == run.plan.geometry.source:
            return np.stack(sources)
        scaled = torch.cat([scale_frames(self._tensor(picture), run.plan.result_size) for picture in sources])
        return _to_numpy(scaled)

    def within_masks(self, run: Run, pictures: Sequence[Frames], edited: Frames) -> Frames:
        """Edited frames [n, height, width, 3] where the masks of their source frames [H, W, 4] say so, else these."""
        weights = [scaled_weights(picture[..., 3], run.plan.result_size) for picture in pictures]
        return composite(self.source_like_result(run, pictures), edited, np.stack(weights))

    def engine(self, run: Run, graph: str, precision: torch.dtype) -> Engine:
        """The engine of one of the job's graphs."""
        return self.backend.engine(run.plan.graphs[graph], precision)

    def new_bank(self, run: Run, num_anchors: int, precision: torch.dtype, carried: CarriedAnchor | None) -> StepBank:
        """A bank for so many anchors at the job's steps and branches; empty but for what is carried."""

        def bank(steps: int, device: torch.device, carried: CarriedAnchor | None, pinned: bool = False) -> AnchorBank:
            return AnchorBank.allocate(
                run.plan.graphs["unet_anchor"],
                num_inference_steps=steps,
                branches=run.plan.guidance.groups,
                num_anchors=num_anchors,
                latent_size=run.plan.latent_shape[1:],
                dtype=precision,
                device=device,
                carried=carried,
                pinned=pinned,
            )

        steps = len(run.plan.schedule)
        first = None if carried is None else carried.first_step()
        if run.plan.params.bank_dtype == "float8":
            return Float8Bank(bank(1, self.device, first), steps, carried)
        if not self.bank_on_host:
            return bank(steps, self.device, carried)
        home = bank(steps, torch.device("cpu"), carried, pinned=self.device.type == "cuda")
        return HostBank.around(home, bank(1, self.device, first), bank(1, self.device, first), self.device)

    def _network_input(self, run: Run, picture: Frames) -> Tensor:
        """A frame [H, W, 3] as the VAE takes it: float32 [1, 3, padded height, padded width] in −1…1."""
        scaled = scale_frames(self._tensor(picture), run.plan.geometry.scaled)
        return pad_by_reflection(scaled / 127.5 - 1.0, run.plan.geometry.padded)

    def _tensor(self, picture: Frames) -> Tensor:
        """A frame [H, W, 3] as float32 [1, 3, H, W] in 0…255 on the device."""
        levels_HWC = torch.from_numpy(np.array(picture))
        if self.device.type == "cuda":  # a pinned copy is sent while the host goes on
            levels_HWC = levels_HWC.pin_memory()
        return levels_HWC.to(self.device, non_blocking=True).permute(2, 0, 1).float().unsqueeze(0)


def finite(run: Run, attempt: Callable[[torch.dtype], Tensor], what: str) -> Tensor:
    """The result in the job's precision or, where that is not finite, in float32."""
    for precision in precisions(run, what):
        result = attempt(precision)
        if bool(torch.isfinite(result).all()):
            break
    return result


def precisions(run: Run, what: str) -> Iterator[torch.dtype]:
    """The precisions to compute something in until it is finite: the job's, then float32, which the report says.

    Raises NumericalError where that did not suffice.
    """
    yield run.pace.precision
    if run.pace.precision != torch.float32:
        name = str(run.pace.precision).removeprefix("torch.")
        run.tally.fallbacks.append(f"{what} became NaN or infinite in {name} and were computed again in float32.")
        yield torch.float32
    raise NumericalError(
        f"{what} became NaN or infinite in float32 with the guidance scales {run.plan.params.guidance_scale:g} and "
        f"{run.plan.params.image_guidance_scale:g}; choose smaller ones, or check the model's weights."
    )


def halve_batch(run: Run, error: Exception) -> None:
    """Let the job go on with half as many frames at once, where the error says that the memory did not suffice."""
    told = str(error)  # of engines, whose own errors have no type for it
    full = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in told for sign in _OUT_OF_MEMORY)
    if not full or run.pace.frames_at_once == 1:
        raise error
    before, run.pace.frames_at_once = run.pace.frames_at_once, (run.pace.frames_at_once + 1) // 2
    run.tally.fallbacks.append(
        f"The memory did not suffice for {before} frames at once; {run.pace.frames_at_once} were computed at once from "
        "then on, which may differ in rounding."
    )
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the batch that failed
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_details(run: Run, source: Tensor, edited: Tensor, restored: Tensor) -> Frames:
    """A source frame [1, 3, H, W], changed as its edit differs from what the autoencoder makes of it.

    A result of the source's size gets the details that scaling lost, too.
    """
    size = run.plan.result_size
    scaled = scale_frames(source, run.plan.geometry.scaled)
    change, share = kept_details(scaled, edited, restored)
    if size == run.plan.geometry.scaled:
        levels = scaled + change
    else:
        change, share, blurred = (
            F.interpolate(x, size, mode="bicubic", align_corners=False) for x in (change, share, scaled)
        )
        levels = source + change + (share - 1.0) * (source - blurred)
    frame: Frames = _to_numpy(levels.clamp(0.0, 255.0))[0]
    return frame


def _levels(run: Run, image: Tensor) -> Tensor:
    """What a decoder makes, [1, 3, padded height, padded width] in −1…1, as levels of 0 to 255 without its padding."""
    height, width = run.plan.geometry.scaled
    return (image[..., :height, :width].float() / 2 + 0.5).clamp(0.0, 1.0) * 255.0


def _to_numpy(levels: Tensor) -> Frames:
    """Float [n, 3, H, W] in 0…255 to uint8 [n, H, W, 3], rounded to nearest."""
    frames: Frames = levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return frames
