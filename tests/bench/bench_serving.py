"""Requests per second of a served policy with 16 clients: batched against one by one.

    .venv/bin/python tests/bench/bench_serving.py [--backbone tiny-qwen3vl-2b] [--json PATH]

Both servers hold the same policy and run one after the other; the clients share a process of
their own, each with one request under way at any time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from vla_platform.remote import pack, unpack
from websockets.sync.client import connect

WARM_UP = 3
PIXELS = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tiny-qwen3vl-2b")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    # Imported here, because the clients' process imports this file too and needs no torch.
    from envs.benchmarks import benchmark
    from vlm4vla.policies import build_policy
    from vlm4vla.run import Run

    row = benchmark("tabletop")
    run = Run(args.backbone, row.name, init="scratch")
    policy = build_policy(run, row.chunk, action_spec=row.action_spec).eval()
    rows = [
        measure(policy, batch, clients, args.requests)
        for batch, clients in ((1, 1), (args.clients, 1), (1, args.clients), (args.clients,) * 2)
    ]
    for each in rows:
        print(
            f"batch {each['batch']:2d}, {each['clients']:2d} clients: "
            f"{each['requests_per_s']:7.1f} requests/s, "
            f"latency p50 {each['p50_ms']:6.1f} ms, p95 {each['p95_ms']:6.1f} ms"
        )
    ratio = rows[3]["requests_per_s"] / rows[2]["requests_per_s"]
    print(f"{args.backbone}, {args.clients} clients: batched is {ratio:.2f} x unbatched")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "ratio": ratio}, indent=1) + "\n")


def measure(policy: Any, batch: int, clients: int, requests: int) -> dict[str, Any]:
    from vla_platform.serving import PolicyServer

    server = PolicyServer(policy, policy.resize, {"policy": "bench"}, batch=batch)
    with server.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{listening.socket.getsockname()[1]}"
        with multiprocessing.get_context("spawn").Pool(1) as child:
            took, latencies = child.apply(drive, (url, clients, requests))
        listening.shutdown()
        thread.join()
    p50, p95 = (float(np.quantile(latencies, q)) * 1000 for q in (0.5, 0.95))
    rate = clients * requests / took
    return {
        "batch": batch,
        "clients": clients,
        "requests_per_s": rate,
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
