"""Folder and S3 behave alike: atomic puts, one winner, sorted lists, honest errors."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_platform.store import Store, StoreError, check_key, check_prefix, open_store

from tests.seaweed import Seaweed

AWKWARD = ["a-b", "a/b", "a.c", "ab", "a/0/x", "a=1/b@2,c:3~d+e", "B", "_x/1"]


def test_put_get_overwrite_and_delete(store: Store):
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert store.get("a/b") == b"two"
    assert store.exists("a/b") and not store.exists("a") and not store.exists("a/c")
    store.delete("a/b")
    store.delete("a/b")
    with pytest.raises(KeyError, match="a/b"):
        store.get("a/b")


def test_empty_and_binary_values(store: Store):
    data = bytes(range(256)) * 5000
    assert store.put_new("binary", data)
    store.put("empty", b"")
    assert store.get("binary") == data and store.get("empty") == b""


def test_put_new_keeps_the_first(store: Store):
    assert store.put_new("k", b"first")
    assert not store.put_new("k", b"second")
    assert store.get("k") == b"first"


def test_list_is_sorted_and_children_are_direct(store: Store):
    for key in AWKWARD:
        store.put(key, b"")
    assert list(store.list()) == sorted(AWKWARD)
    assert list(store.list("a")) == sorted(key for key in AWKWARD if key.startswith("a"))
    assert list(store.list("a/")) == ["a/0/x", "a/b"]
    assert list(store.list("nothing/")) == []
    assert list(store.children("a")) == list(store.children("a/")) == ["0/", "b"]
    assert list(store.children()) == ["B", "_x/", "a-b", "a.c", "a/", "a=1/", "ab"]
    assert list(store.children("nothing")) == []


def test_list_pages_past_a_thousand(store: Store):
    keys = [f"many/{index:05d}" for index in range(1_050)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert list(store.list("many/")) == keys
    assert list(store.children("many")) == [key.removeprefix("many/") for key in keys]


def test_upload_and_download_in_parts(store: Store, tmp_path: Path):
    source, copy = tmp_path / "source", tmp_path / "deep" / "copy"
    source.write_bytes(os.urandom(33 << 20))
    store.upload(source, "big/file")
    store.download("big/file", copy)
    assert copy.read_bytes() == source.read_bytes()
    assert list(copy.parent.iterdir()) == [copy]


def test_a_failed_download_leaves_nothing(store: Store, tmp_path: Path):
    with pytest.raises(KeyError, match="absent"):
        store.download("absent", tmp_path / "copies" / "copy")
    assert not (tmp_path / "copies").exists() or not list((tmp_path / "copies").iterdir())


@pytest.mark.parametrize(
    "race", [0, *(pytest.param(n, marks=pytest.mark.full) for n in range(1, 10))]
)
def test_sixteen_writers_have_one_winner(store: Store, race: int):
    ready = threading.Barrier(16)

    def write(index: int) -> tuple[int, bool]:
        ready.wait()
        return index, store.put_new("contended", b"%d" % index)

    with ThreadPoolExecutor(16) as pool:
        winners = [index for index, won in pool.map(write, range(16)) if won]
    assert len(winners) == 1
    assert store.get("contended") == b"%d" % winners[0]


def test_readers_never_see_a_part(store: Store):
    """One overwrites with blocks of one byte value; the other must never see two values."""
    store.put("block", b"a" * 300_000)

    def overwrite() -> None:
        for letter in b"bcdefghijk":
            store.put("block", bytes([letter]) * 300_000)

    reads = 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(overwrite)
        while not (writing.done() and reads):
            data, reads = store.get("block"), reads + 1
            assert len(data) == 300_000 and len(set(data)) == 1
        writing.result()


def test_a_store_pickles_small_and_works_elsewhere(store: Store):
    store.put("k", b"v")
    blob = pickle.dumps(store)
    assert len(blob) < 500
    script = "import sys, pickle; print(pickle.load(sys.stdin.buffer).get('k').decode())"
    path = os.pathsep.join(["platform", "."])
    out = subprocess.run(
        [sys.executable, "-c", script],
        input=blob,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.decode().strip() == "v"


def test_the_url_opens_the_same_store(store: Store):
    assert open_store(store.url) == store


def test_probe_accepts_a_good_store_again(store: Store):
    store.probe()
    store.probe()


def test_file_urls_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    open_store("here").put("k", b"v")
    assert open_store(f"file://{tmp_path}/here").get("k") == b"v"
    assert open_store("here").url == str(tmp_path / "here")


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/x",
        "",
        "s3://",
        "s3://Bad_Bucket/x",
        "s3://bucket/a/../b",
        "s3://bucket/x?password=1",
        "s3://bucket/x?endpoint=ftp://host",
    ],
)
def test_bad_urls_are_refused(url: str):
    with pytest.raises(ValueError, match=r"store|S3"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA1:planted@bucket/x",
        "s3://bucket/x?endpoint=http://me:planted@host:1",
        "s3://bucket/x?secret_key=planted",
    ],
)
def test_credentials_in_a_url_are_refused_unseen(url: str):
    with pytest.raises(ValueError, match="credentials") as caught:
        open_store(url)
    assert "planted" not in str(caught.value)


def test_the_endpoint_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    store = open_store("s3://bucket/x")
    assert store.url == "s3://bucket/x?endpoint=http://127.0.0.1:9&region=eu-west-1"
    assert open_store("s3://bucket/x?endpoint=127.0.0.1:8&scheme=http") == open_store(
        "s3://bucket/x?endpoint=http://127.0.0.1:8"
    )


BAD_KEYS = ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a/./b", ".hidden", "a\\b", "a b", "é"]


@pytest.mark.parametrize("key", [*BAD_KEYS, "a\0b", "a\nb", "x" * 241, "x/" * 500 + "x"])
def test_bad_keys_are_refused(key: str, tmp_path: Path):
    store = open_store(str(tmp_path))
    for action in (store.get, store.exists, store.delete, lambda key: store.put(key, b"")):
        with pytest.raises(ValueError, match="key"):
            action(key)
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=20))
@settings(max_examples=60)
def test_an_accepted_key_stays_inside_the_store(key: str):
    try:
        check_key(key)
    except ValueError:
        return
    root = Path("/root/of/store")
    assert Path(os.path.normpath(root / key)) == root / key
    assert (root / key).is_relative_to(root) and root / key != root
    assert key.isascii() and key.isprintable()


@given(st.from_regex(r"[a-z_=@][a-z.]{0,5}(/[a-z_][a-z.]{0,5}){0,3}", fullmatch=True))
@settings(max_examples=60)
def test_plain_keys_are_accepted_and_every_beginning_is_a_prefix(key: str):
    assert check_key(key) == key
    for end in range(len(key) + 1):
        if "/." not in key[:end]:
            assert check_prefix(key[:end]) == key[:end]


@pytest.mark.parametrize("prefix", ["../", "/a", "a/../", ".tmp/", "a\\"])
def test_bad_prefixes_are_refused(store: Store, prefix: str):
    with pytest.raises(ValueError, match="store"):
        list(store.list(prefix))


def test_a_file_is_not_a_folder(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("a", b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.put("a/b", b"")


def test_temporary_files_are_never_listed(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("a", b"")
    (tmp_path / ".tmp" / "leftover").write_bytes(b"half")
    assert list(store.list()) == ["a"] and list(store.children()) == ["a"]


def test_probe_sweeps_old_leftovers_only(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("a", b"")
    old, young = tmp_path / ".tmp" / "old", tmp_path / ".tmp" / "young"
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.probe()
    assert not old.exists() and young.exists()


_WRITE_FOREVER = """
import os, sys
from vla_platform.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
for index in range(10**9):
    letter = bytes([97 + index % 26])
    store.put_new(f"new/{index}", letter * 200_000)
    store.put("same", letter * 200_000)
