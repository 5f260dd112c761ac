"""What tests share: places of their own, and one Ray cluster for the session."""

import os
import tempfile

import pytest


def pytest_configure():
    """Tiny models on many threads spend their time waiting for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory):
    """Caches and default stores in a temporary folder; simulators stay where they are."""
    simulators = os.path.expanduser((os.environ.get("VLA_HOME") or "~/.vla") + "/simulators")
    home = tmp_path_factory.mktemp("vla")
    if os.path.isdir(simulators):
        (home / "simulators").symlink_to(simulators)
    os.environ["VLA_HOME"] = str(home)
    for name in ("VLA_STORE", "VLA_CACHE"):
        os.environ.pop(name, None)
    os.environ.pop("RAY_ADDRESS", None)
    return home


@pytest.fixture(scope="session")
def ray_cluster():
    """A cluster of this process's own, in a folder short enough for Unix sockets."""
    import ray

    options = {"prefix": "rt-", "dir": "/tmp", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**options) as folder:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=True,  # Ray Train asks its state API while it starts
            dashboard_port=0,
            _temp_dir=folder,
            runtime_env={"env_vars": {"VLA_HOME": os.environ["VLA_HOME"]}},
        )
        yield
        ray.shutdown()
