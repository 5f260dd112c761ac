"""A whole study as the role that cannot delete, and where its secret key went: nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from vla_platform.store import StoreError, open_store

from infra.services import Services

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--backbones", "tiny-paligemma-1", "--init", "scratch", "--steps", "4", "--batch", "8"),
    *("--trials", "2", "--demonstrations", "3", "--videos", "1"),
]


@pytest.mark.full
def test_a_study_needs_no_delete_and_leaves_its_secret_nowhere(
    stored: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = stored.access().keys("train")
    secret = keys["AWS_SECRET_ACCESS_KEY"]
    with tempfile.TemporaryDirectory(prefix="lp-", dir="/tmp", ignore_cleanup_errors=True) as short:
        out = subprocess.run(
            [sys.executable, "jobs/backbone_sweep.py", *SMALL, "--json", str(tmp_path / "rows")],
            cwd=ROOT,
            env={
                **os.environ,
                **keys,
                "VLA_STORE": stored.store_url,
                "VLA_HOME": str(tmp_path / "home"),
                "TMPDIR": short,  # Ray's logs go there
                "HF_TOKEN": "planted-token-of-the-hub",
            },
            capture_output=True,
            text=True,
            timeout=420,
        )
        assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-2000:]
        logs = [path for path in Path(short).rglob("*") if path.is_file()]
        assert len(logs) > 10
        texts = [path.read_bytes() for path in logs]
    texts += [out.stdout.encode(), out.stderr.encode(), (tmp_path / "rows").read_bytes()]
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    store = open_store(stored.store_url)
    names = list(store.list())
    for folder in ("cells", "datasets", "policies", "training", "metrics", "videos"):
        assert any(name.startswith(f"{folder}/") for name in names), folder
    for number, name in enumerate(names):
        texts.append(store.get(name))
        if name.endswith(".parquet"):  # compressed: a secret in it would not be seen as it is
            store.download(name, tmp_path / f"{number}.parquet")
            texts.append(str(pq.read_table(tmp_path / f"{number}.parquet").to_pylist()).encode())
    for planted in (secret.encode(), b"planted-token-of-the-hub"):
        assert not [text[:200] for text in texts if planted in text]
    with pytest.raises(StoreError, match="denied"):
        store.delete(names[0])
    assert json.loads((tmp_path / "rows").read_text())
