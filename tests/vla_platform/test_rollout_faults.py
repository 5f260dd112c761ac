"""Evaluations disturbed on a seeded schedule end with the rows of an undisturbed one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.process import SimulatorMissing, interpreter_for
from tests.vla_platform import scenarios
from tests.vla_platform.faults import Stage, stage


@pytest.fixture(scope="module")
def running() -> Iterator[Stage]:
    with stage() as made:
        yield made


@pytest.fixture(scope="module")
def ground(running: Stage, tmp_path_factory: pytest.TempPathFactory) -> scenarios.Ground:
    """A policy, and what an undisturbed evaluation of it gives."""
    return scenarios.prepare(running, tmp_path_factory.mktemp("faults"))


@pytest.mark.full
@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_a_fault_changes_nothing(ground: scenarios.Ground, name: str, tmp_path: Path):
    assert sum(scenarios.play(ground, name, tmp_path, seed=1).values())


@pytest.mark.full
@pytest.mark.parametrize("name", scenarios.LIBERO)
def test_forty_episodes_of_libero(running: Stage, name: str, tmp_path: Path):
    try:
        interpreter_for("libero")
    except SimulatorMissing as missing:
        pytest.skip(str(missing))
    (tmp_path / "undisturbed").mkdir()
    forty = scenarios.libero_ground(running, tmp_path / "undisturbed")
    assert len(forty.undisturbed) == 40
    assert scenarios.play(forty, name, tmp_path, seed=3)["kill -9 driver"] == 2
