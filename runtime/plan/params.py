"""What the user asks for: one frozen, validated value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from fairy.export.graphs import LAYER_CHOICES
from fairy.kernels.errors import InputError
from fairy.runtime.denoise.schedulers import SAMPLERS
from fairy.runtime.methods import METHODS, Method, find_method
from fairy.runtime.methods.fits import check_fits
from fairy.runtime.methods.pix2video import DELTA
from fairy.runtime.options import (
    Choice,
    Flag,
    Kind,
    Name,
    Names,
    Number,
    Scaled,
    Text,
    Time,
    Whole,
    check_options,
    option,
)
from fairy.runtime.plan.controls import Scales, Sees
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
DEFAULT_FEATHER = 8
MODEL_OPTIONS = ("text_picture", "anchor_tokens", "anchor_positions")
"""Options that only some families of models know; for the others they are None."""
_RECOMMENDABLE = (*DEFAULTS, "anchors", *MODEL_OPTIONS)


Ramp = tuple[float, float]
"""A strength at the first and at the last frame of what an instruction edits; between them it is linear."""
Scheduled = tuple[int | float, str] | tuple[int | float, str, Ramp]
"""From which frame (int) or second (float) on which instruction is used and, where that is said, how strongly."""


def _scheduled(entry: Any) -> Scheduled:
    """One entry of a schedule: where it begins (a frame: int; seconds: float), the instruction, a strength."""
    if isinstance(entry, list | tuple) and len(entry) in (2, 3):
        start, prompt, *strength = entry
        number = isinstance(start, Real) and not isinstance(start, bool) and 0 <= start < math.inf  # type: ignore[operator]
        if number and isinstance(prompt, str) and prompt.strip():
            Text().check("prompts", prompt)
            begins = int(start) if _is_whole(start) else float(start)
            return (begins, prompt, _ramp(strength[0])) if strength else (begins, prompt)
    raise InputError(f"prompts: {entry!r} is not a frame (120) or seconds (4.5) with an instruction; write both.")


def _ramp(strength: Any) -> Ramp:
    """One strength for all frames, or that of the first and of the last one."""
    ends = strength if isinstance(strength, list | tuple) else (strength, strength)
    if len(ends) != 2:
        remedy = "give a number from 0 to 1, or those of the first and the last frame"
        raise InputError("is no strength", name="prompts", value=strength, remedy=remedy)
    first, last = (Number(0.0, 1.0).check("strength", end) for end in ends)
    return first, last


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _frames_of(text: str) -> tuple[int, ...]:
    """Frame numbers with commas between them; none where the text is something else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        return ()


@dataclass(frozen=True, slots=True)
class Anchors(Kind):
    """How many anchor frames, or which."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """How it is written."""
        return "a number (3, 0 for none), or frames (0,40,80)"

    def check(self, name: str, value: Any) -> int | tuple[int, ...]:
        """A number, or frames in their order."""
        if _is_whole(value):
            if value < 0:
                raise InputError("is not possible", name=name, value=value, remedy="give 0 for none, or more")
            return int(value)
        if isinstance(value, list | tuple) and all(map(_is_whole, value)):
            if len(set(value)) != len(value):
                raise InputError("names a frame twice", name=name, value=list(value), remedy="name every anchor once")
            return tuple(sorted(map(int, value)))
        raise InputError("is neither a number of anchors (3) nor a list of frames (0,40,80)", name=name, value=value)

    def parse(self, name: str, text: str) -> int | tuple[int, ...]:
        """A number, or frames with commas between them."""
        numbers = _frames_of(text)
        return self.check(name, (numbers if "," in text else numbers[0]) if numbers else text)


@dataclass(frozen=True, slots=True)
class Shots(Kind):
    """Whether cuts are looked for, or where shots begin."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """How it is written."""
        return "off, auto, or the first frames of shots (120,310)"

    def check(self, name: str, value: Any) -> str | tuple[int, ...]:
        """A word, or frames in their order, without the video's first."""
        if isinstance(value, str) and value in ("off", "auto"):
            return value
        if isinstance(value, list | tuple) and all(_is_whole(frame) and frame >= 0 for frame in value):
            return tuple(sorted({int(frame) for frame in value} - {0}))
        remedy = "give off, auto, or the first frames of shots such as 120,310"
        raise InputError("is not known", name=name, value=value, remedy=remedy)

    def parse(self, name: str, text: str) -> str | tuple[int, ...]:
        """A word, or frames with commas between them."""
        return self.check(name, text if text in ("off", "auto") else _frames_of(text) or text)


