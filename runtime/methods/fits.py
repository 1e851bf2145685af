"""Whether the options of an edit fit its method and, once that is loaded, its model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fairy.kernels.errors import InputError
from fairy.runtime.methods import METHODS, find_method
from fairy.runtime.methods.method import Method, Update
from fairy.runtime.methods.pix2video import update_weight
from fairy.runtime.options import FITS, Option, options_of

if TYPE_CHECKING:
    from fairy.export.model import EditModel

_LEAVE_OUT = "leave it out"
_FITS: dict[str, tuple[Callable[[Method], bool], str]] = {
    "bank": (lambda method: method.anchors == "chosen", "which has no bank of anchors"),
    "parts": (lambda method: runs_in_parts(method), "which guides every step"),
    "update": (lambda method: method.after_step is not None, "which has no guided update"),
}
"""What `Option.fits` says of methods: which know the option, and why another does not."""
_OF_FAMILIES = ("text-picture", "in-context", "transformer")


def check_fits(params: Any) -> None:
    """Refuse options of an `EditParams` that its method knows nothing of. Raises InputError naming both."""
    method = find_method(params.method)
    if method.anchors != "chosen" and params.anchors is not None:
        none = params.anchors in (0, ())
        who = "the first frame is its anchor" if method.anchors == "first" else "it has none"
        if not none or method.anchors == "first":
            raise InputError(
                f"does not fit the method {method}: {who}", name="anchors", value=params.anchors, remedy=_LEAVE_OUT
            )
    for name, option in options_of(type(params)).items():
        if option.fits in _FITS and _is_asked_for(option, getattr(params, name)):
            fits, why = _FITS[option.fits]
            if not fits(method):
                raise InputError(f"does not fit the method {method}, {why}", name=name, remedy=_LEAVE_OUT)
    if params.order is not None and params.order not in method.orders:
        remedy = f"choose {_either(method.orders)}"
        raise InputError(f"does not fit the method {method}", name="order", value=params.order, remedy=remedy)


def _is_asked_for(option: Option, value: Any) -> bool:
    """Whether a value is more than the default; 0 of an update that nobody has changes nothing either."""
    return value != option.default and not (option.default is None and value == 0)


def check_model(checkpoint: "EditModel", params: Any) -> None:
    """Refuse options that a model knows nothing of, and a method that it cannot serve. Raises InputError."""
    method = find_method(params.method)
    _check_family(checkpoint, params)
    if checkpoint.condition == "image":
        for name, option in options_of(type(params)).items():
            if option.fits == "depth" and getattr(params, name) is not None:
                problem = f"is for depth-conditioned models, but {checkpoint.name} sees the picture"
                raise InputError(problem, name=name, remedy=_LEAVE_OUT)
        return
    if runs_in_parts(method):
        able = [name for name, other in METHODS.items() if not runs_in_parts(other)]
        raise InputError(
            f"{checkpoint.name} sees depth instead of the picture, which the method {method} does not serve; "
            f"choose {_either(able)}."
        )
    if params.image_guidance_scale not in (None, 1.0):
        problem = f"does not fit {checkpoint.name}, which sees depth instead of the picture"
        scale = params.image_guidance_scale
        raise InputError(problem, name="image_guidance_scale", value=scale, remedy=_LEAVE_OUT)
    if params.sampler not in (None, "ddim"):
        problem = f"does not fit {checkpoint.name}, which inverts frames by ddim"
        raise InputError(problem, name="sampler", value=params.sampler, remedy=_LEAVE_OUT)


def _check_family(checkpoint: "EditModel", params: Any) -> None:
    """Refuse options that only other families of models know. Raises InputError naming both."""
    for name, option in options_of(type(params)).items():
        value = getattr(params, name)
        unknown = option.fits in _OF_FAMILIES and value is not None and name not in checkpoint.usual
        if unknown or (option.fits == "controls" and value != option.default and not checkpoint.takes_controls):
            problem = f"is for {FITS[option.fits or '']}, which {checkpoint.name} is not"
            raise InputError(problem, name=name, value=value, remedy=_LEAVE_OUT)
    pulls = {1: ("guidance_scale", "image_guidance_scale"), 2: ("image_guidance_scale",)}
    for name in pulls.get(checkpoint.branches, ()):
        value = getattr(params, name)
        if value not in (None, 1.0):
            why = "whose guidance was distilled away" if checkpoint.branches == 1 else "which always sees the picture"
            raise InputError(f"does not fit {checkpoint.name}, {why}", name=name, value=value, remedy=_LEAVE_OUT)


def check_processes(params: Any, processes: int) -> None:
    """Refuse to share a job whose frames wait for each other. Raises InputError."""
    method = find_method(params.method)
    if processes > 1 and not runs_in_parts(method):
        raise InputError(
            f"{processes} processes cannot share the method {method}, whose frames wait for each other; "
            "leave out --gpus and --workers (gpus=1, workers=1)."
        )


def check_resume(params: Any, resume: bool) -> None:
    """Refuse to go on with a job that keeps nothing to go on from. Raises InputError."""
    if resume and not runs_in_parts(find_method(params.method)):
        problem = f"does not fit the method {params.method}, whose frames are at work together until they are done"
        raise InputError(problem, name="resume", remedy=_LEAVE_OUT)


def runs_in_parts(method: Method) -> bool:
    """Whether parts of a video are independent of each other, but for anchors that were edited before."""
    return method.orders[0] == "parallel"


def update_of(params: Any) -> Update:
    """What a method's hook is told by resolved parameters."""
    return Update(update_weight(params.delta or 0.0), params.update_steps or 0)


def _either(names: Any) -> str:
    return " or ".join(names)
