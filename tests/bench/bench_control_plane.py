"""The pool's control plane: many simulated environments, real frames, real inference actor.

    PYTHONPATH=.:platform python -m tests.bench.bench_control_plane --environments 250 400

Each environment is a child process whose chunk lasts exactly CHUNK_S; only waiting is simulated.
Episodes are committed to a real SeaweedFS. The ideal rate is environments / CHUNK_S; what is
missing was spent in our own code, which shares this machine's cores with all the children.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from vla_platform import session
from vla_platform.artifacts import Checkpoint, complete_policy, file_digest, publish_policy
from vla_platform.cluster import CLUSTERS, Cluster
from vla_platform.evaluation import Wanted, environment, missing
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool, Tally
from vla_platform.store import Store, open_store

from envs.api import Observation
from tests.bench.control_plane_simulator import CHUNK, CHUNK_S, CHUNKS, ROW, answer_to
from tests.seaweed import credentials, seaweed

GROUPS = {
    "children": "envs.worker",
    "hosts": "ray::Host",
    "replicas": "ray::Replica",
    "store": "weed",
    "ray": "ray",
}
"""Whose processor time it is: the first name found in a process's command line."""


class Answering:
    """A policy that reads every frame and costs next to nothing."""

    batch_invariant = True

    def act(self, observations: Sequence[Observation], length: int | None) -> np.ndarray:
        return np.stack([answer_to(observation.image) for observation in observations])

    def group(self, observation: Observation) -> int:
        return 0


def load(folder: Path) -> Answering:
    return Answering()


def checkpoint(store: Store, folder: Path) -> Checkpoint:
    """Any two files: the policy needs no weights, but is fetched and verified like one."""
    folder.mkdir(parents=True)
    (folder / "policy.safetensors").write_bytes(os.urandom(64))
    (folder / "policy.json").write_text("{}")
    publish_policy(store, "bench", 0, folder)
    return complete_policy(store, "bench", 0, file_digest(folder / "policy.safetensors"))


def processor_seconds() -> dict[str, float]:
    """Seconds of user and system time so far, by group; "driver" is this process."""
    mine = psutil.Process()
    found = dict.fromkeys(["driver", *GROUPS], 0.0)
    found["driver"] = sum(mine.cpu_times()[:2])
    for process in mine.children(recursive=True):
        try:
            name = " ".join(process.cmdline())
            group = next((g for g, text in GROUPS.items() if text in name), "ray")
            found[group] += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return found


def play(pool: Pool, wanted: Wanted) -> Tally:
    """Every episode of the score, none of which may be there already."""
    left = missing(Ledger(pool.store), [wanted])
    assert len(left) == len(wanted.episodes()), "some were played before"
    tally = pool.run(left)
    assert not tally.errors, tally.errors[:3]
    return tally


def measure(
    store: Store, wanted: Wanted, environments: int, cluster: Cluster, rounds: int
) -> dict[str, float]:
    """One pool of so many environments, `rounds` episodes each; its rate beside the ideal one."""
    with Pool(store, load, cluster) as pool:
        began = time.perf_counter()
        play(pool, replace(wanted, tasks=("start",), trials=environments, first=2_000_000))
        started = time.perf_counter() - began
        before, began = processor_seconds(), time.perf_counter()
        score = replace(wanted, tasks=("wait",), trials=rounds * environments)
        with lowest_memory() as memory:
            tally = play(pool, score)
        wall = time.perf_counter() - began
        after = processor_seconds()
    rows = check(store, score, tally)
    spent = sum(after.values()) - sum(before.values())
    return {
        "environments": environments,
        "ratio": rounds * CHUNKS * CHUNK_S / wall,
        "chunks_per_s": rounds * CHUNKS * environments / wall,
        "episodes": tally.done,
        "start_s": started,
        "wall_s": wall,
        "memory_left_gb": memory[0],
        **waits(rows),
        "cores_in_all": spent / wall,
        "cpu_ms_per_chunk": 1e3 * spent / (rounds * CHUNKS * environments),
        **{f"cores_{group}": (after[group] - before[group]) / wall for group in before},
    }


def check(store: Store, score: Wanted, tally: Tally) -> list[dict[str, Any]]:
    """Nothing lost, nothing twice, every chunk the answer to its own frame; the rows."""
    rows = Ledger(store).read(score.cell()).require_sound().to_pylist()
    rows = [row for row in rows if row["task"] == "wait"]
    keys = [row["key"] for row in rows]
    assert sorted(keys) == sorted(episode.key for episode in score.episodes())
    assert tally.done == len(set(keys)) == len(keys)
    assert all(row["success"] and row["replans"] == CHUNKS for row in rows)
    return rows


def waits(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds beyond CHUNK_S that a chunk took, per chunk of each episode."""
    found = sorted(1e3 * (row["wall_s"] / CHUNKS - CHUNK_S) for row in rows)
    return {
        "chunk_wait_ms": found[len(found) // 2],
        "chunk_wait_p95_ms": found[len(found) * 19 // 20],
    }


@contextmanager
def lowest_memory() -> Iterator[list[float]]:
    """The least available memory, GB, seen while the block runs."""
    lowest, over = [float("inf")], threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            lowest[0] = min(lowest[0], psutil.virtual_memory().available / 1e9)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lowest
    finally:
        over.set()
        thread.join()


def spread(environments: int, hosts: int) -> Cluster:
    """So many environments over so many hosts, one replica."""
    return replace(
        CLUSTERS["laptop"], hosts=hosts, slots=-(-environments // hosts), batch=64, replicas=1
    )


@contextmanager
def cluster_and_store() -> Iterator[Store]:
    """Ray and SeaweedFS of this process's own, in a folder short enough for Unix sockets."""
    import ray

    with tempfile.TemporaryDirectory(prefix="cp-", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.environ.update(credentials(), VLA_HOME=f"{name}/home")
        with seaweed(Path(name, "weed")) as server:
            session.prepare()
            ray.init(address="local", num_cpus=8, include_dashboard=False, _temp_dir=f"{name}/ray")
            try:
                yield open_store(server.url("bench"))
            finally:
                ray.shutdown()


def bench(counts: Sequence[int], hosts: int, rounds: int) -> list[dict[str, float]]:
    """A measurement per number of environments."""
    results = []
    with cluster_and_store() as store, tempfile.TemporaryDirectory() as folder:
        policy = checkpoint(store, Path(folder, "policy"))
        fingerprint = environment(Ledger(store), ROW)
        for first, count in enumerate(counts):
            wanted = Wanted(
                policy, ROW, CHUNK, fingerprint, ROW.tasks, count, mode=f"round-{first}"
            )
            results.append(measure(store, wanted, count, spread(count, hosts), rounds))
            print(line(results[-1]), flush=True)
    return results


def line(result: dict[str, float]) -> str:
    cores = {name: value for name, value in result.items() if name.startswith("cores_")}
    spent = "  ".join(f"{name.removeprefix('cores_')} {value:.2f}" for name, value in cores.items())
    return (
        f"{result['environments']:>5.0f} environments: {100 * result['ratio']:.1f}% of the ideal "
        f"rate, {result['chunks_per_s']:.0f} chunks/s, "
        f"{result['chunk_wait_ms']:.0f} ms a chunk above {CHUNK_S:g} s, "
        f"{result['cpu_ms_per_chunk']:.1f} ms of processor each; cores: {spent}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=int, nargs="+", default=[250])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="episodes per environment")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = bench(options.environments, options.hosts, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