@dataclass(frozen=True, slots=True)
class Prompts(Kind):
    """Further instructions and where they begin."""

    metavar: str = "PATH"

    def takes(self) -> str:
        """How it is written."""
        return "a YAML or JSON file"

    def check(self, name: str, value: Any) -> tuple[Scheduled, ...]:
        """Pairs of frame (int) or seconds (float) and instruction, or three with a strength, in the order given."""
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
            remedy = "give pairs of a frame or a time and an instruction"
            raise InputError("is not possible", name=name, value=value, remedy=remedy)
        return tuple(_scheduled(pair) for pair in pairs)

    def parse(self, name: str, text: str) -> tuple[Scheduled, ...]:
        """What a file says."""
        from fairy.runtime.plan.story import read_prompts

        return self.check(name, read_prompts(Path(text)))


@dataclass(frozen=True, slots=True)
class AnchorImages(Names):
    """Pictures that say how anchors shall look."""

    metavar: str = "FRAME=PICTURE"

    def takes(self) -> str:
        """How it is written."""
        return "the frame's number and a picture; may be repeated"

    def check(self, name: str, value: Any) -> Any:
        """Pairs of frame and path, in the order of the frames."""
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(pairs, list | tuple) or not all(map(_is_look, pairs)):
            remedy = "give the edited picture of a frame as FRAME=PICTURE, or a mapping of frames to pictures"
            raise InputError("is not possible", name=name, value=value, remedy=remedy)
        if len({frame for frame, _ in pairs}) != len(pairs):
            raise InputError("names a frame twice", name=name, value=value, remedy="give one picture for each")
        return tuple(sorted((int(frame), str(path)) for frame, path in pairs))

    def parse(self, name: str, text: str) -> Any:
        """One of them."""
        frame, _, path = text.partition("=")
        return self.check(name, [(int(frame) if frame.isdecimal() else frame, path)])[0]


