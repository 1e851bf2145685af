"""What is asked of a generator, and of the stages that serve any video: frozen, validated values."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from fairy.engines.backend_names import BACKENDS
from fairy.kernels.errors import InputError
from fairy.runtime.editor_setup import MAX_WORKERS, PRECISIONS, Device
from fairy.runtime.generation.cascade import GENERATOR_SAMPLERS
from fairy.runtime.options import Choice, Flag, Kind, Name, Number, Rate, Text, Time, Whole, check_options, option
from fairy.runtime.plan.file_request import DEFAULT_CRF
from fairy.runtime.plan.params import Shots
from fairy.runtime.video import MAX_PIXELS

LONGEST = 100_000  # frames
_SLOWEST = Fraction(1, 1000)


class _Told:
    """Values as plain ones."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Every value by name, for a report."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # dataclasses all
        return {n: str(v) if isinstance(v, Path | Fraction) else v for n, v in plain.items() if not n.startswith("_")}


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """Width and height in pixels, or one number for both."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """How it is written."""
        return "a number (256), or WIDTHxHEIGHT (576x320)"

    def check(self, name: str, value: Any) -> int | tuple[int, int]:
        """One number or a pair."""
        side = Whole(8, 16384)
        if isinstance(value, list | tuple) and len(value) == 2:
            return side.check(name, value[0]), side.check(name, value[1])
        return side.check(name, value)

    def parse(self, name: str, text: str) -> int | tuple[int, int]:
        """A number, or two with an x between."""
        parts = text.lower().replace("×", "x").split("x")
        if len(parts) > 2:
            raise InputError("is not a size", name=name, value=text, remedy=f"give {self.takes()}")
        sides = [Whole(8, 16384).parse(name, part) for part in parts]
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


@dataclass(frozen=True, slots=True)
class GenerateParams(_Told):
    """One clip, as the user asked for it. None means: what the generator's cascade says.

    Attributes:
        prompt: what is to be seen, such as "a red ball rolls to the left".

    Raises:
        InputError: a value is of the wrong type, unknown or impossible; the sentence names it and the remedy.
    """

    prompt: str
    _: KW_ONLY
    negative_prompt: str = option("", Text(), "What is not to be seen")
    num_frames: int | None = option(
        None, Whole(1, LONGEST), "Frames of the result", usual="the cascade's: 76 of the embedded one", flag="frames"
    )
    fps: Fraction | None = option(
        None, Rate(Fraction(1), 240), "Frames a second of the result", usual="the cascade's: 20 of the embedded one"
    )
    size: int | tuple[int, int] | None = option(
        None, Size(), "Pixels of the result: a size that the stages make", usual="the largest"
    )
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of all noise; the same on any number of workers")
    num_inference_steps: int | None = option(
        None, Whole(1, 1000), "Denoising steps of the base stage", usual="the cascade's", flag="steps"
    )
    guidance_scale: float | None = option(None, Number(0.0, 100.0), "Pull of the text", usual="the cascade's")
    guidance_low: float | None = option(
        None, Number(0.0, 100.0), "Oscillating guidance: the text's pull at every second step", usual="the cascade's"
    )
    guidance_high_steps: int | None = option(
        None,
        Whole(0, 1000),
        "Oscillating guidance: how many steps from the first on pull fully",
        usual="the cascade's",
    )
    sampler: str | None = option(
        None, Choice(GENERATOR_SAMPLERS), "The step rule of the base stage", usual="the cascade's"
    )
    stages: str | None = option(
        None, Text(), "The last stage to run, such as base: an early look", usual="all that size and rate need"
    )
    image: str | Path | None = option(None, Name("a picture"), "The first frame: a .png or .jpg file")

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError('The prompt is empty; say what to show, for example "a red ball rolls to the left".')
        Text().check("prompt", self.prompt)
        check_options(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoParams(_Told):
    """Which part of a video is taken, and how it is read."""

    start: float | None = option(None, Time(0.0, math.inf), "Take the video from here")
    end: float | None = option(None, Time(0.0, math.inf), "Take the video up to here")
    source_fps: Fraction | None = option(None, Rate(_SLOWEST, 1000), "Frames a second of a folder of images")
    deinterlace: bool = option(False, Flag(), "Make whole pictures of the fields of interlaced video first")
    hdr: Literal["refuse", "tonemap"] = option(
        "refuse", Choice(("refuse", "tonemap")), "What becomes of high dynamic range; tonemap makes BT.709 of it"
    )
    strict: bool = option(False, Flag(), "Refuse a video with damaged frames instead of concealing them")
    max_pixels: int = option(MAX_PIXELS, Whole(1, 2**31 - 1), "Largest picture that is decoded, width times height")

    def __post_init__(self) -> None:
        check_options(self)
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InputError(f"s must be later than start = {self.start:g} s", name="end", value=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolateParams(VideoParams):
    """How many frames are made between a video's own: `times` for each, or as many as `fps` needs."""

    times: int | None = option(None, Whole(2, 16), "Frames for each of the video's", usual="2")
    fps: Fraction | None = option(None, Rate(_SLOWEST, 1000), "Frames a second of the result, instead of times")
    shots: Literal["off", "auto"] | tuple[int, ...] | list[int] | None = option(
        None, Shots(), "Where shots begin; nothing is made across a cut", usual="auto where PySceneDetect is installed"
    )

    def __post_init__(self) -> None:
        VideoParams.__post_init__(self)
        if self.times is not None and self.fps is not None:
            raise InputError("is given beside times; choose one of them", name="fps", value=float(self.fps))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleParams(VideoParams):
    """How many times larger a video becomes."""

    times: int = option(2, Whole(2, 16), "How many times larger: 2 or 4 with the embedded stages")
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of the noise that the stages begin with")
    shots: Literal["off", "auto"] | tuple[int, ...] | list[int] | None = option(
        None, Shots(), "Where shots begin; none sees another", usual="auto where PySceneDetect is installed"
    )


