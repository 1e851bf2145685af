"""Whether the options of an edit fit its method and, once that is loaded, its model."""

from typing import Any

from fairy.export.checkpoint import Checkpoint
from fairy.kernels.errors import InputError
from fairy.runtime.methods import METHODS, find_method
from fairy.runtime.methods.method import Method, Update
from fairy.runtime.methods.pix2video import update_weight

_HOOK_OPTIONS = ("delta", "update_steps", "paper_scale")
_DEPTH_OPTIONS = ("source_prompt", "depth")


def check_options(params: Any) -> None:
    """Refuse options of an `EditParams` that its method knows nothing of. Raises InputError naming both."""
    method = find_method(params.method)
    if params.anchors not in (None, 0, ()) and method.anchors != "chosen":
        who = "the first frame is its anchor" if method.anchors == "first" else "it has none"
        raise InputError(f"anchors = {params.anchors!r} does not fit the method {method}: {who}; leave it out.")
    if params.anchors in (0, ()) and method.anchors == "first":
        raise InputError(f"anchors = 0 does not fit the method {method}: the first frame is its anchor; leave it out.")
    if params.continue_look and method.anchors != "chosen":
        raise InputError(f"continue_look does not fit the method {method}; only fairy hands an anchor on.")
    if params.bank_dtype is not None and method.anchors != "chosen":
        raise InputError(f"bank_dtype does not fit the method {method}, which has no bank of anchors; leave it out.")
    if params.guidance_end < 1.0 and not runs_in_parts(method):
        raise InputError(f"guidance_end does not fit the method {method}, which guides every step; leave it out.")
    if params.order is not None and params.order not in method.orders:
        raise InputError(f"order = {params.order!r} does not fit the method {method}; choose {_either(method.orders)}.")
    given = [name for name in _HOOK_OPTIONS if getattr(params, name) not in (None, False)]
    if given and method.after_step is None:
        raise InputError(f"{given[0]} does not fit the method {method}, which has no guided update; leave it out.")


def check_model(checkpoint: Checkpoint, params: Any) -> None:
    """Refuse options that a model knows nothing of, and a method that it cannot serve. Raises InputError."""
    method = find_method(params.method)
    if checkpoint.condition == "image":
        given = [name for name in _DEPTH_OPTIONS if getattr(params, name) is not None]
        if given:
            raise InputError(
                f"{given[0]} is for depth-conditioned models, but {checkpoint.name} sees the picture; leave it out."
            )
        return
    if runs_in_parts(method):
        able = [name for name, other in METHODS.items() if not runs_in_parts(other)]
        raise InputError(
            f"{checkpoint.name} sees depth instead of the picture, which the method {method} does not serve; "
            f"choose {_either(able)}."
        )
    if params.image_guidance_scale not in (None, 1.0):
        raise InputError(
            f"image_guidance_scale = {params.image_guidance_scale:g} does not fit {checkpoint.name}, which sees depth "
            "instead of the picture; leave it out."
        )
    if params.sampler not in (None, "ddim"):
        raise InputError(
            f"sampler = {params.sampler!r} does not fit {checkpoint.name}, which inverts frames by ddim; leave it out."
        )


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
        raise InputError(
            f"resume does not fit the method {params.method}, whose frames are at work together until they are done; "
            "leave it out."
        )


def runs_in_parts(method: Method) -> bool:
    """Whether parts of a video are independent of each other, but for anchors that were edited before."""
    return method.orders[0] == "parallel"


def update_of(params: Any, numel: int) -> Update:
    """What a method's hook is told by resolved parameters; `numel` is that of one latent of the job."""
    return Update(update_weight(params.delta or 0.0, numel if params.paper_scale else None), params.update_steps or 0)


def _either(names: Any) -> str:
    return " or ".join(names)
