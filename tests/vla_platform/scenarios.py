"""The scenarios of faults: each disturbs one evaluation, then checks what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vla_platform.ledger import Ledger
from vla_platform.store import Store, open_store

from envs.benchmarks import benchmark
from tests.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.seaweed import credentials, seaweed
from tests.vla_platform import faults
from tests.vla_platform.drive import wanted_of
from tests.vla_platform.faults import Stage
from tests.vla_platform.test_inference import checkpoint_of

BACKBONE = "tiny-paligemma-1"
TASKS, TRIALS = ["reach", "push"], 15
Row = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """A cluster, a store with a policy, what to evaluate, and its undisturbed outcomes."""

    stage: Stage
    store: Store
    spec: dict[str, Any]
    undisturbed: list[Row]


@dataclass
class Scene:
    """One disturbed evaluation: on `store`, reached by drivers as spec["store"]."""

    stage: Stage
    store: Store
    spec: dict[str, Any]
    log: Path
    seed: int


def prepare(stage: Stage, folder: Path, name: str = "tabletop", **changes: Any) -> Ground:
    """Play once without faults."""
    store = open_store(str(folder / "store"))
    checkpoint = checkpoint_of(store, folder / "policy", BACKBONE)
    spec = {
        "store": store.url,
        "checkpoint": [checkpoint.run, checkpoint.step, checkpoint.digest],
        "benchmark": name,
        "fingerprint": faults.environment_of(store, name),
        "tasks": TASKS,
        "trials": TRIALS,
        **changes,
    }
    count = len(spec["tasks"]) * spec["trials"]
    tally = stage.play(spec, folder / "undisturbed.log")
    assert tally == {"total": count, "done": count, "errors": []}
    return Ground(stage, store, spec, faults.rows(store, spec))


def libero_ground(stage: Stage, folder: Path) -> Ground:
    """40 episodes of real LIBERO, cut short: two tasks, 24 steps each."""
    tasks = list(benchmark("libero_object").tasks[:2])
    return prepare(stage, folder, "libero_object", tasks=tasks, trials=20, steps=24)


def driver_killed_twice(ground: Ground, folder: Path, seed: int) -> None:
    with on_folder(ground, folder, seed) as scene:
        _whole(
            faults.run_and_kill(scene.stage, scene.spec, scene.log, scene.store, times=2, seed=seed)
        )


def play(ground: Ground, name: str, folder: Path, seed: int) -> Counter[str]:
    """One scenario with its checks; returns the faults that it injected."""
    before = Counter(ground.stage.injected)
    scenario = SCENARIOS.get(name) or LIBERO[name]
    scenario(ground, folder, seed)
    ground.stage.assert_empty()
    return ground.stage.injected - before


@contextmanager
def on_folder(ground: Ground, folder: Path, seed: int) -> Iterator[Scene]:
    """An empty folder store with the same policy; checked at the end."""
    store = open_store(str(folder / "store"))
    _copy_policy(ground.store, store)
    scene = Scene(ground.stage, store, {**ground.spec, "store": store.url}, folder / "log", seed)
    scene.log.touch()
    yield scene
    faults.check(store, scene.spec, ground.undisturbed)


@contextmanager
def on_seaweed(ground: Ground, folder: Path, seed: int) -> Iterator[tuple[Scene, Any, FaultyProxy]]:
    """The same on a SeaweedFS of its own, which drivers reach through a faulty proxy."""
    with ExitStack() as opened:
        patch = opened.enter_context(pytest.MonkeyPatch.context())
        for name, value in credentials().items():
            patch.setenv(name, value)
        server = opened.enter_context(seaweed(folder / "weed"))
        proxy = opened.enter_context(faulty_proxy(server.endpoint))
        store = open_store(server.url("faults"))
        _copy_policy(ground.store, store)
        through = f"s3://exp/faults?endpoint={proxy.endpoint}"
        scene = Scene(ground.stage, store, {**ground.spec, "store": through}, folder / "log", seed)
        scene.log.touch()
        yield scene, server, proxy
        proxy.reset()
        faults.check(store, scene.spec, ground.undisturbed)


def _copy_policy(source: Store, target: Store) -> None:
    for key in source.list("policies/"):
        target.put(key, source.get(key))


def _whole(tally: dict[str, Any]) -> None:
    assert not tally["errors"], tally["errors"][:3]


def _kills(kind: str, times: int, pause: tuple[float, float]) -> Callable[..., None]:
    def scenario(ground: Ground, folder: Path, seed: int) -> None:
        with on_folder(ground, folder, seed) as scene:
            action = faults.killing(scene.stage, {kind: times}, seed, pause)
            with faults.until_over(action):
                _whole(scene.stage.play(scene.spec, scene.log))

    return scenario


def driver_killed(ground: Ground, folder: Path, seed: int) -> None:
    with on_folder(ground, folder, seed) as scene:
        _whole(
            faults.run_and_kill(scene.stage, scene.spec, scene.log, scene.store, times=3, seed=seed)
        )


def store_killed(ground: Ground, folder: Path, seed: int) -> None:
    with on_seaweed(ground, folder, seed) as (scene, server, _):
        restarts = faults.restarting(scene.stage, server, times=3, seed=seed)
        with faults.until_over(restarts):
            _whole(scene.stage.play(scene.spec, scene.log))


def store_misbehaves(ground: Ground, folder: Path, seed: int) -> None:
    with on_seaweed(ground, folder, seed) as (scene, _, proxy):
        faults.answering(scene.stage, proxy, share=0.25, seed=seed)
        _whole(scene.stage.play(scene.spec, scene.log))


def store_outage(ground: Ground, folder: Path, seed: int) -> None:
    """Every request is refused for five seconds, in the middle."""
    with on_seaweed(ground, folder, seed) as (scene, _, proxy):
        driver = scene.stage.driver(scene.spec, scene.log)
        faults.await_commits(scene.store, scene.spec, 5, driver, scene.log)
        faults.refuse_all(scene.stage, proxy, Fault(status=503, code="SlowDown"), seconds=5.0)
        _whole(faults.tally_of(driver, scene.log))


def two_drivers(ground: Ground, folder: Path, seed: int) -> None:
    """Both play the same cell from the start; what they did together is everything, once."""
    with on_folder(ground, folder, seed) as scene:
        drivers = [scene.stage.driver(scene.spec, scene.log) for _ in range(2)]
        scene.stage.injected["second driver"] += 1
        for driver in drivers:
            _whole(faults.tally_of(driver, scene.log))


def _bad_actions(how: str) -> Callable[..., None]:
    def scenario(ground: Ground, folder: Path, seed: int) -> None:
        """Nonsense is an error, never a failure; a sound policy then ends the cell."""
        with on_folder(ground, folder, seed) as scene:
            tally = scene.stage.play({**scene.spec, "policy": how}, scene.log)
            scene.stage.injected[f"policy answers {how}"] += len(tally["errors"])
            assert len(tally["errors"]) + tally["done"] == len(ground.undisturbed)
            assert tally["errors"] and all("BadActionsError" in e for e in tally["errors"])
            kept = faults.rows(scene.store, scene.spec)
            assert all(row in ground.undisturbed for row in kept)
            assert Ledger(scene.store).errors(wanted_of(scene.spec).cell())
            _whole(scene.stage.play(scene.spec, scene.log))

    return scenario


def everything(ground: Ground, folder: Path, seed: int) -> None:
    """All of it at once, twice over with killed drivers in between."""
    kinds = {"child": 6, "host": 2, "replica": 3}
    with on_seaweed(ground, folder, seed) as (scene, server, proxy):
        faults.answering(scene.stage, proxy, share=0.1, seed=seed)
        kills = faults.killing(scene.stage, kinds, seed, (0.8, 2.0))
        restarts = faults.restarting(scene.stage, server, times=2, seed=seed)
        with faults.until_over(kills), faults.until_over(restarts):
            _whole(
                faults.run_and_kill(
                    scene.stage, scene.spec, scene.log, scene.store, times=2, seed=seed
                )
            )


SCENARIOS: dict[str, Callable[[Ground, Path, int], None]] = {
    "children killed": _kills("child", 8, (0.3, 0.8)),
    "hosts killed": _kills("host", 3, (1.5, 3.0)),
    "replicas killed": _kills("replica", 3, (1.0, 2.5)),
    "driver killed": driver_killed,
    "store killed": store_killed,
    "store misbehaves": store_misbehaves,
    "store outage": store_outage,
    "two drivers": two_drivers,
    "NaN actions": _bad_actions("nan"),
    "misshapen actions": _bad_actions("shape"),
    "everything at once": everything,
}
LIBERO = {"LIBERO's driver killed twice": driver_killed_twice}
"""On `libero_ground`."""
