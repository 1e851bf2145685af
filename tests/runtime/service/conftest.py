"""One running service for all tests of a process that do not end it."""

from collections.abc import Iterator

import pytest

from tests.runtime.service.server import Server


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """No keys, one warm editor."""
    running = Server(tmp_path_factory.mktemp("service") / "data")
    yield running
    assert running.stop() == 0, running.log
    faults = [place for place, line in enumerate(running.log) if "Traceback" in line]
    assert not faults, "\n".join(running.log[faults[0] - 2 : faults[0] + 60])