@dataclass(frozen=True, slots=True)
class StoryParams(_Told):
    """One story, as the user asked for it. None means: what the model says.

    Attributes:
        scenes: prompts and how long each lasts, in frames (int) or seconds (float).

    Raises:
        InputError: a value is of the wrong type, unknown or impossible; the sentence names it and the remedy.
    """

    scenes: Sequence[tuple[str, int | float]]
    _: KW_ONLY
    negative_prompt: str = option("", Text(), "What is not to be seen")
    seed: int = option(0, Whole(0, 2**63 - 1), "Seed of all noise; the same on any number of workers")
    num_inference_steps: int | None = option(
        None, Whole(1, 1000), "Steps in which a stretch of codes is filled in", usual="the model's", flag="steps"
    )
    guidance_scale: float | None = option(None, Number(0.0, 100.0), "Pull of the text", usual="the model's")
    temperature: float | None = option(
        None, Number(0.0, 1000.0), "How freely it is chosen which codes stay", usual="the model's"
    )
    image: str | Path | None = option(None, Name("a picture"), "The first frame: a .png or .jpg file")
    video: str | Path | None = option(None, Name("a video file"), "A video whose continuation is made")

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.scenes, str) or not isinstance(self.scenes, Sequence) or not self.scenes:
            raise InputError("The story has no scenes; give pairs of a prompt and its duration.")
        object.__setattr__(self, "scenes", tuple(map(_scene, self.scenes)))
        if self.image is not None and self.video is not None:
            raise InputError("is given beside image; choose one of them", name="video", value=str(self.video))


def _scene(pair: Any) -> tuple[str, int | float]:
    """A prompt and its duration. Raises InputError."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"The scene {pair!r} is no prompt with a duration; write both.")
    prompt, duration = pair
    if not prompt.strip():
        raise InputError('A scene has an empty prompt; say what to show, for example "it starts to snow".')
    kind: Kind = Number(0.0, LONGEST, above=True) if isinstance(duration, float) else Whole(1, LONGEST)
    return Text().check("scenes", prompt), kind.check("duration", duration)


@dataclass(frozen=True, slots=True)
class GeneratorSetup:
    """What a generator, an interpolator or an upscaler is made with.

    Raises:
        InputError: a value is of the wrong type, unknown or impossible.
    """

    model: str | Path | None = option(
        None,
        Name(
            "a generator's folder, or one of diffusers' TextToVideoSD or AnimateDiff; for a story a storyteller's",
            "TEXT",
        ),
        "The generator",
        usual="the embedded one; none for a story",
    )
    motion_adapter: str | Path | None = option(
        None, Name("a folder"), "AnimateDiff's motion adapter for a Stable Diffusion 1.5 checkpoint"
    )
    device: str = option("auto", Device(), "Where it runs; auto is CUDA where there is one")
    dtype: str = option("auto", Choice(("auto", *PRECISIONS)), "Precision; auto is float16 on CUDA, else float32")
    backend: str = option("auto", Choice(("auto", *BACKENDS)), "What computes; auto is the best that is ready")
    store: str | Path | None = option(None, Name("a folder"), "The store of engines", usual="$FAIRY_STORE, or a cache")
    offload: bool = option(False, Flag(), "Keep one stage's network on the device at a time, for small cards")
    gpus: int = option(1, Whole(1, MAX_WORKERS), "How many GPUs share the job")
    workers: int = option(1, Whole(1, MAX_WORKERS), "How many processes share the job on the CPU")
    worker_timeout_s: float = option(
        600.0,
        Number(0, math.inf, above=True),
        "Seconds that a worker may take for a window before it is given up",
        flag="worker-timeout",
    )
    threads: int = option(1, Whole(1, 1024), "CPU threads of each process; other numbers round differently")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What is written beside the video itself."""

    crf: int = option(DEFAULT_CRF, Whole(0, 51), "Quality of written videos, 0 (best) to 51")
    preview: Path | None = option(
        None, Name("a .png or .jpg file"), "Write the base stage's frames as one picture before the rest"
    )
    keep_stage: Path | None = option(
        None, Name("a .safetensors file"), "Write the frames of the last stage that ran, for --from"
    )
    from_stage: Path | None = option(
        None,
        Name("a .safetensors file"),
        "Go on from frames that --keep-stage wrote, instead of computing them",
        flag="from",
    )
    report: Path | None = option(None, Name("a .json file"), "Write a JSON report of the job")
