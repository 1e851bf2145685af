"""The networks of a Phenaki at work: a stretch of codes from codes before it and a text, frames from codes, and back.

Each call is a function of what is handed over, the same bytes wherever it is made. A model is a folder: `phenaki.json`
(`PhenakiModel`), `video_tokenizer/`, `transformer/`, `text_encoder/`, `tokenizer/`.

Legend of shape suffixes: F frames, T token frames, P and M those before and of a new stretch, h·w codes of one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fairy.engines.engine import Usage
from fairy.export.bases.causal_tokenizer import CausalVideoTokenizer
from fairy.export.bases.masked_transformer import MaskedVideoTransformer
from fairy.export.loading import load_network, load_tokenizer, text_features
from fairy.kernels.errors import InputError
from fairy.runtime.generation.masked_sampler import draw_codes, mask_again, masked_after
from fairy.runtime.generation.networks import check_finite
from fairy.runtime.generation.params import GeneratorSetup

FILE = "phenaki.json"


@dataclass(frozen=True, slots=True)
class PhenakiModel:
    """What a model's folder says of it.

    Attributes:
        fps: frames a second of what it makes; height, width: in pixels.
        frames, frames_before: token frames that are made at once, and that are seen before them.
        num_inference_steps, guidance_scale, temperature: as recommended.
    """

    fps: Fraction
    height: int
    width: int
    frames: int
    frames_before: int
    num_inference_steps: int
    guidance_scale: float
    temperature: float

    @classmethod
    def read(cls, folder: Path) -> "PhenakiModel":
        """What the files in a folder say. Raises InputError where they are missing or say something else."""
        own, of_tokenizer, of_transformer = (
            _json(folder, name) for name in (FILE, "video_tokenizer/config.json", "transformer/config.json")
        )
        try:
            return cls(
                fps=Fraction(own["fps"]),
                height=int(of_tokenizer["height"]),
                width=int(of_tokenizer["width"]),
                frames=int(of_transformer["max_frames"]),
                frames_before=int(of_transformer["max_frames_before"]),
                num_inference_steps=int(own["num_inference_steps"]),
                guidance_scale=float(own["guidance_scale"]),
                temperature=float(own["temperature"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The files in {folder} do not say what they must ({error!r}); get them anew.") from error


@dataclass(frozen=True, slots=True)
class Prompted:
    """The text's features, with and without the caption: [2, L, C]; the first row is the negative prompt's."""

    features: Tensor
    guidance_scale: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """How masked codes are filled in; see `masked_sampler`. `key`: of all noise of the stretch."""

    steps: int
    temperature: float
    key: str


class PhenakiNetworks:
    """The networks of a folder, each loaded when it is first needed."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises InputError where the folder holds no Phenaki."""
        self.folder, self.device, self.dtype = folder, device, dtype
        self.model = PhenakiModel.read(folder)

    backend_name = "eager"

    def engines(self) -> list[str]:
        """None is built of these networks yet."""
        return []

    def take_usage(self) -> Usage:
        """Nothing but the networks themselves ran."""
        return Usage()

    @cached_property
    def _video_tokenizer(self) -> CausalVideoTokenizer:
        """In float32 always: in 16 bit, values near a level's border become other codes."""
        network = load_network(CausalVideoTokenizer, self.folder / "video_tokenizer", torch.float32)
        return cast(CausalVideoTokenizer, network.to(self.device))

    @cached_property
    def _transformer(self) -> MaskedVideoTransformer:
        network = load_network(MaskedVideoTransformer, self.folder / "transformer", self.dtype)
        return cast(MaskedVideoTransformer, network.to(self.device))

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        from transformers import CLIPTextModel

        encoder = load_network(CLIPTextModel, self.folder / "text_encoder", self.dtype).to(self.device)
        return load_tokenizer(self.folder / "tokenizer"), encoder

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, [texts, L, C]."""
        return text_features(*self._text, texts)

    @torch.inference_mode()
    def encode(self, frames_F3HW: Tensor) -> Tensor:
        """Codes of a video's beginning, int64 [T, h, w], of 1 + 2·m frames in 0 to 1."""
        video = (frames_F3HW * 2 - 1).transpose(0, 1)[None].to(self.device)
        codes, _ = self._video_tokenizer.encode(video)
        return codes[0].cpu()

    @torch.inference_mode()
    def decode(self, codes_Thw: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The frames of codes, float32 [F, 3, H, W] in 0 to 1, and the state that the codes after them need."""
        given = None if state is None else state.to(self.device)
        video, state = self._video_tokenizer.decode(codes_Thw[None].to(self.device), given)
        check_finite(video, "video_tokenizer")
        return ((video[0].transpose(0, 1) + 1) / 2).clamp(0, 1).cpu(), state.cpu()

    @torch.inference_mode()
    def sample(
        self, before_Phw: Tensor | None, frames: int, text: Prompted, sampling: Sampling, is_start: bool
    ) -> Tensor:
        """A new stretch of so many token frames, int64 [M, h, w].

        Args:
            before_Phw: the codes before it; None = it begins the video.
            is_start: whether the first of those is the video's first.
        """
        network, scale = self._transformer, text.guidance_scale
        features = (text.features if scale != 1.0 else text.features[1:]).to(self.device, self.dtype)
        rows = len(features)
        remembered = None
        if before_Phw is not None:
            before = before_Phw.to(self.device).expand(rows, -1, -1, -1)
            remembered = network.remember(before, features, is_start=is_start)
        shape = (frames, int(network.config["height"]), int(network.config["width"]))
        codes_N = torch.full(shape, network.mask).flatten()
        masked_N = torch.ones_like(codes_N, dtype=torch.bool)
        unknown = len(codes_N)
        for step in range(sampling.steps):
            given = codes_N.view(shape).to(self.device).expand(rows, -1, -1, -1)
            logits = network(given, features, remembered).flatten(1, 3).float().cpu()
            check_finite(logits, "transformer")
            logits_NK = logits[0] + scale * (logits[1] - logits[0]) if rows == 2 else logits[0]
            codes_N = draw_codes(logits_NK, codes_N, masked_N, f"{sampling.key}/{step}/code")
            if step + 1 < sampling.steps:
                count = masked_after(step, sampling.steps, unknown, int(masked_N.sum()))
                temperature = sampling.temperature * (1 - (step + 1) / sampling.steps)
                key = f"{sampling.key}/{step}/choice"
                masked_N = mask_again(logits_NK, codes_N, masked_N, count, temperature, key)
                codes_N = codes_N.masked_fill(masked_N, network.mask)
        return codes_N.view(shape)


def make_phenaki(
    folder: Path, dtype: torch.dtype, setup: GeneratorSetup, motion_adapter: Path | None, device: torch.device
) -> PhenakiNetworks:
    """The networks of a folder, here or in a worker; none is loaded yet. Raises InputError where it holds none."""
    built = setup.backend if setup.backend not in ("auto", "eager") else None
    for name, value in (("offload", setup.offload), ("motion_adapter", motion_adapter), ("backend", built)):
        if value:
            raise InputError("goes with a cascade alone", name=name, value=value, remedy="leave it out")
    return PhenakiNetworks(folder, device, dtype)


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        told = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no Phenaki: its {name} cannot be read ({error}).") from error
    if not isinstance(told, dict):
        raise InputError(f"{folder} holds no Phenaki: its {name} says nothing; get the model's files anew.")
    return told
