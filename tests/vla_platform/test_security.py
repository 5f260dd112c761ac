"""A store that somebody wrote into: nothing in it is executed, and no path leaves its folder.

Also: no secret of the environment reaches rows, errors, pickles or messages.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError
from vla_platform import artifacts, submit
from vla_platform.ledger import Ledger
from vla_platform.local import LocalDataset
from vla_platform.rows import BrokenRowsError, Cell, Row
from vla_platform.store import Store, StoreError, open_store

from dashboards.archive import open_archive
from dashboards.runs import read_study
from envs.benchmarks import BENCHMARKS
from vlm4vla.data.dataset import Dataset
from vlm4vla.data.normalise import Statistics
from vlm4vla.export import load_policy, save_policy
from vlm4vla.policies import build_policy
from vlm4vla.run import Run

ROOT = Path(__file__).resolve().parents[2]
CELL = Cell(policy="w" * 64, benchmark="tabletop", horizon=4, fingerprint="f" * 64)
EPISODE = CELL.episode("reach", 0, 0, "reach the red block")
RUN = "0123456789abcdef"
PLANTED = {
    "AWS_ACCESS_KEY_ID": "planted-access-key-1",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key-2",
    "HF_TOKEN": "hf_planted-token-3",
    "WANDB_API_KEY": "planted-api-key-4",
}


# A poisoned store


class Bomb:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.crater),)


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    return tmp_path / "crater"


@pytest.fixture
def bomb(crater: Path) -> Iterator[bytes]:
    """Bytes that must never be unpickled; checked when the test is over."""
    yield pickle.dumps(Bomb(crater))
    assert not crater.exists(), "something read from the store was executed"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With a cache of its own: policies are cached by their weights' digest."""
    monkeypatch.setenv("VLA_HOME", str(tmp_path / "home"))
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def policy_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, row = tmp_path_factory.mktemp("policy"), BENCHMARKS["tabletop"]
    run = Run("tiny-paligemma-1", row.name, init="scratch").resolved(row.recipe)
    save_policy(build_policy(run, row.chunk), run, row, folder)
    return {
        name: (folder / name).read_bytes() for name in (artifacts.WEIGHTS, artifacts.DESCRIPTION)
    }


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put_policy(store: Store, files: dict[str, bytes], **marker: object) -> None:
    for name, data in files.items():
        store.put(f"policies/{RUN}/step-00000001/{name}", data)
    whole = {"digest": sha(files[artifacts.WEIGHTS]), "step": 1, **marker}
    store.put(f"policies/{RUN}/step-00000001/{artifacts.COMPLETE}", json.dumps(whole).encode())


def load_first(store: Store) -> object:
    return load_policy(artifacts.fetch_policy(store, artifacts.checkpoints(store, RUN)[0]))


def test_the_bomb_goes_off(tmp_path: Path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "hole")))
    assert (tmp_path / "hole").is_dir()


def test_an_untouched_policy_loads(store: Store, policy_files: dict[str, bytes]):
    put_policy(store, policy_files)
    assert load_first(store).batch_invariant in (True, False)


@pytest.mark.parametrize("name", [artifacts.WEIGHTS, artifacts.DESCRIPTION])
def test_a_pickle_for_a_policy(
    store: Store, bomb: bytes, policy_files: dict[str, bytes], name: str
):
    """Even when the marker's digest was made to match it."""
    put_policy(store, {**policy_files, name: bomb + uuid.uuid4().bytes})
    with pytest.raises((SafetensorError, ValueError)):
        load_first(store)


def test_a_pickle_for_a_marker(store: Store, bomb: bytes):
    store.put(f"policies/{RUN}/step-00000001/{artifacts.COMPLETE}", bomb)
    with pytest.raises(ValueError, match=f"{artifacts.COMPLETE} marks no checkpoint"):
        artifacts.checkpoints(store, RUN)
    for marker in ({}, {"step": "1", "digest": "a"}, {"step": 1, "digest": 2}, [], None):
        key = f"policies/{RUN}/step-00000001/{artifacts.COMPLETE}"
        store.put(key, json.dumps(marker).encode())
        with pytest.raises(ValueError, match="marks no checkpoint"):
            artifacts.checkpoints(store, RUN)


