"""What each role may do with the store, asked of a real server that has the same policies."""

from __future__ import annotations

import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from vla_platform import artifacts
from vla_platform.candidates import import_folder
from vla_platform.ledger import Ledger
from vla_platform.rows import Cell, Row
from vla_platform.store import Store, StoreError, open_store

from infra.access import BUCKET, ROLES, Access, policy
from infra.services import Services

WRITES = ("s3:PutObject", "s3:DeleteObject")
As = Callable[[str], Store]


@pytest.fixture
def as_role(stored: Services, monkeypatch: pytest.MonkeyPatch) -> As:
    """The store as a role sees it; the last one asked for is who we are."""

    def become(role: str) -> Store:
        for name, value in stored.access().keys(role).items():
            monkeypatch.setenv(name, value)
        return open_store(stored.store_url, patience=10.0)

    return become


@pytest.fixture
def cell() -> Cell:
    return Cell(policy=uuid.uuid4().hex * 2, benchmark="tabletop", horizon=4, fingerprint="f" * 64)


def row(cell: Cell, state: int) -> Row:
    outcome = {"success": True, "success_any": True, "success_last": True, "steps": 4, "replans": 1}
    rest = {"wall_s": 1.0, "finished_at": time.time(), "writer": uuid.uuid4().hex}
    return Row(cell.episode("reach", state, 0, "reach"), **outcome, **rest)  # type: ignore[arg-type]


def finish(store: Store, cell: Cell) -> Ledger:
    ledger, rows = Ledger(store), [row(cell, state) for state in range(3)]
    assert all(map(ledger.commit, rows))
    assert ledger.compact(cell, [each.episode for each in rows])
    return ledger


def refuse(act: Callable[[], object]) -> None:
    with pytest.raises(StoreError, match="denied"):
        act()


def test_training_needs_no_delete(as_role: As, cell: Cell, tmp_path: Path):
    store = as_role("train")
    store.probe()
    finish(store, cell)
    for name in (artifacts.WEIGHTS, artifacts.DESCRIPTION):
        (tmp_path / name).write_bytes(b"w" * (17 << 20))  # more than one part
    run = uuid.uuid4().hex[:16]
    artifacts.publish_policy(store, run, 1, tmp_path)
    digest = artifacts.file_digest(tmp_path / artifacts.WEIGHTS)
    artifacts.complete_policy(store, run, 1, digest, attempt="a")
    store.put(f"{artifacts.state_prefix(run, 1, 'a')}/rank-0.safetensors", b"state")
    for key in (f"policies/{run}/step-00000001/{artifacts.COMPLETE}", f"cells/{cell.id}/cell.json"):
        refuse(lambda key=key: store.delete(key))
        assert store.exists(key)


def test_evaluating_reads_policies_and_writes_rows_and_outside_policies_alone(
    as_role: As, cell: Cell, tmp_path: Path
):
    training = as_role("train")
    training.put("policies/r/step-00000001/policy.json", b"{}")
    training.put("training/r/step-00000001/a/rank-0.safetensors", b"state")
    store = as_role("evaluate")
    store.probe()
    finish(store, cell)
    assert store.get("policies/r/step-00000001/policy.json") == b"{}"
    (tmp_path / artifacts.WEIGHTS).write_bytes(uuid.uuid4().bytes)
    (tmp_path / artifacts.DESCRIPTION).write_text('{"run": {}, "chunk": 4, "action_spec": {}}')
    outside = import_folder(store, tmp_path)
    assert import_folder(store, tmp_path) == outside
    for key in ("policies/r/step-00000001/policy.json", "training/r/step-00000002/a/x"):
        refuse(lambda key=key: store.put(key, b"forged"))
    refuse(lambda: store.get("training/r/step-00000001/a/rank-0.safetensors"))
    refuse(lambda: store.delete(f"cells/{cell.id}/cell.json"))


def test_reporting_only_reads(as_role: As, cell: Cell):
    finish(as_role("train"), cell)
    store = as_role("read")
    assert Ledger(store).read(cell).table.num_rows == 3
    for act in (
        lambda: store.put("cells/x", b""),
        lambda: store.delete(f"cells/{cell.id}/cell.json"),
    ):
        refuse(act)


def test_pruning_deletes_what_can_be_spared_and_writes_nothing(as_role: As, cell: Cell):
    training = as_role("train")
    finish(training, cell)
    training.put("datasets/d/manifest.json", b"{}")
    training.put("training/r/step-00000003/a/rank-0.safetensors", b"state")
    store = as_role("prune")
    assert Ledger(store).prune(cell) == 3
    store.delete("training/r/step-00000003/a/rank-0.safetensors")
    refuse(lambda: store.delete("datasets/d/manifest.json"))
    refuse(lambda: store.delete(f"cells/{cell.id}/cell.json"))
    refuse(lambda: store.put("cells/forged", b""))
    assert Ledger(store).read(cell).table.num_rows == 3


def test_strangers_are_refused_without_a_secret_in_the_message(
    stored: Services, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "vla-train")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-wrong-secret")
    with pytest.raises(StoreError, match="check AWS_") as refused:
        open_store(stored.store_url).probe()
    assert "planted" not in str(refused.value)
    assert stored.access().secrets["train"] not in str(refused.value)


@pytest.mark.parametrize("role", ROLES)
def test_policies_are_narrow(role: str):
    """For AWS, where these files are used as they are."""
    for statement in policy(role)["Statement"]:
        assert statement["Effect"] == "Allow"
        assert all("*" not in action for action in statement["Action"])
        assert all(target.startswith(f"arn:aws:s3:::{BUCKET}") for target in statement["Resource"])
        if role != "prune":
            assert "s3:DeleteObject" not in statement["Action"]
        writes = set(WRITES) & set(statement["Action"])
        if writes and role not in ("train", "prune"):
            assert not [
                t for t in statement["Resource"] if "training" in t or t.endswith("study/*")
            ]
            policies = [t for t in statement["Resource"] if "policies" in t]
            assert all(t.endswith("/policies/import-*") for t in policies)


def test_secrets_are_made_once_and_are_their_owners(tmp_path: Path):
    access = Access.in_folder(tmp_path / "services")
    access.write({"VLA_STORE": "s3://a/b c"})
    assert Access.in_folder(tmp_path / "services") == access
    for path in (tmp_path / "services").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert access.env_file.read_text() == "export VLA_STORE='s3://a/b c'\n"
    assert len(set(access.secrets.values())) == len(access.secrets)
    assert not [value for value in access.secrets.values() if value in repr(access.folder)]
