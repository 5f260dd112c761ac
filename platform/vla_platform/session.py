"""Joining the Ray cluster a job was submitted to, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long a cluster's address may take to answer before it is called wrong."""
_ENVIRONMENT = {
    # Faster starts and stops of short trainings; see Ray Train's environment variables.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Otherwise every line a training worker prints reaches the driver twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A frame of 224 pixels is above Ray's 100 KB, and a detour through shared memory costs more
    # than sending it with the call.
    "RAY_max_direct_call_object_size": str(2**20),
}


def connect() -> str:
    """Connect once; returns the dashboard's URL ("" when there is none or already connected).

    ValueError when no cluster is where `RAY_ADDRESS` says.
    """
    if ray.is_initialized():
        return ""
    prepare()
    told = os.environ.get("RAY_ADDRESS")
    if told:
        _require_answer(told)
    on_notice = signal.getsignal(signal.SIGTERM)
    context = ray.init() if told else _start_local()
    if threading.current_thread() is threading.main_thread():
        # Ray put a handler of its own there, which aborts a process three seconds after a notice.
        signal.signal(signal.SIGTERM, on_notice)
    url = getattr(context, "dashboard_url", "")
    return f"http://{url}" if url else ""


def _require_answer(address: str) -> None:
    """Ray itself would try for minutes, and then say nothing of where the address is from."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():  # it is a word, as "auto", otherwise
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): correct it, or unset it "
            "to start Ray on this machine"
        ) from error


def prepare() -> None:
    """Set what Ray reads from the environment when it starts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _start_local() -> Any:
    """A cluster of this machine alone, in a folder short enough for Unix sockets."""
    folder = Path(tempfile.gettempdir()) / f"ray-{os.getuid()}"
    return ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        _temp_dir=str(folder),
        logging_level=logging.ERROR,
    )