def manifest_for(shard: str, data: bytes) -> bytes:
    statistics = Statistics([0.0] * 7, [1.0] * 7, [0.0] * 7, [1.0] * 7, [-1.0] * 7, [1.0] * 7)
    fields = {"name": "d", "source": "s", "episodes": 1, "frames": 1}
    shards = [{"name": shard, "rows": 1, "sha256": sha(data)}]
    return json.dumps({**fields, "shards": shards, "statistics": vars(statistics)}).encode()


def open_dataset(store: Store, name: str) -> Dataset:
    data = LocalDataset.of(store, name)
    return Dataset(data.folder, 112, lambda image, px: image, data.fetch)


@pytest.mark.parametrize("poisoned", [artifacts.MANIFEST, "shard-00000.parquet"])
def test_a_pickle_for_a_dataset(store: Store, bomb: bytes, poisoned: str):
    name = uuid.uuid4().hex
    files = {artifacts.MANIFEST: manifest_for("shard-00000.parquet", bomb)}
    for file, data in {**files, "shard-00000.parquet": bomb, poisoned: bomb}.items():
        store.put(f"datasets/{name}/{file}", data)
    with pytest.raises((ValueError, TypeError)):
        open_dataset(store, name)


def test_pickles_for_rows(store: Store, bomb: bytes):
    ledger = Ledger(store)
    store.put(f"cells/{CELL.id}/episodes/{EPISODE.key}.parquet", bomb)
    store.put(f"cells/{CELL.id}/cell-{sha(bomb)[:32]}.parquet", bomb)
    assert len(ledger.read(CELL).problems) == 2
    with pytest.raises(BrokenRowsError):
        ledger.summary(CELL, [EPISODE])


def test_pickles_for_what_describes_rows(store: Store, bomb: bytes):
    ledger = Ledger(store)
    store.put(f"cells/{CELL.id}/cell.json", bomb)
    store.put(f"fingerprints/{'f' * 64}.json", bomb)
    store.put(f"cells/{CELL.id}/errors/{EPISODE.key}/{'0' * 32}.json", bomb)
    for read in (lambda: list(ledger.cells()), lambda: ledger.fingerprint("f" * 64)):
        with pytest.raises((BrokenRowsError, ValueError)):
            read()
    with pytest.raises(ValueError, match="decode"):
        ledger.errors(CELL)


def test_the_report_reads_a_poisoned_store(store: Store, bomb: bytes):
    of_cell = {
        f"cells/{CELL.id}/cell.json",
        f"cells/{CELL.id}/episodes/{EPISODE.key}.parquet",
        f"cells/{CELL.id}/cell-{sha(bomb)[:32]}.parquet",
    }
    of_run = {
        f"policies/{RUN}/step-00000001/{artifacts.COMPLETE}",
        f"policies/{RUN}/step-00000001/{artifacts.DESCRIPTION}",
        f"metrics/{RUN}/step-00000001.parquet",
    }
    for key in of_cell | of_run:
        store.put(key, bomb)
    study = read_study(open_archive(store.url))
    (cell,), (run,) = study.strangers, study.runs
    assert {problem.key for problem in cell.problems} == of_cell
    assert {problem.key for problem in run.problems} == of_run
    assert (cell.trials, run.checkpoints, run.metrics) == (0, {}, ())


UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
ALLOWED = {
    "vlm4vla/data/calvin.py": "CALVIN publishes a pickle; its unpickler admits arrays alone",
    "envs/libero_install.py": "initial states inside LIBERO's own package, read by its own child",
}


def unpicklings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            yield node.module
        elif isinstance(node, ast.Call):
            text = ast.unparse(node)
            careless = text.startswith("torch.load(") and "weights_only=True" not in text
            careless |= "allow_pickle=True" in text or ".extractall(" in text
            if careless or text.startswith(("yaml.load(", "eval(")):
                yield text


def test_no_code_of_ours_unpickles():
    found = {}
    for folder in ("vlm4vla", "envs", "platform", "dashboards", "jobs", "infra"):
        for path in (ROOT / folder).rglob("*.py"):
            if names := list(unpicklings(path.read_text())):
                found[str(path.relative_to(ROOT))] = names
    assert found.keys() == ALLOWED.keys(), found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p, allow_pickle=True)"],
)
def test_and_unpickling_would_be_seen(source: str):
    assert list(unpicklings(source))


# Paths that lead elsewhere


