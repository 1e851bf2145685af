"""Editing methods as data: who reads whose keys and values, in which layers and order, and what follows a step."""

from fairy.kernels.errors import InputError
from fairy.runtime.methods.fairy import FAIRY
from fairy.runtime.methods.method import Method
from fairy.runtime.methods.per_frame import PER_FRAME
from fairy.runtime.methods.pix2video import PIX2VIDEO

METHODS: dict[str, Method] = {method.name: method for method in (FAIRY, PIX2VIDEO, PER_FRAME)}


def find_method(method: str | Method) -> Method:
    """The method of that name, or the one that was given. Raises InputError where there is none of that name."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise InputError("is not known", name="method", value=method, remedy=f"choose one of {', '.join(METHODS)}")
    return METHODS[method]


__all__ = ["FAIRY", "METHODS", "PER_FRAME", "PIX2VIDEO", "Method", "find_method"]
