"""Where things lie by default: absolute, because a submitted job runs in a copy of the tree."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.home import cache as cache
from envs.home import home as home

COPIES = ("datasets", "policies", "training")
"""Folders of the cache with copies of what the store has: `trim` keeps them within the limit."""
KEPT = (".lock", ".part", ".json")
"""Endings of files that are not deleted: locks, what is being made just now, and descriptions,
which are too small to matter."""
ABANDONED_S = 24 * 3600.0
"""A `.part` that nobody wrote to for this long is a killed process's, and goes."""
RECENT_S = 3600.0
"""A checkpoint that was asked for this recently stays: its reader may not have opened it yet."""


def default_store() -> str:
    """`VLA_STORE`, else a folder under `home()`."""
    return os.environ.get("VLA_STORE") or str(home() / "store")


def cache_limit() -> int:
    """Bytes that local copies may take: `VLA_CACHE_GB`, else half of their disk."""
    told = os.environ.get("VLA_CACHE_GB")
    if told:
        return int(float(told) * 1e9)
    cache().mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(cache()).total // 2


def trim(spared: Collection[Path] = ()) -> None:
    """Delete copies, the longest unused first, until `cache_limit()` bytes are left.

    A file that is deleted while a process has it mapped stays readable there, so nobody is asked.
    """
    found = sorted(_copies(cache()))
    held, limit = sum(size for _, size, _ in found), cache_limit()
    for used, size, path in found:
        kept = path in spared or _awaited(path, used)
        if path.name.endswith(".part") or (held > limit and not kept):
            path.unlink(missing_ok=True)
            held -= size


def _copies(root: Path) -> Iterator[tuple[float, int, Path]]:
    """(when it was used, bytes, path) of every file that may go."""
    for path in (path for name in COPIES for path in (root / name).rglob("*")):
        try:
            about = path.stat()
        except FileNotFoundError:  # another process trims too
            continue
        if path.is_file() and (not path.name.endswith(KEPT) or _abandoned(path, about.st_mtime)):
            yield about.st_mtime, about.st_size, path


def _abandoned(path: Path, used: float) -> bool:
    return path.name.endswith(".part") and time.time() - used > ABANDONED_S


def _awaited(path: Path, used: float) -> bool:
    """A dataset's reader fetches again what is gone; a checkpoint's does not."""
    return time.time() - used < RECENT_S and not path.is_relative_to(cache() / "datasets")


def recent(path: Path) -> bool:
    """Whether a copy is there and was asked for within `RECENT_S`."""
    try:
        return time.time() - path.stat().st_mtime < RECENT_S
    except FileNotFoundError:
        return False


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for large files of this process; those that dead processes left are removed.

    A lock says who lives: it ends with its process, and holds between containers, too.
    """
    root = cache() / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)  # or a folder were swept before its lock is held
        _sweep(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        alive = open(folder / ".lock", "w")  # noqa: SIM115
        fcntl.flock(alive, fcntl.LOCK_EX)
    with alive:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in (path for path in root.iterdir() if path.is_dir()):
        try:
            with open(folder / ".lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):  # its process lives, or just ended
            continue
