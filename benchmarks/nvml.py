"""What NVML says of a GPU: clocks, throttling, energy. Without the package nvidia-ml-py it says nothing.

It is asked between measurements, never within one: a question takes up to a millisecond of the host's time.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import torch

Answer = TypeVar("Answer")

# Bits of NVML's clock event reasons that make a measurement invalid.
_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


def throttle_reasons(device: torch.device) -> set[str]:
    """Why the GPU is slowing its clocks at this moment; empty on a CPU and where NVML cannot be asked."""
    bits = _ask(device, lambda nvml, handle: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
    return named_throttles(bits or 0)


def named_throttles(bits: int) -> set[str]:
    """The names of those of NVML's clock event reasons that make a measurement invalid."""
    return {name for bit, name in _THROTTLES.items() if bits & bit}


def energy_j(device: torch.device) -> float | None:
    """Joules the GPU has used since its driver was loaded; None where it has no such counter (before Volta).

    The counter moves in steps of up to 100 ms: only differences over seconds mean something.
    """
    mj = _ask(device, lambda nvml, handle: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)))
    return None if mj is None else mj / 1e3


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """What does not change while a benchmark runs: driver, greatest clocks in MHz, power limit in W."""
    return {
        "driver": _ask(device, lambda nvml, _: str(nvml.nvmlSystemGetDriverVersion())),
        "max_clocks_mhz": _clocks(device, "nvmlDeviceGetMaxClockInfo"),
        "power_limit_w": _ask(device, lambda nvml, handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
    }


def gpu_state(device: torch.device) -> dict[str, Any]:
    """What does: the clocks in MHz and the temperature in °C of this moment."""
    return {
        "clocks_mhz": _clocks(device, "nvmlDeviceGetClockInfo"),
        "temperature_c": _ask(
            device, lambda nvml, handle: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
    }


def _clocks(device: torch.device, function: str) -> dict[str, int] | None:
    def read(nvml: Any, handle: Any) -> dict[str, int]:
        kinds = {"sm": nvml.NVML_CLOCK_SM, "memory": nvml.NVML_CLOCK_MEM}
        return {name: int(getattr(nvml, function)(handle, kind)) for name, kind in kinds.items()}

    return _ask(device, read)


def _ask(device: torch.device, question: Callable[[Any, Any], Answer]) -> Answer | None:
    """The answer, or None where there is nobody to ask or this GPU has no answer."""
    found = _handle(device) if device.type == "cuda" else None
    if found is None:
        return None
    try:
        return question(*found)
    except Exception:  # pynvml's own error types cannot be named where it is missing
        return None


@cache
def _handle(device: torch.device) -> tuple[Any, Any] | None:
    """NVML's module and the handle of a GPU; None where pynvml is missing or the GPU cannot be asked."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # as above
        return None
