"""A store to fill, for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dashboards.builder import Builder


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(str(tmp_path / "store"))
