"""Live counters for Prometheus: every metric's name, unit and labels, in one place.

Ray's metrics agent of each node exports them, as `ray_vla_…`. Labels are bounded: benchmarks,
outcomes and causes, never tasks, keys or paths. Outside Ray recording does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram


@dataclass(frozen=True)
class Description:
    """kind: counter, gauge or histogram (then `bounds` are its buckets' upper ends)."""

    kind: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
EPISODE_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

METRICS: dict[str, Description] = {
    "vla_episodes_total": Description(
        "counter", "Episodes that ended: success, failure or error", ("benchmark", "outcome")
    ),
    "vla_episode_retries_total": Description(
        "counter", "Attempts that infrastructure broke and that were repeated", ("benchmark",)
    ),
    "vla_episode_seconds": Description(
        "histogram", "Wall time of an episode, retries included", ("benchmark",), EPISODE_SECONDS
    ),
    "vla_env_steps_total": Description("counter", "Control steps simulated", ("benchmark",)),
    "vla_queue_episodes": Description(
        "gauge", "Episodes of the running pool: waiting or running", ("state",)
    ),
    "vla_rollout_hosts": Description(
        "gauge", "Rollout hosts: at work, or waiting for a place", ("state",)
    ),
    "vla_worker_restarts_total": Description(
        "counter",
        "Simulators and hosts replaced: worn, grown, crash, silent, deadline, policy or host",
        ("cause",),
    ),
    "vla_inference_batch_observations": Description(
        "histogram", "Observations answered by one inference call", (), SIZES
    ),
    "vla_inference_seconds": Description(
        "histogram", "One inference call, or one answer of a remote policy", ("kind",), SECONDS
    ),
    "vla_store_retries_total": Description(
        "counter", "Requests that the store failed to answer and that were repeated", ("verb",)
    ),
    "vla_stored_bytes_total": Description("counter", "Bytes put to the store", ("kind",)),
}
_CLASSES: dict[str, Any] = {"counter": Counter, "gauge": Gauge}


@cache
def _metric(name: str) -> Any:
    about = METRICS[name]
    if about.kind == "histogram":
        return Histogram(name, about.text, boundaries=list(about.bounds), tag_keys=about.labels)
    return _CLASSES[about.kind](name, about.text, tag_keys=about.labels)


def count(name: str, amount: float = 1, **labels: str) -> None:
    """Add to a counter."""
    if amount > 0:
        _metric(name).inc(amount, labels)


def show(name: str, value: float, **labels: str) -> None:
    """Set a gauge."""
    _metric(name).set(value, labels)


def observe(name: str, value: float, **labels: str) -> None:
    """Add to a histogram."""
    _metric(name).observe(value, labels)
