"""A store in a folder, local or on a shared file system with hard links.

Durability: a file's bytes are flushed before its name appears, and its folder before the call
returns. So no reader, kill or power cut meets half a file, and what was answered stays. The
two flushes cost about 0.5 ms here and up to 20 ms on a spinning disk; an episode takes
seconds, and writers of different keys flush side by side.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vla_platform.store import Store, StoreError, check_key, check_prefix

TEMPORARY = ".tmp"
"""Unfinished files: on the store's file system, so they can be renamed; no key can name it."""
LEFTOVER_S = 24 * 3600.0
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class FolderStore(Store):
    """`url` is the absolute path of the folder; it is made on the first write."""

    def put(self, key: str, data: bytes) -> None:
        target = self._path(key)
        with self._explained(key), self._temporary() as temporary:
            _write(temporary, data)
            _replace(temporary, target)

    def put_new(self, key: str, data: bytes, writer: str | None = None) -> bool:
        target = self._path(key)
        with self._explained(key), self._temporary() as temporary:
            if target.exists():
                return False
            _write(temporary, data)
            return _link_new(temporary, target)

    def get(self, key: str) -> bytes:
        with self._explained(key), self._open(key) as file:
            return file.read()

    def exists(self, key: str) -> bool:
        with self._explained(key):
            return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        with self._explained(prefix):
            yield from _walk(self.url, prefix.rpartition("/")[0], prefix)

    def children(self, folder: str = "") -> Iterator[str]:
        check_prefix(folder)
        with self._explained(folder):
            yield from _names(os.path.join(self.url, folder))

    def upload(self, path: str | Path, key: str) -> None:
        target = self._path(key)
        with open(path, "rb") as source, self._explained(key), self._temporary() as temporary:
            with open(temporary, "xb") as sink:
                shutil.copyfileobj(source, sink, _COPY_BYTES)
                _flush(sink.fileno())
            _replace(temporary, target)

    def download(self, key: str, path: str | Path) -> None:
        with self._open(key) as source, beside(path) as part, open(part, "xb") as sink:
            shutil.copyfileobj(source, sink, _COPY_BYTES)

    def delete(self, key: str) -> None:
        with self._explained(key), contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()

    def _probe(self) -> None:
        super()._probe()
        self._sweep_leftovers()

    def _sweep_leftovers(self) -> None:
        """Remove temporaries that killed writers left long ago."""
        for leftover in os.scandir(os.path.join(self.url, TEMPORARY)):
            with contextlib.suppress(FileNotFoundError):
                if leftover.stat().st_mtime < time.time() - LEFTOVER_S:
                    os.unlink(leftover.path)

    def _path(self, key: str) -> Path:
        return Path(self.url, check_key(key))

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[str]:
        """A fresh path on the store's file system; whatever is there at the end is removed."""
        path = os.path.join(self.url, TEMPORARY, uuid.uuid4().hex)
        if not os.path.isdir(os.path.dirname(path)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """OSErrors as a StoreError with a remedy."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"store folder {self.url}: {key}: {_remedy(error)}") from error

    def _open(self, key: str) -> BinaryIO:
        """The key's file to read; KeyError when there is none."""
        with self._explained(key):
            try:
                return open(self._path(key), "rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise KeyError(key) from None


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another folder, then start again."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.strerror}; give this user write access or choose another folder."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed; choose another folder or move that file."
    if error.errno == errno.ENOENT:
        return "it cannot be made there; choose another folder."
    if error.errno in (errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
        return (
            f"this file system has no hard links ({error.strerror}); choose a local folder or S3."
        )
    return f"{error.strerror or error}; check the disk and start again."


def _write(path: str, data: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        _flush(file.fileno())


def _flush(descriptor: int) -> None:
    os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """The folder and its parents, each one's name durable."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _replace(temporary: str, target: Path) -> None:
    _make_folder(target.parent)
    os.replace(temporary, target)
    _flush_folder(target.parent)


def _link_new(temporary: str, target: Path) -> bool:
    """Give the finished file its name unless the name is taken: link(2) is atomic and exclusive."""
    _make_folder(target.parent)
    try:
        os.link(temporary, target)
    except FileExistsError:
        # NFS may repeat a link whose answer was lost; two names on our inode mean we had won.
        return os.stat(temporary).st_nlink == 2
    _flush_folder(target.parent)
    return True


def _names(folder: str) -> list[str]:
    """Visible names in a folder, folders with "/", sorted as their keys would be."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name + "/" * entry.is_dir() for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in found if not name.startswith("."))


def _walk(root: str, folder: str, prefix: str) -> Iterator[str]:
    """Keys under root/folder that start with prefix, in byte order of the whole key."""
    for name in _names(os.path.join(root, folder)):
        key = f"{folder}/{name}" if folder else name
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(root, key[:-1], prefix)
        elif key.startswith(prefix):
            yield key


@contextlib.contextmanager
def beside(path: str | Path) -> Iterator[str]:
    """A temporary path next to `path`, which takes its place if the block succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = str(target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.part"))
    try:
        yield part
        os.replace(part, target)
    except (ConnectionError, TimeoutError):
        raise  # the wire's fault, not the disk's: the caller may try again
    except OSError as error:
        raise StoreError(f"cannot write {target}: {_remedy(error)}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
