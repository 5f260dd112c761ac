"""Joining the Ray cluster a job was submitted to, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import ray

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    # Faster starts and stops of short trainings; see Ray Train's environment variables.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def connect() -> str:
    """Connect once; returns the dashboard's address ("" when there is none)."""
    if not ray.is_initialized():
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=True)
        else:
            _start_local()
    url = ray.worker.global_worker.node.address_info.get("webui_url") if ray.is_initialized() else ""
    return f"http://{url}" if url else ""


def _start_local() -> None:
    """A cluster of this machine alone, in a folder short enough for Unix sockets."""
    folder = Path(tempfile.gettempdir()) / f"ray-{os.getuid()}"
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        _temp_dir=str(folder),
        logging_level=logging.WARNING,
    )
