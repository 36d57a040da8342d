"""The source of the package, read once for the architecture tests."""

from pathlib import Path

import pytest

from support.source import ROOT, read_sources


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    """The text of every module by its name; a package goes by the name of its folder."""
    return read_sources()
