"""The store as dashboards see it: keys and bytes in a folder or behind S3, read-only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

READERS = 16
"""Threads for many small objects behind S3; a folder is read faster without any."""
S = TypeVar("S")
T = TypeVar("T")
Stamp = tuple[int, int]
"""A key's size and the time when it was written (ns since 1970): another stamp, other bytes."""


class ArchiveError(Exception):
    """The store cannot be read; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Archive:
    """Keys are relative to the store. `url` never holds credentials: the environment does."""

    url: str
    files: fs.FileSystem
    remote: bool = False

    def list(self, prefix: str = "") -> list[str]:
        """Every key under the folder `prefix`, sorted; none when it does not exist."""
        return sorted(self.stamps(prefix))

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """The keys of `list`, in no order, each with what tells whether it was written again."""
        selector = fs.FileSelector(prefix.rstrip("/"), recursive=True, allow_not_found=True)
        with _explained(self.url):
            found = self.files.get_file_info(selector)
        return {
            info.path: (info.size, info.mtime_ns)
            for info in found
            if info.type == fs.FileType.File and not _hidden(info.path)
        }

    def get(self, key: str) -> bytes:
        """The key's bytes; KeyError when absent, or when it leads out of the store."""
        if _hidden(key):
            raise KeyError(key)
        with _explained(self.url):
            try:
                with self.files.open_input_stream(key) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                raise KeyError(key) from None

    def each(self, keys: Iterable[str], work: Callable[[str, bytes], T]) -> Iterator[T]:
        """work(key, bytes) of every key, in order."""
        return self.map(lambda key: work(key, self.get(key)), keys)

    def map(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """work of every item, in order; over a network several wait at once."""
        if not self.remote:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(work, items)


class _explained:  # noqa: N801
    """OSErrors of the file system as one sentence."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise ArchiveError(
                f"cannot read {self.url}: {error}; check the address, the credentials in the"
                " environment and that the server runs."
            ) from error


def _hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


def open_archive(url: str) -> Archive:
    """A folder path, `file://` URL or `s3://bucket/prefix?endpoint=…&region=…`, as the store's.

    ArchiveError when a folder does not exist; S3 is first contacted by the first reading.
    """
    if url.startswith("s3://"):
        return _open_s3(url)
    scheme, found, rest = url.partition("://")
    if found and scheme != "file":
        raise ArchiveError(f"store URL has scheme {scheme!r}; use a folder, file:// or s3://.")
    folder = Path(unquote(rest) if found else url).expanduser().absolute()
    if not folder.is_dir():
        raise ArchiveError(f"there is no store at {folder}; run a study, or name another --store.")
    return Archive(str(folder), fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()))


def _open_s3(url: str) -> Archive:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ArchiveError("the store URL carries credentials; keep them in the environment.")
    options = dict(parse_qsl(parts.query))
    endpoint = options.get("endpoint") or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    region = options.get("region") or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
    bucket = fs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or options.get("scheme", "https"),
        region=region or "us-east-1",
        connect_timeout=5,
        request_timeout=30,
    )
    root = f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    return Archive(f"s3://{root}", fs.SubTreeFileSystem(root, bucket), remote=True)


def _environment(*names: str) -> str:
    """The first of these variables that says something."""
    return next(filter(None, map(os.environ.get, names)), "")
