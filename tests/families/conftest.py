"""Folders of the other families, made once."""

from pathlib import Path

import pytest

from tests.families.folders import write_dreamlite, write_klein


@pytest.fixture(scope="session")
def dreamlite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DreamLite-mobile."""
    return write_dreamlite(tmp_path_factory.mktemp("dreamlite") / "mobile")


@pytest.fixture(scope="session")
def klein_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FLUX.2 [klein]."""
    return write_klein(tmp_path_factory.mktemp("klein") / "klein")


@pytest.fixture(scope="session")
def klein_kv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FLUX.2 [klein] whose sources see only themselves."""
    return write_klein(tmp_path_factory.mktemp("klein") / "kv", kv=True)
