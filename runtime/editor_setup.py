"""What an editor is made with: the model, where and in which precision it runs, and who computes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy.engines.backend_names import BACKENDS
from fairy.kernels.errors import InputError
from fairy.runtime.files import user_path
from fairy.runtime.options import Choice, Kind, Name, Names, Number, Scaled, Text, Whole, check_options, option

if TYPE_CHECKING:
    from fairy.runtime.editor import Editor

PRECISIONS = ("float32", "float16", "bfloat16")
MAX_WORKERS = 64
_DEVICE = re.compile(r"auto|(cpu|cuda)(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Device(Kind):
    """Where something runs."""

    metavar: str = "TEXT"

    def takes(self) -> str:
        """The names."""
        return "auto, cpu, cuda or cuda:N"

    def check(self, name: str, value: Any) -> str:
        """A name of that form; whether the machine has it is asked later."""
        if isinstance(value, str) and _DEVICE.fullmatch(value):
            return value
        raise InputError("is not known", name=name, value=value, remedy=f"choose {self.takes()}")


@dataclass(frozen=True, slots=True)
class Loras(Names):
    """Files of LoRA, and how much of each."""

    metavar: str = "FILE[:SCALE]"

    def takes(self) -> str:
        """How it is written."""
        return "a .safetensors file and, after a colon, a scale"

    def check(self, name: str, value: Any) -> Any:
        """Pairs of path and scale."""
        given = (value,) if isinstance(value, str | Path) else value
        if not isinstance(given, list | tuple):
            raise InputError("is not possible", name=name, value=value, remedy=f"give {self.takes()}")
        return tuple(Scaled(self.takes()).check(name, each) for each in given)

    def parse(self, name: str, text: str) -> Any:
        """One of them."""
        return Scaled(self.takes()).check(name, text)


@dataclass(frozen=True, slots=True)
class Controls(Loras):
    """Folders or hub ids of controls, and how strongly each is used."""

    metavar: str = "DIR|ID[:SCALE]"

    def takes(self) -> str:
        """How it is written."""
        return "a folder in diffusers' format or a hub id and, after a colon, a scale"


@dataclass(frozen=True, slots=True)
class EditorSetup:
    """The arguments of `Editor.from_pretrained`, checked as far as that is possible without a model or a GPU.

    Raises:
        InputError: a value is of the wrong type, unknown or impossible.
    """

    model: str | Path | None = option(
        None,
        Name("a folder in diffusers' format, a hub id or a .safetensors file", "TEXT"),
        "The model",
        usual="the embedded model",
    )
    config: str | Path | None = option(
        None, Name("a folder in diffusers' format"), "Of a model in one file: where its configuration is"
    )
    variant: str | None = option(
        None, Text(), "Which of the model's weights, e.g. fp16", usual="those without one, else what is there"
    )
    device: str = option("auto", Device(), "Where it runs; auto is CUDA where there is one")
    dtype: str = option("auto", Choice(("auto", *PRECISIONS)), "Precision; auto is 16 bit on CUDA, else float32")
    backend: str = option("auto", Choice(("auto", *BACKENDS)), "What computes; auto is the best that is ready")
    store: str | Path | None = option(None, Name("a folder"), "The store of engines", usual="$FAIRY_STORE, or a cache")
    without: tuple[str, ...] = option(
        (), Names(), "A step of the backends compiled and cuda-graphs to leave out, see docs/speed.md"
    )
    bank: str = option(
        "device", Choice(("device", "host")), "Where the anchors' keys and values are kept; host is for small cards"
    )
    decoder: str | Path | None = option(
        None,
        Name("tiny (the model's own), a folder or a hub id", "TEXT"),
        "Approximate: decode by an AutoencoderTiny",
    )
    lora: Sequence[str | tuple[str | Path, float]] = option(
        (), Loras(), "Add a LoRA to the model, 1 = as it was trained; may be repeated"
    )
    controlnet: Sequence[str | tuple[str | Path, float]] = option(
        (), Controls(), "A ControlNet or T2I adapter that guides edits, see --control; may be repeated"
    )
    segmenter: str | Path | None = option(
        None, Name("a folder or a hub id of a CLIPSeg", "TEXT"), "For --mask-from, which finds what is named"
    )
    ip_adapter: str | Path | None = option(
        None,
        Name("a .safetensors file, or its folder", "PATH"),
        "An IP-Adapter, for --style; its image_encoder lies beside it",
    )
    depth_estimator: str | Path | None = option(
        None, Name("a folder or a hub id of a DPT", "TEXT"), "For --control depth", usual="the model's own"
    )
    linears: str | None = option(
        None, Choice(("float8",)), "Approximate: compute the UNet's large linear layers in 8 bit"
    )
    gpus: int = option(1, Whole(1, MAX_WORKERS), "How many GPUs share the job")
    workers: int = option(1, Whole(1, MAX_WORKERS), "How many processes share the job on the CPU")
    worker_timeout_s: float = option(
        600.0,
        Number(0, math.inf, above=True),
        "Seconds that a worker may take for one denoising step, or to load the model, before it is given up",
        flag="worker-timeout",
    )
    threads: int = option(1, Whole(1, 1024), "CPU threads of each process; other numbers round differently")

    def __post_init__(self) -> None:
        check_options(self)

    def absolute(self) -> "EditorSetup":
        """The same with folders and a store that another process finds too, whatever its folder is."""
        model, decoder, config = (_absolute(name) for name in (self.model, self.decoder, self.config))
        store = None if self.store is None else user_path(self.store)
        lora = tuple((str(user_path(path)), scale) for path, scale in self.loras)
        controlnet = tuple((str(_absolute(name)), scale) for name, scale in self.controls)
        estimator = _absolute(self.depth_estimator)
        more = {"controlnet": controlnet, "depth_estimator": estimator, "ip_adapter": _absolute(self.ip_adapter)}
        more |= {"segmenter": _absolute(self.segmenter)}
        return replace(self, model=model, decoder=decoder, store=store, lora=lora, config=config, **more)  # type: ignore[arg-type]

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """`lora` as pairs of path and scale."""
        return self.lora  # type: ignore[return-value]  # made so by its check

    @property
    def controls(self) -> tuple[tuple[str, float], ...]:
        """`controlnet` as pairs of folder or hub id and scale."""
        return self.controlnet  # type: ignore[return-value]  # made so by its check

    @property
    def model_name(self) -> str:
        """What the model is called where no path may be told: the last part of its folder or hub id."""
        return "fairy-embedded" if self.model is None else Path(str(self.model)).name

    def open(self) -> "Editor":
        """Load the model. Raises InputError as `Editor.from_pretrained` does."""
        from fairy.runtime.editor import Editor

        return Editor.from_pretrained(**{field.name: getattr(self, field.name) for field in fields(self)})


def _absolute(name: str | Path | None) -> str | None:
    """The path of a folder or a file; a hub id, or a decoder's name, stays as it is."""
    if name is None:
        return None
    if name == "tiny" or not user_path(name).exists():
        return str(name)
    return str(user_path(name))
