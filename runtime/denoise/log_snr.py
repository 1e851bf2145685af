"""The cosine schedule in continuous time: a noise level for every time from 0 to 1, none of them trained apart.

    z_t = α·x + σ·ε,  α² = sigmoid(λ),  σ² = sigmoid(−λ),  λ(t) = −2·log tan(a·t + b)

with a and b so that λ falls from its largest value at t = 0 to its smallest at t = 1 (Salimans & Ho, arXiv 2202.00512,
appendix; Ho et al., Imagen Video, arXiv 2210.02303). A checkpoint asks for it by a scheduler configuration:

    {"_class_name": "CosineLogSNR", "logsnr_max": 20, "logsnr_min": -20, "prediction_type": "v_prediction"}
"""

import math
from collections.abc import Mapping
from typing import Any

from fairy.kernels.errors import InputError

CLASS_NAME = "CosineLogSNR"
TIME_SCALE = 1000.0  # what networks are told is the time times this, as with a thousand trained time steps
_KNOWN = {"_class_name", "logsnr_max", "logsnr_min", "prediction_type", "clip_sample", "clip_sample_range", "gamma"}
_KNOWN |= {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"}


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler configuration asks for this schedule."""
    return config.get("_class_name") == CLASS_NAME


def log_snr(t: float, low: float = -20.0, high: float = 20.0) -> float:
    """λ at a time from 0 (`high`, next to no noise) to 1 (`low`, next to nothing else)."""
    b = math.atan(math.exp(-high / 2))
    a = math.atan(math.exp(-low / 2)) - b
    return -2 * math.log(math.tan(a * t + b))


def alpha_bar(log_snr: float) -> float:
    """α², the signal's share of the variance."""
    return 1 / (1 + math.exp(-log_snr))


def alphas_of(config: Mapping[str, Any], steps: int) -> tuple[tuple[float, float], ...]:
    """α² at every step's time and at the next one's; the last step ends without noise. Raises InputError."""
    unknown = sorted(set(config) - _KNOWN)
    if unknown:
        raise InputError(f"A {CLASS_NAME} has no {unknown[0]!r}; it knows {', '.join(sorted(_KNOWN))}.")
    low, high = float(config.get("logsnr_min", -20)), float(config.get("logsnr_max", 20))
    if not low < high:
        raise InputError(f"A {CLASS_NAME} needs logsnr_min below logsnr_max, not {low:g} and {high:g}.")
    levels = [alpha_bar(log_snr(t, low, high)) for t in times_of(steps)]
    return tuple(zip(levels, [*levels[1:], 1.0], strict=True))


def times_of(steps: int) -> list[float]:
    """The times of so many even steps: 1, …, 1 / steps."""
    return [1 - i / steps for i in range(steps)]