"""


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_of_a_writer_leaves_nothing_half_done(tmp_path: Path, seed: int):
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITE_FOREVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["platform", "."])},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    time.sleep(0.15 + 0.037 * seed)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    store = open_store(str(tmp_path))
    keys = list(store.list())
    assert len(keys) > 1
    for key in keys:
        data = store.get(key)
        assert len(data) == 200_000 and len(set(data)) == 1, key
    last = max(int(key.removeprefix("new/")) for key in keys if key != "same")
    assert store.put_new(f"new/{last + 1}", b"the next writer is not blocked")


def test_read_only_and_full_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(str(tmp_path))

    def fail(number: int):
        def link(*paths: object) -> None:
            raise OSError(number, os.strerror(number))

        return link

    for number, words in ((28, "disk is full"), (30, "write access"), (13, "write access")):
        monkeypatch.setattr(os, "replace", fail(number))
        with pytest.raises(StoreError, match=words):
            store.probe()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder nobody can write to")
def test_probe_refuses_a_folder_that_cannot_be_made():
    with pytest.raises(StoreError, match="store folder /proc/nowhere"):
        open_store("/proc/nowhere").probe()


def test_probe_names_a_missing_bucket(seaweed_server: Seaweed):
    url = f"s3://no-such-bucket/x?endpoint={seaweed_server.endpoint}"
    with pytest.raises(StoreError, match="no such bucket; create it"):
        open_store(url).probe()


def test_probe_names_an_unreachable_host_within_seconds():
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store("s3://exp/x?endpoint=http://127.0.0.1:1").probe()
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_named_and_not_shown(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(name, "planted-wrong-value")
    store = open_store(s3_url)
    with pytest.raises(StoreError, match="AWS_") as caught:
        store.probe()
    seen = f"{caught.value!r} {caught.value} {store!r} {pickle.dumps(store)!r}"
    assert not re.search("planted", seen)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_missing_credentials_are_named(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        open_store(s3_url).probe()


def test_a_full_disk_at_the_destination_is_named(store: Store, tmp_path: Path, monkeypatch):
    store.put("k", b"v")

    def fail(*paths: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match=r"cannot write .*disk is full"):
        store.download("k", tmp_path / "copies" / "copy")
    assert list((tmp_path / "copies").iterdir()) == []
