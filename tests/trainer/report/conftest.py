"""A run, and the data set that it was trained on."""

from pathlib import Path

import pytest

from tests.support.reports import write_data, write_run


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(str(tmp_path / "data"))


@pytest.fixture
def run(tmp_path: Path, data: str) -> str:
    return write_run(str(tmp_path / "run"), data)
