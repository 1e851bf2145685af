"""What is asked of NVML, with a stand-in for it: units, and silence where it is missing or has no answer."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fairy.benchmarks import nvml

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class _StandIn(ModuleType):
    """The functions of pynvml that are used, for one GPU whose handle is the string after "GPU-"."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    energy_mj: int | None = 12_345

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-the-uuid"
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "handle"
        if self.energy_mj is None:
            raise RuntimeError("Not Supported")
        return self.energy_mj

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return 0x4 | 0x1

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return {1: 1980, 2: 2619}[clock]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, clock: int) -> int:
        return {1: 2000, 2: 2700}[clock]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 41


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[_StandIn]:
    made = _StandIn("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="the-uuid"))
    nvml._handle.cache_clear()
    yield made
    nvml._handle.cache_clear()


def test_units_are_joules_watts_and_megahertz(stand_in: _StandIn) -> None:
    assert nvml.energy_j(GPU) == 12.345
    assert nvml.throttle_reasons(GPU) == {"power cap"}
    assert nvml.gpu_state(GPU) == {"clocks_mhz": {"sm": 1980, "memory": 2619}, "temperature_c": 41}
    facts = {"driver": "580.1", "max_clocks_mhz": {"sm": 2000, "memory": 2700}, "power_limit_w": 700.0}
    assert nvml.gpu_facts(GPU) == facts


def test_a_gpu_without_an_answer_has_none(stand_in: _StandIn) -> None:
    stand_in.energy_mj = None
    assert nvml.energy_j(GPU) is None
    assert nvml.throttle_reasons(GPU) == {"power cap"}


def test_without_nvml_or_a_gpu_there_is_silence(stand_in: _StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml.energy_j(CPU) is None
    assert nvml.throttle_reasons(CPU) == set()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml._handle.cache_clear()
    assert nvml.energy_j(GPU) is None
    assert nvml.gpu_facts(GPU) == {"driver": None, "max_clocks_mhz": None, "power_limit_w": None}
    assert nvml.throttle_reasons(GPU) == set()
