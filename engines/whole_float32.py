"""float32 that is float32: cuDNN's convolutions otherwise round their inputs to TF32, which has float16's mantissa."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def whole_float32(precision: str) -> Iterator[None]:
    """Within it convolutions of an engine of `precision` "float32" are not rounded to TF32; others are as they were.

    Whoever set torch's newer precisions of single operators, which cannot be read this way, is left alone.
    """
    try:
        before = torch.backends.cudnn.allow_tf32 if precision == "float32" else False
    except RuntimeError:
        before = False
    if not before:
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
