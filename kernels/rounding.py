"""Whether two ways of computing the same agree."""

import torch
from torch import Tensor


def agree(found: object, expected: object) -> bool:
    """Whether two results differ by rounding only; what is no tensor is not compared.

    Where the expected one overflowed, the other has to do so at the same places.
    """
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return True
    there = torch.isfinite(expected)
    if found.shape != expected.shape or not torch.equal(there, torch.isfinite(found)):
        return False
    wanted = torch.where(there, expected.double(), 0.0)
    error = (torch.where(there, found.double(), 0.0) - wanted).square().mean().sqrt()
    return bool(error <= 4 * torch.finfo(found.dtype).eps * wanted.square().mean().sqrt())