def _is_look(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    frame, path = pair
    return _is_whole(frame) and frame >= 0 and isinstance(path, str | Path) and bool(str(path))


@dataclass(frozen=True, slots=True)
class MethodName(Kind):
    """The name of an editing method; Python takes one of the user's own too."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """The names."""
        return ", ".join(METHODS)

    def check(self, name: str, value: Any) -> str | Method:
        """The method, or its name, as it was given."""
        return value if isinstance(value, Method) else find_method(value).name


@dataclass(frozen=True, slots=True)
class EditParams:
    """One edit, as the user asked for it. None means: what the model's directory recommends, else our default.

    Every field's type, range, default and meaning stand at the field, and in a table in docs/options.md.

    Attributes:
        prompt: the instruction, such as "make it a watercolour painting".
        prompts: pairs or a mapping of a frame (int) or of seconds of the video (float) to the instruction that is used
            from there on; `prompt` is used before. A pair may have a third value, the strength from there on, or two of
            them for a linear ramp up to the next entry: (0, "make it night", (0, 1)).
        method: the name of a method, or a `Method` of your own; see docs/methods.md.

    Raises:
        InputError: a value is of the wrong type, unknown or impossible; the sentence names it and the remedy.
    """

    prompt: str
    _: KW_ONLY
    negative_prompt: str = option("", Text(), "What the result should not be")
    anchors: int | tuple[int, ...] | list[int] | None = option(
        None,
        Anchors(),
        "How many anchor frames, or which of the edited ones",
        usual="the model's, else 3",
    )
    anchor_images: Mapping[int, str | Path] | Sequence[tuple[int, str | Path]] = option(
        (),
        AnchorImages(),
        "How an anchor looks when it is edited",
        flag="anchor-image",
        fits="bank",
    )
    style: str | Path | tuple[str | Path, float] | None = option(
        None,
        Scaled("a picture and, after a colon, a scale"),
        "A picture that says how the result looks (IP-Adapter)",
        fits="controls",
    )
    num_inference_steps: int | None = option(
        None, Whole(1, 1000), "Denoising steps", usual="the model's, else 10; 50 if it sees depth", flag="steps"
    )
    strength: float = option(
        1.0,
        Number(0.0, 1.0),
        "How much changes: the share of the steps that are taken, from the source on; 0 = nothing",
    )
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of all noise; the same on any number of workers")
    guidance_scale: float | None = option(None, Number(0.0, 100.0), "Pull of the text", usual="the model's, else 7.5")
    image_guidance_scale: float | None = option(
        None, Number(0.0, 100.0), "Pull of the source picture", usual="the model's, else 1.5; 1 if it sees depth"
    )
    guidance_low: float | None = option(
        None, Number(0.0, 100.0), "Oscillating guidance: the text's pull at every second step", usual="as at all others"
    )
    guidance_high_steps: int = option(
        0, Whole(0, 1000), "Oscillating guidance: how many steps from the first on pull fully"
    )
    sampler: str | None = option(
        None,
        Choice(SAMPLERS),
        "The step rule; for depth models ddim",
        usual="the model's, else euler_ancestral",
    )
    noise: Literal["shared", "per-frame"] = option(
        "shared", Choice(("shared", "per-frame")), "One sample for all frames, or one a frame"
    )
    layers: Literal["all", "decoder"] | None = option(
        None, Choice(LAYER_CHOICES), "Self-attention layers that see other frames", usual="the method's"
    )
    method: str | Method = option("fairy", MethodName(), "The editing method, see docs/methods.md")
    order: Order | None = option(
        None, Choice(ORDERS), "In which order pix2video computes; step-major needs less memory", usual="the method's"
    )
    delta: float | None = option(
        None, Number(0.0, 1e6), "Pull to the previous frame, 0 = off", usual="100", fits="update"
    )
    update_steps: int | None = option(
        None, Whole(0, 1000), "How many steps from the first pull", usual="half of them", fits="update"
    )
    source_prompt: str | None = option(
        None, Text(), "What the video shows, or auto to caption its first frame", fits="depth"
    )
    depth: str | Path | None = option(
        None,
        Name("a folder"),
        "A folder with a depth map for every frame",
        usual="estimated",
        fits="depth",
    )
    control: str | Path | Sequence[str | Path] = option(
        (),
        Sees(),
        "What a ControlNet or adapter sees: canny, depth, or a video; one for each, in their order",
        fits="controls",
    )
    controlnet_conditioning_scale: float | Sequence[float] | None = option(
        None, Scales(), "How strongly they guide, one number for all or one for each", usual="as they were loaded"
    )
    control_guidance_start: float = option(0.0, Number(0.0, 1.0), "The share of the steps at which they begin to guide")
    control_guidance_end: float = option(1.0, Number(0.0, 1.0), "The share of the steps at which they cease to guide")
    mask: str | Path | None = option(
        None, Name("a picture, a folder of pictures, or a video"), "Edit only what is white in it, one for all or each"
    )
    mask_from: str | None = option(
        None, Text(), 'Edit only what is named here, such as "the red car"; needs a segmenter'
    )
    mask_feather: int = option(
        DEFAULT_FEATHER, Whole(0, 1024), "Pixels around the mask's white over which the edit fades out"
    )
    long_side: int | None = option(
        None,
        Whole(8, 16384),
        "Pixels of the long side; a smaller source keeps its size",
        usual="the model's, else 512",
    )
    upscale: bool = option(False, Flag(), "Scale a smaller video up to the long side")
    size: Literal["scaled", "source"] = option(
        "scaled", Choice(("scaled", "source")), "Size of the result; source scales it back"
    )
    start: float | None = option(None, Time(0.0, math.inf), "Edit from here")
    end: float | None = option(None, Time(0.0, math.inf), "Edit up to here")
    deinterlace: bool = option(False, Flag(), "Make whole pictures of the fields of interlaced video first")
    hdr: Literal["refuse", "tonemap"] = option(
        "refuse", Choice(("refuse", "tonemap")), "What becomes of high dynamic range; tonemap makes BT.709 of it"
    )
    strict: bool = option(False, Flag(), "Refuse a video with damaged frames instead of concealing them")
    shots: Literal["off", "auto"] | tuple[int, ...] | list[int] = option(
        "off", Shots(), "Where shots begin, each of which has its own anchors; auto finds cuts (needs PySceneDetect)"
    )
    prompts: Mapping[int | float, str] | Sequence[Scheduled] | None = option(
        None, Prompts(), "From which frame or time on which instruction"
    )
    continue_look: bool = option(
        False, Flag(), "A shot's frames also attend to the last anchor of the one before", fits="bank"
    )
    micro_batch: int | None = option(
        None,
        Whole(1, 1024),
        "Frames denoised at once; changes results by rounding alone",
        usual="by the number of anchors",
    )
    max_pixels: int = option(MAX_PIXELS, Whole(1, 2**31 - 1), "Largest picture that is decoded, width times height")
    keep_details: bool = option(
        False, Flag(), "Take what the autoencoder loses from the source, and all that the edit hardly changes"
    )
    bank_dtype: Literal["float8"] | None = option(
        None, Choice(("float8",)), "Approximate: keep the anchors' keys and values in 8 bit", fits="bank"
    )
    text_picture: Literal["shot", "anchor", "frame"] | None = option(
        None,
        Choice(("shot", "anchor", "frame")),
        "What the instruction is encoded with: a shot's middle anchor, each frame's nearest anchor, each frame itself",
        fits="text-picture",
        usual="the model's",
    )
    anchor_tokens: Literal["target", "both"] | None = option(
        None,
        Choice(("target", "both")),
        "What is read of anchors: their edited half, or their source's tokens too",
        fits="in-context",
        usual="the model's",
    )
    anchor_positions: Literal["shared", "own"] | None = option(
        None,
        Choice(("shared", "own")),
        "Where a transformer reads anchors: at the frame's own places, or as pictures of their own",
        fits="transformer",
        usual="the model's",
    )
    guidance_end: float = option(
        1.0, Number(0.0, 1.0), "Approximate: the share of the steps, from the first on, that are guided", fits="parts"
    )

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError('The instruction is empty; say what to do, for example "make it a watercolour painting".')
        Text().check("prompt", self.prompt)
        check_options(self)
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InputError(f"s must be later than start = {self.start:g} s", name="end", value=self.end)
        if self.mask is not None and self.mask_from is not None:
            raise InputError(
                "goes without a mask", name="mask_from", value=self.mask_from, remedy="leave out one of them"
            )
        if self.mask_from is not None and not self.mask_from.strip():
            raise InputError("names nothing", name="mask_from", value=self.mask_from, remedy="say what is edited")
        if self.mask_feather != DEFAULT_FEATHER and not self.masked:
            raise InputError(
                "belongs to a mask", name="mask_feather", remedy="give one (mask, --mask), or leave it out"
            )
        if self.control_guidance_end <= self.control_guidance_start:
            problem = f"must be more than control_guidance_start = {self.control_guidance_start:g}"
            raise InputError(problem, name="control_guidance_end", value=self.control_guidance_end)
        if self.continue_look and self.anchors in (0, ()):
            raise InputError("continue_look hands on an anchor, but anchors = 0 asks for none; choose at least one.")
        if self.anchor_images and self.anchors in (0, ()):
            raise InputError("anchor_images are of anchors, but anchors = 0 asks for none; leave anchors out.")
        check_fits(self)

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
        if method.anchors != "chosen" or self.anchor_images:
            values.pop("anchors", None)
        if method.after_step is not None:
            steps = self.num_inference_steps or values["num_inference_steps"]
            values |= {"delta": DELTA, "update_steps": (steps + 1) // 2}
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)

    @property
    def schedule(self) -> tuple[Scheduled, ...]:
        """`prompts` as pairs, or three with a strength; empty where there are none."""
        return self.prompts or ()  # type: ignore[return-value]  # made so in __post_init__

    @property
    def masked(self) -> bool:
        """Whether not all of every frame is edited."""
        return self.mask is not None or self.mask_from is not None

    @property
    def looks(self) -> Mapping[int, Path]:
        """The pictures of anchors whose edited look is given, by frame."""
        return {frame: Path(path) for frame, path in dict(self.anchor_images).items()}

    @property
    def seen(self) -> tuple[str, ...]:
        """`control` as words and paths, one for each control."""
        return self.control  # type: ignore[return-value]  # made so by its check

    def to_json(self) -> dict[str, Any]:
        """Every value by name, for a report."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {name: None if plain[name] is None else str(plain[name]) for name in ("depth", "mask")}
        return plain | {"method": str(self.method)} | paths
