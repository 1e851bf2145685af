"""Building and running with a scripted TensorRT: options, values, addresses, graphs, failures."""

from pathlib import Path

import pytest
from scenarios import GRAPH, RANGES, SCENARIOS, World, compute
from scripted import HostStream, ScriptedTensorRT


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scripted(scenario, tmp_path: Path) -> None:
    script = ScriptedTensorRT(GRAPH, RANGES, compute)
    scenario(World(script, script, HostStream(script), tmp_path))
