"""Requests per second of a served policy with 16 clients: batched against one by one.

    .venv/bin/python tests/bench/bench_serving.py [--backbone tiny-qwen3vl-2b] [--json PATH]

Both servers hold the same policy and take turns, so that whatever else the machine does meets
both; ratios are medians over the turns. The clients share a process of their own, each with
one request under way at any time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from vla_platform.remote import pack, unpack
from websockets.sync.client import connect

from tests.bench.measured import write

WARM_UP = 3
PIXELS = 224


def main() -> None:
    args = arguments()
    # Imported here, because the clients' process imports this file too and needs no torch.
    from envs.benchmarks import benchmark
    from vlm4vla.policies import build_policy
    from vlm4vla.run import Run

    row = benchmark("tabletop")
    run = Run(args.backbone, row.name, policy=args.kind, init="scratch")
    policy = build_policy(run, row.chunk, action_spec=row.action_spec).eval()
    many = args.clients
    cases = [(1, 1), (many, 1), (1, many), (many, many)]
    with ExitStack() as stack:
        urls = {batch: stack.enter_context(served(policy, batch)) for batch in (1, many)}
        child = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        turns = [
            {case: measure(child, urls[case[0]], case[1], args.requests) for case in cases}
            for _ in range(args.turns)
        ]
    rows = [summary(case, [turn[case] for turn in turns]) for case in cases]
    for each in rows:
        print(
            f"batch {each['batch']:2d}, {each['clients']:2d} clients: "
            f"{each['requests_per_s']:7.1f} requests/s, {each['cpu_ms']:5.1f} ms of CPU each, "
            f"latency p50 {each['p50_ms']:6.1f} ms, p95 {each['p95_ms']:6.1f} ms"
        )
    ratios = {
        "ratio": [turn[1, many]["took"] / turn[many, many]["took"] for turn in turns],
        "cpu_ratio": [turn[1, many]["cpu"] / turn[many, many]["cpu"] for turn in turns],
    }
    result = {name: statistics.median(values) for name, values in ratios.items()}
    print(
        f"{args.backbone} {args.kind}, {many} clients: batched is {result['ratio']:.2f} x unbatched"
        f" ({min(ratios['ratio']):.2f} to {max(ratios['ratio']):.2f} over {args.turns} turns), "
        f"{result['cpu_ratio']:.2f} x by the server's CPU time"
    )
    if args.json:
        write(args.json, {"rows": rows, **result, "turns": ratios})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-qwen3vl-2b")
    parser.add_argument("--kind", default="action_query")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20, help="of each client and turn")
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


def measure(child: Any, url: str, clients: int, requests: int) -> dict[str, Any]:
    """Seconds of all requests together, of this process's CPU for each, and each one's own."""
    before = time.process_time()
    took, latencies = child.apply(drive, (url, clients, requests))
    cpu = (time.process_time() - before) / (clients * (requests + WARM_UP))
    return {"took": took, "cpu": cpu, "latencies": latencies}


def summary(case: tuple[int, int], turns: list[dict[str, Any]]) -> dict[str, Any]:
    latencies = [latency for turn in turns for latency in turn["latencies"]]
    p50, p95 = (float(np.quantile(latencies, q)) * 1000 for q in (0.5, 0.95))
    return {
        "batch": case[0],
        "clients": case[1],
        "requests_per_s": len(latencies) / sum(turn["took"] for turn in turns),
        "cpu_ms": 1000 * statistics.median(turn["cpu"] for turn in turns),
        "p50_ms": p50,
        "p95_ms": p95,
    }


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
