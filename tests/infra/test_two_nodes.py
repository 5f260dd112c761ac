"""Two nodes of one Ray cluster on this machine, in network namespaces; one is cut off midway.

    namespace vla-a: head, one core, the driver ── veth ── namespace vla-b: four cores

The store is a folder, as on a shared file system: only Ray's own connections are cut.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vla_platform.ledger import Ledger
from vla_platform.store import Store, open_store

from infra.supervise import end
from tests.infra.namespaces import NEEDED, WIRE, ip, joined, wait_for
from tests.vla_platform import faults
from tests.vla_platform.drive import wanted_of
from tests.vla_platform.scenarios import BACKBONE, _copy_policy
from tests.vla_platform.test_inference import checkpoint_of

pytestmark = [pytest.mark.full, NEEDED]
HEAD, WORKER, PORT = "10.77.41.1", "10.77.41.2", 6379
TASKS, TRIALS = ["reach", "push"], 20


@dataclass
class Node:
    """A namespace with one Ray node in it."""

    namespace: str
    address: str
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        log = open(self.folder / f"{self.namespace}.log", "ab")  # noqa: SIM115
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            cwd=faults.ROOT,
            start_new_session=True,
        )

    def ray(self, *arguments: str) -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).with_name("ray"))
        common = ("--block", "--disable-usage-stats", f"--node-ip-address={self.address}")
        return self.run(ray, "start", *common, "--object-store-memory=200000000", *arguments)

    def cut(self) -> None:
        ip("-n", self.namespace, "link", "set", WIRE, "down")


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    mark = str(os.getpid())
    names = (f"vla-a-{mark}", f"vla-b-{mark}")
    with ExitStack() as opened:
        folder = Path(
            opened.enter_context(
                tempfile.TemporaryDirectory(prefix="2n-", dir="/tmp", ignore_cleanup_errors=True)
            )
        )
        (folder / "token").write_text("c0ffee" * 10)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "PYTHONPATH": f"{faults.ROOT}:{faults.ROOT}/platform",
            "VLA_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        opened.enter_context(joined(names, (HEAD, WORKER)))
        a, b = (
            Node(name, address, folder, environment)
            for name, address in zip(names, (HEAD, WORKER), strict=True)
        )
        head = a.ray(
            "--head",
            f"--port={PORT}",
            "--num-cpus=1",
            "--include-dashboard=false",
            f"--temp-dir={folder}/r",
        )
        opened.callback(end, head.pid, 20)
        wait_for(lambda: health(a), 120, "the head")
        worker = b.ray(f"--address={HEAD}:{PORT}", "--num-cpus=4")
        opened.callback(end, worker.pid, 20)
        wait_for(
            lambda: b"Ray runtime started" in (folder / f"{names[1]}.log").read_bytes(), 120, "b"
        )
        yield a, b


def health(node: Node) -> bool:
    ray = str(Path(sys.executable).with_name("ray"))
    return node.run(ray, "health-check", "--address", f"{HEAD}:{PORT}").wait() == 0


def driver(node: Node, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    return node.run(sys.executable, "-m", "tests.vla_platform.drive", "play", json.dumps(spec))


def rows_of(store: Store, spec: dict[str, Any]) -> list[dict[str, Any]]:
    return Ledger(store).read(wanted_of(spec).cell()).table.to_pylist()


def test_a_node_is_cut_off_and_the_rows_are_the_same(nodes: tuple[Node, Node], tmp_path: Path):
    a, b = nodes
    whole = open_store(str(tmp_path / "whole"))
    checkpoint = checkpoint_of(whole, tmp_path / "policy", BACKBONE)
    spec = {
        "address": f"{HEAD}:{PORT}",
        "store": whole.url,
        "checkpoint": [checkpoint.run, checkpoint.step, checkpoint.digest],
        "fingerprint": faults.environment_of(whole, "tabletop"),
        "tasks": TASKS,
        "trials": TRIALS,
    }
    assert driver(a, spec).wait(timeout=240) == 0
    undisturbed = rows_of(whole, spec)
    assert len(undisturbed) == len(TASKS) * TRIALS
    assert len({row["node"] for row in undisturbed}) == 2, "both nodes played"

    store = open_store(str(tmp_path / "cut"))
    _copy_policy(whole, store)
    spec["store"] = store.url
    running = driver(a, spec)
    wait_for(lambda: len(rows_of(store, spec)) >= 5, 120, "the first episodes")
    b.cut()
    before = len(rows_of(store, spec))
    assert before < len(undisturbed), "it was over before the cut"
    try:
        assert running.wait(timeout=300) == 0
    finally:
        end(running.pid, 0)
    faults.check(store, spec, faults.rows(whole, spec))
