"""Datasets in our own prepared format, read back as demonstrations: to export or to join them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.api import Demonstration
from vlm4vla.data.dataset import MANIFEST, SCHEMA, Manifest, sha256
from vlm4vla.data.frames import decode
from vlm4vla.data.source import BadEpisodeError, Entry, Source, demonstration


class Prepared(Source):
    """folder: `manifest.json` and its shards, as `vlm4vla.data.dataset` describes them."""

    def __init__(self, folder: Path) -> None:
        path = folder / MANIFEST
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: the dataset is not complete")
        self.entries = [
            Entry(f"{folder / shard.name}: episode {number}", f"{shard.sha256} {number}", ref)
            for shard in Manifest.from_bytes(path.read_bytes()).shards
            for number in _episodes(folder / shard.name, shard.sha256)
            for ref in [(folder / shard.name, number)]
        ]

    def load(self, entry: Entry) -> Demonstration:
        path, number = entry.ref
        try:
            rows = pq.read_table(path, schema=SCHEMA, filters=[("episode", "=", number)])
        except (pa.ArrowInvalid, OSError) as error:
            raise BadEpisodeError(entry.where, f"damaged ({error})") from error
        images = np.stack([decode(data) for data in rows["image"].to_pylist()])
        actions = np.array(rows["action"].to_pylist(), np.float32)
        return demonstration(rows["instruction"][0].as_py(), images, actions)


def _episodes(path: Path, digest: str) -> list[int]:
    data = path.read_bytes()
    if sha256(data) != digest:
        raise ValueError(f"{path} is damaged: its checksum differs from {MANIFEST}'s")
    return pq.read_table(io.BytesIO(data), columns=["episode"])["episode"].unique().to_pylist()
