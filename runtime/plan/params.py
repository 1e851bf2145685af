"""What the user asks for: one frozen, validated value."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from fairy.export.graphs import LAYER_CHOICES
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.sampler import SAMPLERS
from fairy.runtime.methods import Method, find_method
from fairy.runtime.methods.options import check_options
from fairy.runtime.methods.pix2video import DELTA
from fairy.runtime.plan.order import ORDERS, Order
from fairy.runtime.video import MAX_PIXELS

# What a parameter is when neither the user nor the model's fairy.json says.
DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 10,
    "guidance_scale": 7.5,
    "image_guidance_scale": 1.5,
    "sampler": "euler_ancestral",
    "long_side": 512,
}
_RECOMMENDABLE = (*DEFAULTS, "anchors")
_CHOICES: dict[str, tuple[str, ...]] = {
    "sampler": SAMPLERS,
    "bank_dtype": ("float8",),
    "noise": ("shared", "per-frame"),
    "size": ("scaled", "source"),
    "layers": LAYER_CHOICES,
    "order": ORDERS,
    "hdr": ("refuse", "tonemap"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "num_inference_steps": (1, 1000),
    "guidance_scale": (0.0, 100.0),
    "image_guidance_scale": (0.0, 100.0),
    "seed": (0, 2**63 - 1),
    "long_side": (8, 16384),
    "micro_batch": (1, 1024),
    "guidance_end": (0.0, 1.0),
    "start": (0.0, math.inf),
    "end": (0.0, math.inf),
    "max_pixels": (1, 2**31 - 1),
    "delta": (0.0, 1e6),
    "update_steps": (0, 1000),
}


@dataclass(frozen=True, slots=True)
class EditParams:
    """One edit, as the user asked for it. None means: what the model's directory recommends, else our default.

    Attributes:
        prompt: the instruction, such as "make it a watercolour painting".
        negative_prompt: the text of both branches that do not see the instruction.
        num_inference_steps: denoising steps (10; 50 for models that see depth).
        guidance_scale, image_guidance_scale: how strongly the text (7.5) and the source picture (1.5) pull.
        anchors: how many anchor frames, or their numbers, counted from the first edited frame; None = as many as the
            model recommends, else 3, at most all frames; 0 = none.
        sampler: "euler_ancestral", "euler", "ddim" or "lcm"; models that see depth know "ddim" alone.
        noise: "shared", one sample for all frames, or "per-frame".
        seed: of all noise; the same seed gives the same result on any number of workers.
        long_side: pixels of the result's long side (512); a smaller source keeps its size unless `upscale`.
        size: "scaled", or "source" to scale the result back to the source's size.
        layers: self-attention layers that see other frames: "all" or "decoder"; None = what the method has.
        micro_batch: frames denoised at once (None: chosen from the number of anchors); no effect on the result
            beyond rounding.
        start, end: seconds of the video to edit from and to; None = its beginning and end.
        max_pixels: the largest picture that is decoded, width times height.
        deinterlace: make whole pictures of the fields of interlaced video first, as many as there are frames.
        hdr: "refuse" high dynamic range, or "tonemap" it to BT.709.
        strict: refuse a video in which single frames are damaged, instead of using what the decoder makes of them.
        shots: "off"; "auto" to find cuts and edit each shot against its own anchors (needs PySceneDetect); or the
            first frame of every shot after the first, counted from the first edited frame.
        prompts: further instructions and where they begin: pairs or a mapping of a frame (int) or of seconds of the
            video (float) to the instruction that is used from there on; `prompt` is used before.
        continue_look: frames of a shot also attend to the last anchor of the one before, so that a look that the
            instruction leaves open does not change at a cut.
        method: "fairy", "pix2video" or "per_frame", or a `Method` of your own; see docs/methods.md.
        order: in which order a method's units are computed, "wavefront" or "step-major" where it allows both.
        delta: strength of Pix2Video's guided update (100), 0 = off; update_steps: how many steps from the first it
            acts in (half of them); paper_scale: divide by the size of the latents at hand, as the paper does, not by
            that at 512×512.
        source_prompt: what the video shows, for models whose frames are inverted; "auto" = caption the first frame.
        depth: a folder of depth maps, one a frame, for models that see depth; None = estimate it.
        guidance_end: approximate; the share of the steps that are guided: later ones compute only the branch that sees
            instruction and picture.
        bank_dtype: approximate; "float8" keeps the anchors' keys and values in 8 bit; None = as they were computed.

    Raises:
        InputError: a value is of the wrong type, unknown or impossible; the sentence names it and the remedy.
    """

    prompt: str
    _: KW_ONLY
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    anchors: int | tuple[int, ...] | list[int] | None = None
    sampler: str | None = None
    noise: Literal["shared", "per-frame"] = "shared"
    seed: int = 0
    long_side: int | None = None
    upscale: bool = False
    size: Literal["scaled", "source"] = "scaled"
    layers: Literal["all", "decoder"] | None = None
    micro_batch: int | None = None
    start: float | None = None
    end: float | None = None
    max_pixels: int = MAX_PIXELS
    deinterlace: bool = False
    hdr: Literal["refuse", "tonemap"] = "refuse"
    strict: bool = False
    shots: Literal["off", "auto"] | tuple[int, ...] | list[int] = "off"
    prompts: Mapping[int | float, str] | Sequence[tuple[int | float, str]] | None = None
    continue_look: bool = False
    guidance_end: float = 1.0
    bank_dtype: Literal["float8"] | None = None
    method: str | Method = "fairy"
    order: Order | None = None
    delta: float | None = None
    update_steps: int | None = None
    paper_scale: bool = False
    source_prompt: str | None = None
    depth: str | Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError('The instruction is empty; say what to do, for example "make it a watercolour painting".')
        if not isinstance(self.negative_prompt, str):
            raise InputError(f"negative_prompt must be text, not {self.negative_prompt!r}.")
        if not isinstance(self.source_prompt, str | None):
            raise InputError(f"source_prompt must be text, not {self.source_prompt!r}.")
        for name in ("prompt", "negative_prompt", "source_prompt"):
            _check_text(name, getattr(self, name) or "")
        if not isinstance(self.depth, str | Path | None):
            raise InputError(f"depth must be a folder, not {self.depth!r}.")
        for name in ("upscale", "continue_look", "paper_scale", "deinterlace", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for name, (low, high) in _RANGES.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InputError(f"end = {self.end:g} s must be later than start = {self.start:g} s.")
        object.__setattr__(self, "anchors", _normal_anchors(self.anchors))
        object.__setattr__(self, "shots", _normal_shots(self.shots))
        object.__setattr__(self, "prompts", _normal_prompts(self.prompts))
        if self.continue_look and self.anchors in (0, ()):
            raise InputError("continue_look hands on an anchor, but anchors = 0 asks for none; choose at least one.")
        check_options(self)

    def resolved(self, recommended: Mapping[str, Any]) -> "EditParams":
        """The same with every None that a model may recommend filled in: from `recommended`, else our defaults.

        Raises:
            InputError: the recommendation has an unknown name or an impossible value.
        """
        unknown = sorted(set(recommended) - set(_RECOMMENDABLE))
        if unknown:
            raise InputError(f"fairy.json recommends {unknown[0]!r}, which is none of {', '.join(_RECOMMENDABLE)}.")
        if not isinstance(recommended.get("anchors", 0), int):
            raise InputError(f"fairy.json recommends anchors = {recommended['anchors']!r}; it may only say how many.")
        method = find_method(self.method)
        values = {**DEFAULTS, **recommended, "layers": method.layers, "order": method.orders[0]}
        if method.anchors != "chosen":
            values.pop("anchors", None)
        if method.after_step is not None:
            steps = self.num_inference_steps or values["num_inference_steps"]
            values |= {"delta": DELTA, "update_steps": (steps + 1) // 2}
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)

    @property
    def schedule(self) -> tuple[tuple[int | float, str], ...]:
        """`prompts` as pairs; empty where there are none."""
        return self.prompts or ()  # type: ignore[return-value]  # made so in __post_init__

    def to_json(self) -> dict[str, Any]:
        """Every value by name, for a report."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"method": str(self.method), "depth": None if self.depth is None else str(self.depth)}


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is None and name in (*DEFAULTS, "layers", "order", "bank_dtype"):
        return
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} = {value!r} is not known; choose one of {', '.join(choices)}.")


