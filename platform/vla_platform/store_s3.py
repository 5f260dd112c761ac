"""A store in an S3 bucket (AWS, SeaweedFS, anything that honours If-None-Match)."""

from __future__ import annotations

import functools
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

from vla_platform.retry import ride_out
from vla_platform.store import (
    PROBE_PATIENCE_S,
    Store,
    StoreError,
    StoreUnavailableError,
    check_key,
    check_prefix,
)
from vla_platform.store_folder import beside

T = TypeVar("T")

CONNECT_S, READ_S = 3.0, 30.0
"""Contended conditional writes stall SeaweedFS for seconds at a time, so reads wait longer."""
PART_BYTES = 16 << 20
WRITER = "writer"
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "IncompleteBody", "SlowDown", "BadDigest", "InternalError"}
)
_REMEDIES = {
    "InvalidAccessKeyId": "the access key is unknown there; check AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "the session token has expired; renew the credentials.",
    "AccessDenied": "access denied; check the credentials and the bucket's policy.",
    "NoSuchBucket": "there is no such bucket; create it or correct the URL.",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it and start again.",
}
_BY_STATUS = {
    403: "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
    404: "there is no such bucket; create it or correct the URL.",
    301: "the bucket is in another region; add ?region=… to the URL.",
    507: "the server's disk is full; free some space and start again.",
}
_WIRE = (ConnectionError, TimeoutError)
_WIRE_ERRORS = (
    "HTTPClientError",  # timeouts, cut connections
    "ConnectionError",
    "IncompleteReadError",
    "ResponseStreamingError",
)
_building = threading.Lock()


