"""A benchmark's figures on disk, with the machine, versions, date and command of their run."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "numpy", "pyarrow")
BEGAN = time.time()
LOAD = os.getloadavg()[0]
"""Before the benchmark did anything itself."""


def ran() -> dict[str, Any]:
    """What has run so far, where and for how long."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "took_s": round(time.time() - BEGAN),
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load_before": round(LOAD, 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**found, "ran": ran()}, indent=1) + "\n")