def _number(name: str, value: Any, low: float, high: float) -> int | float | None:
    """The value as a plain int or float; NumPy's numbers are taken too."""
    if value is None and name not in ("seed", "max_pixels", "guidance_end"):
        return None
    whole = isinstance(low, int)
    kind: Any = Integral if whole else Real
    if not isinstance(value, bool) and isinstance(value, kind) and low <= value <= high:
        return operator.index(value) if whole else float(value)
    bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {_plain(high)}"
    raise InputError(f"{name} = {value!r} is not possible; it must be a {'whole ' if whole else ''}number {bounds}.")


def _plain(number: float) -> str:
    """A bound as people write it; 9223372036854775807 in full."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} = {text!r} is not valid Unicode text; type it again.") from error


def _normal_anchors(anchors: Any) -> Any:
    if anchors is None:
        return None
    if _is_whole(anchors):
        if anchors < 0:
            raise InputError(f"anchors = {anchors} is not possible; give 0 for none, or a positive number.")
        return int(anchors)
    if isinstance(anchors, list | tuple) and all(map(_is_whole, anchors)):
        if len(set(anchors)) != len(anchors):
            raise InputError(f"anchors = {list(anchors)} names a frame twice; name every anchor once.")
        return tuple(sorted(map(int, anchors)))
    raise InputError(f"anchors = {anchors!r} is neither a number of anchors nor a list of frame numbers.")


def _normal_shots(shots: Any) -> Any:
    if isinstance(shots, str) and shots in ("off", "auto"):
        return shots
    if isinstance(shots, list | tuple) and all(_is_whole(frame) and frame >= 0 for frame in shots):
        return tuple(sorted({int(frame) for frame in shots} - {0}))
    raise InputError(f"shots = {shots!r} is not known; give off, auto, or the first frames of shots such as 120,310.")


def _normal_prompts(prompts: Any) -> Any:
    """Pairs of frame (int) or seconds (float) and instruction, in the order given."""
    if prompts is None:
        return None
    pairs = list(prompts.items()) if isinstance(prompts, Mapping) else prompts
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
        raise InputError(f"prompts = {prompts!r} is not possible; give pairs of a frame or a time and an instruction.")
    return tuple(_scheduled(pair) for pair in pairs)


def _scheduled(pair: Any) -> tuple[int | float, str]:
    if isinstance(pair, list | tuple) and len(pair) == 2:
        start, prompt = pair
        number = isinstance(start, Real) and not isinstance(start, bool) and 0 <= start < math.inf  # type: ignore[operator]
        if number and isinstance(prompt, str) and prompt.strip():
            _check_text("prompts", prompt)
            return (int(start) if _is_whole(start) else float(start)), prompt
    raise InputError(f"prompts: {pair!r} is not a frame (120) or seconds (4.5) with an instruction; write both.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
