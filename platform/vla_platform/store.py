"""One store for everything kept: a folder, or a bucket behind S3.

`open_store(url)` gives a `Store`: small, picklable, safe to share between threads. Its one
promise beyond get and put is `put_new`: of any number of writers of a key, exactly one is
told True, whatever crashes or answers are lost. The ledger and the leases stand on it.

Credentials come from the environment and are never part of a URL, a repr or an error.
"""

from __future__ import annotations

import dataclasses
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

PATIENCE_S = 120.0
"""How long transient failures are ridden out: a store's restart must not end a sweep."""
PROBE_PATIENCE_S = 3.0
PROBE_KEY = "_probe/marker"
"""A fixed key, because the role of a running study may not delete what a probe leaves."""

_CREDENTIALS = "the {} carries credentials; use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_SEGMENT = re.compile(r"[A-Za-z0-9_=@+,:~-][A-Za-z0-9_.=@+,:~-]*")
_LONGEST_KEY, _LONGEST_SEGMENT = 900, 240


class StoreError(Exception):
    """The store cannot do what was asked; the message names the cause and the remedy."""


class StoreUnavailableError(StoreError):
    """Transient failures outlasted the store's patience; asking again later may work."""


def check_key(key: str) -> str:
    """The key itself, or ValueError: relative, no '..', plain characters, no hidden names."""
    segments = key.split("/")
    if len(key) > _LONGEST_KEY or any(len(segment) > _LONGEST_SEGMENT for segment in segments):
        raise ValueError(
            f"store key {key[:60]!r}… is too long"
            f" ({_LONGEST_KEY} characters in all, {_LONGEST_SEGMENT} a part)."
        )
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(
                f"store key {key!r}: part {segment!r} is not allowed; use letters, digits and"
                " _ = @ + , : ~ - . (no empty part, none that starts with a dot)."
            )
    return key


def check_prefix(prefix: str) -> str:
    """A key, a key's beginning, or "": whatever `list` may be asked for."""
    whole, _, last = prefix.rpartition("/")
    for part in filter(None, (whole, last)):
        check_key(part)
    if prefix.startswith("/"):
        raise ValueError(
            f"store prefix {prefix!r} is absolute; prefixes are relative to the store."
        )
    return prefix


@dataclass(frozen=True)
class Store(ABC):
    """Keys to bytes. `url` opens the same store again in any process."""

    url: str
    patience: float = PATIENCE_S

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite; readers see the old bytes or the new, never a part."""

    @abstractmethod
    def put_new(self, key: str, data: bytes, writer: str | None = None) -> bool:
        """Write if the key is absent. True for exactly one writer, False when it exists.

        writer: a token unique to this write; give the same one again when repeating a call
        that raised, and a write that had in fact been done is still answered with True (S3).
        """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The key's bytes; KeyError when absent."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with `prefix`, in byte order."""

    @abstractmethod
    def children(self, folder: str = "") -> Iterator[str]:
        """The names directly under a folder, sorted; folders among them end with "/"."""

    @abstractmethod
    def upload(self, path: str | Path, key: str) -> None:
        """Copy a local file of any size to the key; visible only when complete."""

    @abstractmethod
    def download(self, key: str, path: str | Path) -> None:
        """Copy the key to a local file, which appears only when complete; KeyError when absent."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key if it is there. For pruning alone: nothing else ever deletes."""

    def probe(self) -> None:
        """Fail within seconds, and in one sentence, when a study could not run on this store.

        For the driver, once: hundreds of workers at the one probe key would wait for each other.
        """
        hasty = dataclasses.replace(self, patience=min(self.patience, PROBE_PATIENCE_S))
        hasty._probe()

    def _probe(self) -> None:
        token = uuid.uuid4().hex.encode()
        self.put(PROBE_KEY, token)
        if self.put_new(PROBE_KEY, token):
            raise StoreError(
                f"{self.url} ignores If-None-Match: it let a second writer replace a finished key,"
                " so episodes could be lost; use a server with conditional writes (S3, SeaweedFS)."
            )
        self.get(PROBE_KEY)
        if PROBE_KEY not in self.list(PROBE_KEY):
            raise StoreError(
                f"{self.url} does not list a key that was just written; use a consistent store."
            )


def open_store(url: str, patience: float = PATIENCE_S) -> Store:
    """The store at a folder path, `file://` URL or `s3://bucket/prefix?endpoint=…&region=…`.

    endpoint: the server's address, with its scheme or with `scheme=http` beside it; default
    AWS_ENDPOINT_URL_S3, then AWS_ENDPOINT_URL. region: default AWS_REGION, then
    AWS_DEFAULT_REGION, then us-east-1. `dashboards/archive.py` reads the same, and a test compares.
    Nothing is contacted yet. patience: seconds for which transient failures are retried.
    """
    if url.startswith("s3://"):
        return _open_s3(url, patience)
    scheme, found, rest = url.partition("://")
    if found and scheme != "file":
        raise ValueError(f"store URL has scheme {scheme!r}; use a folder path, file:// or s3://.")
    from vla_platform.store_folder import FolderStore

    folder = Path(unquote(rest)) if found else Path(url)
    if not str(url):
        raise ValueError("store URL is empty; give a folder path or s3://bucket/prefix.")
    return FolderStore(os.path.abspath(folder.expanduser()), patience)


def _open_s3(url: str, patience: float) -> Store:
    from vla_platform.store_s3 import S3Store

    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    # Messages here never quote the URL: it may hold the secret they complain about.
    if "@" in parts.netloc:
        raise ValueError(_CREDENTIALS.format("store URL"))
    if unknown := set(options) - {"endpoint", "region", "scheme"}:
        raise ValueError(
            f"store URL has unknown options {sorted(unknown)}; known: endpoint, region, scheme"
            " (credentials belong in the environment)."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc):
        raise ValueError(
            "store URL needs a bucket name of 3–63 small letters, digits, '-' or '.': s3://bucket/prefix."
        )
    prefix = parts.path.strip("/")
    if prefix:
        check_key(prefix)
    endpoint = _endpoint(options)
    region = (
        options.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or "us-east-1"
    )
    query = urlencode(
        {"endpoint": endpoint, "region": region} if endpoint else {"region": region}, safe=":/"
    )
    whole = f"s3://{parts.netloc}/{prefix}?{query}"
    return S3Store(
        whole, patience, bucket=parts.netloc, prefix=prefix, endpoint=endpoint, region=region
    )


def _endpoint(options: dict[str, str]) -> str:
    """The server's URL, or "" for AWS itself."""
    found = (
        options.get("endpoint")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL", "")
    )
    if found and "://" not in found:
        found = f"{options.get('scheme', 'https')}://{found}"
    parts = urlsplit(found)
    if "@" in parts.netloc:
        raise ValueError(_CREDENTIALS.format("S3 endpoint"))
    if found and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("the S3 endpoint must look like http://host:port.")
    return found.rstrip("/")
