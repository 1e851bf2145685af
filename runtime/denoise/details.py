"""What an autoencoder loses comes back from the source, and what an edit hardly changes stays as it was.

Three pictures of one frame are compared: the source s, the edit e, and r, the source through the autoencoder, which has
lost what the edit has lost. Where e hardly differs from r nothing was meant to change: the frame is s. Elsewhere the
source's details s - r are added to the edit, as much of them as the edit shows of the details that r still has: all in
a sepia picture, some at night, the opposite in a negative, none where a thing is gone or another in its place. That
share is the slope of a regression of e's details on r's around each place, as in a guided filter (He, Sun & Tang 2010).

Every step is a smooth function of its surroundings, so that what is steady from frame to frame stays so.
"""

import torch.nn.functional as F
from torch import Tensor

SETTLED, CHANGED = 8.0, 24.0
"""Levels (of 255) by which a place differs on average from which on it begins to count, and counts, as changed."""
FINE = 2  # pixels around each beyond which a detail is none
CELL = 4  # pixels; what is learned of a place is kept for squares of these
NEAR, FAR, AROUND = 2, 8, 1  # cells around each: of the share, of what it falls back to, of a difference
GRAIN = 4.0  # squared levels; details weaker than this tell little of their share
MOST = 1.0  # of the share, either way


def kept_details(source: Tensor, edited: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    """What to add to a source frame, and which share of its finest details goes with it.

    Args:
        source, edited, restored: float32 [frames, 3, height, width] in levels of 0 to 255: the frame, its edit, and
            itself through the autoencoder.

    Returns:
        The change [frames, 3, height, width] in levels, which is 0 where edit and restored frame are alike, and the
        share of details [frames, 3, height, width] that the edit lets through, 1 where it changes nothing.
    """
    size = source.shape[-2:]
    fine_edited, fine_restored = (x - _mean(x, FINE) for x in (edited, restored))
    covariance, variance = _cells(fine_edited * fine_restored), _cells(fine_restored.square())
    far = (_smooth(covariance, FAR) + GRAIN) / (_smooth(variance, FAR) + GRAIN)
    near = (_smooth(covariance, NEAR) + GRAIN * far) / (_smooth(variance, NEAR) + GRAIN)
    share = _spread(near.clamp(-MOST, MOST), size)
    gate = _spread(_gate(edited, restored), size)
    change = gate * (edited + share * (source - restored) - source)
    return change, 1.0 - gate * (1.0 - share)


def _gate(edited: Tensor, restored: Tensor) -> Tensor:
    """How much a place counts as changed, 0 to 1: [frames, 1, cells down, cells across]."""
    difference = (edited - restored).abs().amax(dim=1, keepdim=True)
    ramp = ((_smooth(_cells(difference), AROUND) - SETTLED) / (CHANGED - SETTLED)).clamp(0.0, 1.0)
    return ramp.square() * (3.0 - 2.0 * ramp)


def _cells(x: Tensor) -> Tensor:
    """The mean of each square of CELL pixels; those at the right and the bottom may be cut."""
    return F.avg_pool2d(x, CELL, ceil_mode=True, count_include_pad=False)


def _spread(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cells to pixels, bilinear."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _smooth(x: Tensor, reach: int) -> Tensor:
    """A mean that fades out, twice ``reach`` around each place."""
    return _mean(_mean(x, reach), reach)


def _mean(x: Tensor, reach: int) -> Tensor:
    """The mean of the square of so many places around each, of those that there are."""
    down = F.avg_pool2d(x, (2 * reach + 1, 1), stride=1, padding=(reach, 0), count_include_pad=False)
    return F.avg_pool2d(down, (1, 2 * reach + 1), stride=1, padding=(0, reach), count_include_pad=False)


__all__ = ["kept_details"]
