"""What guides an edit beside the instruction: which ControlNets and T2I adapters, what they see, how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy.export.graphs import ControlKind
from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.files import user_path
from fairy.runtime.options import Names, Number

if TYPE_CHECKING:
    from fairy.export.model import EditModel

COMPUTED = ("canny", "depth")
"""What is computed of every frame; anything else is a picture, a folder or a video."""
_SCALE = Number(-100.0, 100.0)


@dataclass(frozen=True, slots=True)
class ControlUse:
    """One ControlNet or adapter of an edit.

    Attributes:
        number: which of the model's controls.
        sees: "canny", "depth", or the path of what the user brings.
        scale: how much of what it gives is added.
        channel: from where on a frame, as it is handed on, has what it sees; None = that is computed.
    """

    number: int
    kind: ControlKind
    sees: str
    scale: float
    channel: int | None


@dataclass(frozen=True, slots=True)
class Sees(Names):
    """What each control sees."""

    metavar: str = "canny|depth|VIDEO"

    def takes(self) -> str:
        """How it is written."""
        return "canny, depth, a picture, a folder of pictures or a video"

    def check(self, name: str, value: Any) -> Any:
        """A tuple of words and paths."""
        given = (value,) if isinstance(value, str | Path) else value
        if not isinstance(given, list | tuple) or not all(isinstance(v, str | Path) and str(v) for v in given):
            raise InputError("is not possible", name=name, value=value, remedy=f"give {self.takes()}")
        return tuple(str(v) for v in given)

    def parse(self, name: str, text: str) -> Any:
        """One of them."""
        return self.check(name, text)[0]


@dataclass(frozen=True, slots=True)
class Scales(Names):
    """How strongly each control is used."""

    metavar: str = "FLOAT"

    def takes(self) -> str:
        """How it is written."""
        return "a number, one for all or one for each"

    def check(self, name: str, value: Any) -> Any:
        """A tuple of numbers."""
        given = value if isinstance(value, list | tuple) else (value,)
        return tuple(_SCALE.check(name, each) for each in given)

    def parse(self, name: str, text: str) -> Any:
        """One of them."""
        return _SCALE.parse(name, text)


def control_uses(checkpoint: "EditModel", params: Any) -> tuple[ControlUse, ...]:
    """The controls of an edit that add something, in the model's order.

    Raises:
        InputError: it is not said what they see, or the parameters name other numbers of them than there are.
        MachineError: what computes that is not installed.
    """
    controls, sees = checkpoint.controls, params.seen
    if not controls:
        if sees or any(params.controlnet_conditioning_scale or ()):
            name = "control" if sees else "controlnet_conditioning_scale"
            remedy = "load one (controlnet, --controlnet), or leave it out"
            raise InputError("belongs to a ControlNet or a T2I adapter", name=name, remedy=remedy)
        return ()
    if checkpoint.condition != "image":
        problem = f"does not fit {checkpoint.name}, which sees depth instead of the picture"
        raise InputError(problem, name="controlnet", remedy="leave it out")
    scales = _scales([c.scale for c in controls], params.controlnet_conditioning_scale)
    if not any(scales):
        return ()
    if len(sees) != len(controls):
        problem = f"names {len(sees)} of what {len(controls)} ControlNets or adapters see"
        raise InputError(problem, name="control", remedy="say for each: canny, depth, or a video, in their order")
    uses, channel = [], 4 if params.masked else 3
    for number, (control, seen, scale) in enumerate(zip(controls, sees, scales, strict=True)):
        if scale:
            given = None if seen in COMPUTED else channel
            uses.append(ControlUse(number, control.kind, seen, scale, given))
            channel += 0 if given is None else 3
            _check_computed(seen, checkpoint)
    return tuple(uses)


def style_of(checkpoint: "EditModel", params: Any) -> tuple[Path, float] | None:
    """The picture of an edit that is a prompt, and how much of it; None where it adds nothing. Raises InputError."""
    path, scale = params.style or ("", 0.0)
    if not path:
        return None
    if checkpoint.ip_adapter is None:
        remedy = "load one (ip_adapter, --ip-adapter), or leave it out"
        raise InputError("belongs to an IP-Adapter", name="style", value=path, remedy=remedy)
    if checkpoint.condition != "image":
        problem = f"does not fit {checkpoint.name}, which sees depth instead of the picture"
        raise InputError(problem, name="ip_adapter", remedy="leave it out")
    file = user_path(path)
    if not file.is_file():
        raise InputError("does not exist", name="style", value=path, remedy="check the path")
    return (file, scale) if scale else None


def check_segmenter(mask_from: str | None, *, known: bool) -> None:
    """Refuse to look for what is named where there is nobody who finds it. Raises InputError."""
    if mask_from is not None and not known:
        remedy = "name a CLIPSeg (segmenter, --segmenter), such as CIDAS/clipseg-rd64-refined, or give a mask"
        raise InputError("needs a segmenter", name="mask_from", value=mask_from, remedy=remedy)


def kinds_of(uses: Sequence[ControlUse]) -> tuple[ControlKind, ...]:
    """The kinds of control that an edit uses, each once."""
    return tuple(dict.fromkeys(use.kind for use in uses))


def _scales(usual: list[float], asked: Sequence[float] | None) -> list[float]:
    if asked is None:
        return usual
    if len(asked) not in (1, len(usual)):
        problem, remedy = f"has {len(asked)} numbers for {len(usual)} controls", "give one for all, or one for each"
        raise InputError(problem, name="controlnet_conditioning_scale", remedy=remedy)
    return list(asked) * (len(usual) if len(asked) == 1 else 1)


def _check_computed(seen: str, checkpoint: "EditModel") -> None:
    if seen == "canny" and find_spec("cv2") is None:
        raise MachineError("control = canny needs OpenCV; run: pip install 'fairy-runtime[controls]'")
    if seen == "depth" and checkpoint.depth_estimator is None:
        remedy = "name a DPT (depth_estimator, --depth-estimator), or give the video of depths itself"
        raise InputError("needs a depth estimator", name="control", value="depth", remedy=remedy)


__all__ = ["COMPUTED", "ControlUse", "Scales", "Sees", "check_segmenter", "control_uses", "kinds_of", "style_of"]
