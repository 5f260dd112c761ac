"""Requests per second of a served policy, as its clients grow: batched, one by one, and openpi's.

    PYTHONPATH=.:platform .venv/bin/python tests/bench/bench_serving.py [--json PATH]

All servers hold the same policy in one process and take turns, so that whatever else the machine
does meets each of them; ratios are medians over the turns. openpi's server is its own code
(peer_openpi.sh), asked through the protocol that both speak. The clients share a process of their
own, each with one request under way at any time.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from vla_platform.remote import pack, unpack
from websockets.sync.client import connect

from envs.api import Observation
from tests.bench.measured import write

WARM_UP = 3
PIXELS = 224
CLIENTS = (1, 4, 16, 64)
REQUESTS = 320
"""Of all clients of a case together, and a turn."""
MANY = 16
"""Observations in a batch, and the clients at which the servers are compared."""
PEER = Path(os.environ.get("VLA_HOME", Path.home() / ".vla")) / "peers" / "openpi"
OPENPI, ALONE, BATCHED = "openpi", "batch 1", f"batch {MANY}"
Case = tuple[str, int]


def main() -> None:
    args = arguments()
    # Imported here, because the clients' process imports this file too and needs no torch.
    from envs.benchmarks import benchmark
    from vlm4vla.policies import build_policy
    from vlm4vla.run import Run

    row = benchmark("tabletop")
    run = Run(args.backbone, row.name, policy=args.kind, init="scratch")
    policy = build_policy(run, row.chunk, action_spec=row.action_spec).eval()
    with ExitStack() as stack:
        urls = {ALONE: served(policy, 1), BATCHED: served(policy, MANY)}
        if PEER.exists():
            urls[OPENPI] = served_by_openpi(policy)
        else:
            print(f"no peer in {PEER}: bash tests/bench/peer_openpi.sh", file=sys.stderr)
        urls = {name: stack.enter_context(server) for name, server in urls.items()}
        child = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        turns = [
            {
                (name, clients): measure(child, url, clients)
                for clients in CLIENTS
                for name, url in urls.items()
            }
            for _ in range(args.turns)
        ]
    rows = [summary(case, [turn[case] for turn in turns]) for case in turns[0]]
    for each in rows:
        print(
            f"{each['server']:8}, {each['clients']:2d} clients: "
            f"{each['requests_per_s']:7.1f} requests/s, {each['cpu_ms']:5.1f} ms of CPU each, "
            f"latency p50 {each['p50_ms']:6.1f} ms, p95 {each['p95_ms']:6.1f} ms"
        )
    result = ratios(turns)
    for name, ratio in result.items():
        print(f"{name}: {ratio['median']:.2f} x ({ratio['least']:.2f} to {ratio['most']:.2f})")
    if args.json:
        write(args.json, {"rows": rows, "ratios": result})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-qwen3vl-2b")
    parser.add_argument("--kind", default="action_query")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@contextmanager
def served(policy: Any, batch: int) -> Iterator[str]:
    """The address of a server that answers up to `batch` observations at once."""
    from vla_platform.serving import PolicyServer

    server = PolicyServer(policy, policy.resize, {"policy": "bench"}, batch=batch)
    with server.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{listening.socket.getsockname()[1]}"
        listening.shutdown()
        thread.join()


@contextmanager
def served_by_openpi(policy: Any) -> Iterator[str]:
    """The address of openpi's own server around the same policy."""
    sys.path += [str(PEER / "client"), str(PEER / "openpi" / "src")]
    from openpi.serving.websocket_policy_server import (  # type: ignore[import-not-found]
        WebsocketPolicyServer,
    )

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = WebsocketPolicyServer(_AsOpenpi(policy), "127.0.0.1", port, {"policy": "bench"})
    loop = asyncio.new_event_loop()
    serving = loop.create_task(server.run())

    def serve() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"ws://127.0.0.1:{port}"
    loop.call_soon_threadsafe(serving.cancel)
    thread.join()


class _AsOpenpi:
    """What openpi's server asks of a policy."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def infer(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        frame = self.policy.resize(sent["image"][None])[0]
        seen = Observation(frame, sent["prompt"])
        return {"actions": self.policy.act([seen], self.policy.group(seen))[0]}


def measure(child: Any, url: str, clients: int) -> dict[str, Any]:
    """Seconds of all requests together, of this process's CPU for each, and each one's own."""
    requests = REQUESTS // clients
    before = time.process_time()
    took, latencies = child.apply(drive, (url, clients, requests))
    cpu = (time.process_time() - before) / (clients * (requests + WARM_UP))
    return {"took": took, "cpu": cpu, "latencies": latencies}


def summary(case: Case, turns: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [latency for turn in turns for latency in turn["latencies"]]
    p50, p95 = (float(np.quantile(latencies, q)) * 1000 for q in (0.5, 0.95))
    return {
        "server": case[0],
        "clients": case[1],
        "requests_per_s": len(latencies) / sum(turn["took"] for turn in turns),
        "cpu_ms": 1000 * statistics.median(turn["cpu"] for turn in turns),
        "p50_ms": p50,
        "p95_ms": p95,
    }


def ratios(turns: list[dict[Case, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """How many times as fast the first of each pair is as the second, and the spread of turns."""
    pairs: dict[str, tuple[Case, Case]] = {
        "16 clients, batched over one by one": ((BATCHED, MANY), (ALONE, MANY)),
    }
    if (OPENPI, MANY) in turns[0]:
        pairs |= {
            "16 clients, batched over openpi's server": ((BATCHED, MANY), (OPENPI, MANY)),
            "1 client, batches of 1, over openpi's server": ((ALONE, 1), (OPENPI, 1)),
        }
    found = {}
    for name, (ours, theirs) in pairs.items():
        values = [turn[theirs]["took"] / turn[ours]["took"] for turn in turns]
        found[name] = {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
        }
    return found


def drive(url: str, clients: int, requests: int) -> tuple[float, list[float]]:
    """Seconds that all clients took together, and each request's own."""
    ready = threading.Barrier(clients + 1)
    with ThreadPoolExecutor(clients) as threads:
        work = [threads.submit(one, url, number, requests, ready) for number in range(clients)]
        ready.wait()
        began = time.perf_counter()
        latencies = [latency for done in work for latency in done.result()]
    return time.perf_counter() - began, latencies


def one(url: str, number: int, requests: int, ready: threading.Barrier) -> list[float]:
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    message = pack({"image": image, "prompt": "reach the red block"})
    with connect(url, compression=None) as line:
        line.recv()
        for _ in range(WARM_UP):
            ask(line, message)
        ready.wait()
        return [ask(line, message) for _ in range(requests)]


def ask(line: Any, message: bytes) -> float:
    began = time.perf_counter()
    line.send(message)
    assert np.isfinite(unpack(line.recv())["actions"]).all()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