@pytest.mark.parametrize(
    "key", ["../out", "a/../../out", "/etc/out", "a//b", ".hidden", "a/./b", "a\\..\\b"]
)
def test_keys_stay_in_the_store(store: Store, tmp_path: Path, key: str):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for act in (
        lambda: store.put(key, b""),
        lambda: store.put_new(key, b""),
        lambda: store.upload(file, key),
        lambda: store.get(key),
        lambda: store.download(key, tmp_path / "copy"),
        lambda: store.delete(key),
    ):
        with pytest.raises(ValueError, match="key"):
            act()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["../out", "a/../../out", ".hidden"])
def test_dashboards_read_nothing_beyond_the_store(tmp_path: Path, key: str):
    (tmp_path / "store" / "a").mkdir(parents=True)
    for path in (tmp_path / "out", tmp_path / "store" / ".hidden"):
        path.write_bytes(b"not theirs")
    with pytest.raises(KeyError):
        open_archive(str(tmp_path / "store")).get(key)


@pytest.mark.parametrize("digest", ["../../escaped", "/tmp/escaped", "", "x" * 64, 7])
def test_a_markers_digest_names_no_folder_elsewhere(
    store: Store, policy_files: dict[str, bytes], digest: object
):
    put_policy(store, policy_files, digest=digest)
    with pytest.raises(ValueError, match="train the run again"):
        artifacts.fetch_policy(store, *artifacts.checkpoints(store, RUN))


def test_a_manifests_shards_lie_beside_it(store: Store, tmp_path: Path):
    name, elsewhere = uuid.uuid4().hex, tmp_path / "elsewhere.parquet"
    elsewhere.write_bytes(b"PAR1")
    store.put(f"datasets/{name}/{artifacts.MANIFEST}", manifest_for(str(elsewhere), b"PAR1"))
    with pytest.raises(ValueError, match="outside its folder"):
        open_dataset(store, name)


# Secrets


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def leaks(text: object) -> list[str]:
    return [value for value in PLANTED.values() if value in str(text)]


@pytest.mark.usefixtures("planted")
def test_no_secret_in_what_is_stored(store: Store):
    ledger = Ledger(store)
    outcome = {"success": True, "success_any": True, "success_last": True, "steps": 4, "replans": 1}
    rest = {"wall_s": 1.0, "finished_at": time.time(), "writer": uuid.uuid4().hex}
    ledger.commit(Row(EPISODE, **outcome, **rest))  # type: ignore[arg-type]
    ledger.record_error(EPISODE, "crash", f"child said: env={dict(os.environ)}", "n1")
    ledger.compact(CELL, [EPISODE])
    read = [ledger.read(CELL).table.to_pylist(), ledger.errors(CELL), list(ledger.cells())]
    assert "***" in str(ledger.errors(CELL)), "the error did hold secrets"
    assert not leaks(read)
    assert not leaks([store.get(key) for key in store.list()])


@pytest.mark.usefixtures("planted")
def test_no_secret_in_a_pickled_or_printed_store():
    store = open_store("s3://bucket/x?endpoint=http://127.0.0.1:9", patience=0.2)
    with pytest.raises(StoreError) as refused:
        store.probe()
    assert not leaks([store, repr(Ledger(store)), pickle.dumps(store), refused.value])


@pytest.mark.parametrize("url", ["s3://key:{}@bucket/x", "s3://bucket/x?secret={}", "s3://{}/x"])
@pytest.mark.usefixtures("planted")
def test_no_secret_in_the_error_about_a_url(url: str):
    with pytest.raises(ValueError, match="store URL") as refused:
        open_store(url.format(PLANTED["AWS_SECRET_ACCESS_KEY"].upper()))
    assert PLANTED["AWS_SECRET_ACCESS_KEY"].upper() not in str(refused.value)


@pytest.mark.usefixtures("planted")
def test_no_secret_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="secret of this environment") as refused:
        submit.entrypoint("jobs/study.py", ["--store", f"s3://b?key={PLANTED['HF_TOKEN']}"])
    assert not leaks(refused.value)
    (tmp_path / "infra").mkdir()
    (tmp_path / submit.RUNTIME_ENV).write_text(f"env_vars: {{HF_TOKEN: {PLANTED['HF_TOKEN']}}}")
    with pytest.raises(ValueError, match="shows it to everybody") as refused:
        submit.runtime_env(tmp_path)
    assert not leaks(refused.value)
    assert not leaks(submit.runtime_env(ROOT))