@dataclass(frozen=True)
class S3Store(Store):
    """Built by `open_store`; holds no client and no credential, so it pickles small and safely."""

    bucket: str = ""
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    def put(self, key: str, data: bytes) -> None:
        target = self._target(key)
        self._ask("put", key, methodcaller("put_object", **target, Body=data))

    def put_new(self, key: str, data: bytes, writer: str | None = None) -> bool:
        target = self._target(key)
        token = writer or uuid.uuid4().hex

        def attempt(s3: Any) -> bool:
            try:
                s3.put_object(**target, Body=data, IfNoneMatch="*", Metadata={WRITER: token})
            except _errors().ClientError as error:
                if _status(error) != 412:
                    raise
                # Our own write may have taken effect and only its answer been lost.
                return bool(s3.head_object(**target)["Metadata"].get(WRITER) == token)
            return True

        return self._ask("put_new", key, attempt)

    def get(self, key: str) -> bytes:
        target = self._target(key)
        return self._ask("get", key, lambda s3: bytes(s3.get_object(**target)["Body"].read()))

    def exists(self, key: str) -> bool:
        target = self._target(key)
        try:
            self._ask("exists", key, methodcaller("head_object", **target))
        except KeyError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        # Sorted here: SeaweedFS lists folder by folder, which differs from S3's byte order.
        base = self._base + check_prefix(prefix)
        names = [entry["Key"] for page in self._pages(base) for entry in page.get("Contents", ())]
        skip = len(self._base)
        return iter(sorted(name[skip:] for name in names if not name.endswith("/")))

    def children(self, folder: str = "") -> Iterator[str]:
        check_prefix(folder)
        inside = folder.rstrip("/")
        base = f"{self._base}{inside}/" if inside else self._base
        names: set[str] = set()
        for page in self._pages(base, Delimiter="/"):
            names.update(entry["Key"] for entry in page.get("Contents", ()))
            names.update(entry["Prefix"] for entry in page.get("CommonPrefixes", ()))
        return iter(sorted(name[len(base) :] for name in names if name != base))

    def upload(self, path: str | Path, key: str) -> None:
        target = self._target(key)
        upload = methodcaller("upload_file", str(path), **target, Config=_transfer())
        self._ask("upload", key, upload, transfer=True)

    def download(self, key: str, path: str | Path) -> None:
        target = self._target(key)

        def attempt(s3: Any) -> None:
            with beside(path) as part:
                s3.download_file(**target, Filename=part, Config=_transfer())

        self._ask("download", key, attempt, transfer=True)

    def delete(self, key: str) -> None:
        target = self._target(key)
        self._ask("delete", key, methodcaller("delete_object", **target))

    def _probe(self) -> None:
        # Asked first, because SeaweedFS makes a missing bucket on the first write.
        self._ask("probe", self.bucket, methodcaller("head_bucket", Bucket=self.bucket))
        super()._probe()

    def _target(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._base + check_key(key)}

    @property
    def _base(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _pages(self, name: str, **options: str) -> Iterator[dict[str, Any]]:
        arguments = {"Bucket": self.bucket, "Prefix": name, **options}
        while True:
            page = self._ask("list", name, methodcaller("list_objects_v2", **arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            arguments = {**arguments, "ContinuationToken": page["NextContinuationToken"]}

    def _ask(self, verb: str, key: str, action: Callable[[Any], T], transfer: bool = False) -> T:
        """`action(client)` with retries; failures as KeyError, StoreError or StoreUnavailableError.

        Raised `from None`: a library's own message may quote headers or addresses.
        """
        hasty = self.patience <= PROBE_PATIENCE_S
        try:
            s3 = _client(self.endpoint, self.region, hasty, transfer, os.getpid(), _identity())
            return ride_out(
                lambda: action(s3),
                functools.partial(_counted, verb),
                self.patience,
                f"{verb} {key}",
            )
        except _caught() as error:
            raise self._explain(verb, key, error) from None

    def _explain(self, verb: str, key: str, error: Exception) -> Exception:
        code, status = _code(error), _status(error)
        if code == "NoSuchKey" or (status == 404 and code == "404" and verb != "probe"):
            return KeyError(key)  # "404" is a HEAD's whole answer
        where = f"{self.url}: {verb} {key}: "
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            return StoreError(
                where + "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        if code in _REMEDIES or status in _BY_STATUS:
            return StoreError(where + (_REMEDIES.get(code) or _BY_STATUS[status]))
        if not _transient(error):
            return StoreError(
                where + f"refused with {code or type(error).__name__} ({status or 'no status'})."
            )
        seen = (
            f"it answers {status} {code}"
            if status
            else f"it cannot be reached ({type(error).__name__})"
        )
        return StoreUnavailableError(
            where + f"{seen} for {self.patience:g} s; check the address and that the server runs."
        )


def _errors() -> Any:
    import botocore.exceptions

    return botocore.exceptions


@functools.cache
def _caught() -> tuple[type[Exception], ...]:
    import boto3.exceptions

    known = (_errors().BotoCoreError, _errors().ClientError, boto3.exceptions.Boto3Error)
    return (*known, ConnectionError, TimeoutError)


def _root(error: Exception) -> Exception:
    """boto3's transfers wrap the error that matters."""
    inner = error.__cause__ or error.__context__
    wrapped = type(error).__name__ in ("S3UploadFailedError", "RetriesExceededError")
    return inner if wrapped and isinstance(inner, Exception) else error


def _status(error: Exception) -> int:
    response = getattr(_root(error), "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: Exception) -> str:
    response = getattr(_root(error), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _counted(verb: str, error: Exception) -> bool:
    """`_transient`, which a running Ray session also counts: the store's board and alert."""
    found = _transient(error)
    if found and "ray" in sys.modules:
        from vla_platform import metrics  # imports Ray, which a store alone does not need

        metrics.count("vla_store_retries_total", verb=verb)
    return found


def _transient(error: Exception) -> bool:
    """Worth asking again: 5xx, 409, throttling, and everything that a cut wire can cause."""
    errors = _errors()
    root = _root(error)
    if isinstance(root, errors.ClientError):
        status = _status(root)
        overloaded = status >= 500 and status not in _BY_STATUS
        return overloaded or status in _TRANSIENT_STATUS or _code(root) in _TRANSIENT_CODES
    return isinstance(root, (*_WIRE, *(getattr(errors, name) for name in _WIRE_ERRORS)))


def _identity() -> tuple[str, int, int]:
    """Changes when the environment's credentials do, without holding them."""
    key, secret, token = (
        os.environ.get(f"AWS_{name}", "")
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    return key, hash(secret), hash(token)


def _client(*wanted: Any) -> Any:
    with _building:  # sixteen threads share one client instead of building sixteen
        return _built_client(*wanted)


@functools.lru_cache(maxsize=16)
def _built_client(
    endpoint: str,
    region: str,
    hasty: bool,
    transfer: bool,
    pid: int,
    identity: tuple[str, int, int],
) -> Any:
    """One client per process and use; pid, as a fork must not share its parent's sockets."""
    import boto3.session
    from botocore.config import Config

    config = Config(
        connect_timeout=1.0 if hasty else CONNECT_S,
        read_timeout=5.0 if hasty else READ_S,
        # ride_out retries, and knows what a 412 means; parts of a transfer retry by themselves.
        retries={"mode": "standard", "total_max_attempts": 5 if transfer else 1},
        max_pool_connections=64,
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    session = boto3.session.Session(region_name=region)
    return session.client("s3", endpoint_url=endpoint or None, config=config)


@functools.cache
def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8
    )
