"""LeRobot v3 datasets: many episodes per Parquet file and per video.

Layout (huggingface.co/docs/lerobot/lerobot-dataset-v3): `meta/info.json` (features, fps, path
templates), `meta/tasks.parquet` (instruction -> task_index), `meta/episodes/chunk-*/file-*.parquet`
(where each episode lies), `data/chunk-*/file-*.parquet` (one row a frame) and
`videos/CAMERA/chunk-*/file-*.mp4`. Frames may be PNG in the Parquet instead (dtype `image`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.api import Demonstration, did_you_mean
from vlm4vla.data.dataset import sha256
from vlm4vla.data.frames import decode
from vlm4vla.data.source import (
    BadEpisodeError,
    Entry,
    Source,
    demonstration,
    read_json,
    understood,
)

INFO, TASKS, EPISODES = "meta/info.json", "meta/tasks.parquet", "meta/episodes"
VERSION = "v3.0"


class LeRobotV3(Source):
    """folder: the dataset's root. camera: a video or image feature; the first one if None."""

    def __init__(self, folder: Path, camera: str | None = None) -> None:
        with understood(folder):
            self._open(folder, camera)

    def _open(self, folder: Path, camera: str | None) -> None:
        self.folder, self.info = folder, _info(folder)
        features = self.info["features"]
        cameras = [name for name, row in features.items() if row["dtype"] in ("video", "image")]
        if not cameras or (camera and camera not in cameras):
            raise did_you_mean(f"camera of {folder}", camera or "", tuple(cameras))
        self.camera = camera or cameras[0]
        self.video = features[self.camera]["dtype"] == "video"
        self.tasks = _tasks(folder / TASKS)
        self.entries = list(self._entries())
        rows = [entry.ref for entry in self.entries]
        # Episodes are listed by number alone; the metadata tells datasets apart.
        said = json.dumps([self.info, rows, self.tasks], default=str, sort_keys=True)
        self.variant = f"{self.camera} {sha256(said.encode())}"

    def _entries(self) -> Iterator[Entry]:
        for path in _episode_files(self.folder):
            for row, episode in enumerate(_table(path).to_pylist()):
                number = episode.get("episode_index", row)
                yield Entry(f"{path}: row {row} (episode {number})", f"episode {number}", episode)

    def load(self, entry: Entry) -> Demonstration:
        episode = entry.ref
        try:
            path = self._path("data_path", episode, "data")
            rows = _frames(path, episode, self._columns(), entry.where)
            images = self._images(rows, episode, entry.where)
            text = self._instruction(rows, entry.where)
        except KeyError as error:
            raise BadEpisodeError(entry.where, f"no column {error.args[0]}") from error
        return demonstration(text, images, _vectors(rows["action"], entry.where))

    def _columns(self) -> list[str]:
        return ["action", "timestamp", "task_index", *([] if self.video else [self.camera])]

    def _path(self, template: str, episode: Mapping[str, Any], key: str) -> Path:
        chunk, file = episode[f"{key}/chunk_index"], episode[f"{key}/file_index"]
        pattern = self.info[template]
        name = pattern.format(chunk_index=chunk, file_index=file, video_key=self.camera)
        return self.folder / name

    def _instruction(self, rows: pa.Table, where: str) -> str:
        index = rows["task_index"][0].as_py()
        if index not in self.tasks:
            raise BadEpisodeError(where, f"task {index} is not in {TASKS}: no instruction")
        return self.tasks[index]

    def _images(self, rows: pa.Table, episode: Mapping[str, Any], where: str) -> np.ndarray:
        if not self.video:
            return np.stack([decode(cell["bytes"]) for cell in rows[self.camera].to_pylist()])
        key = f"videos/{self.camera}"
        path = self._path("video_path", episode, key)
        times = rows["timestamp"].to_numpy() + episode[f"{key}/from_timestamp"]
        try:
            return read_video(path, times, self.info["fps"])
        except (av.error.FFmpegError, ValueError) as error:
            raise BadEpisodeError(f"{where}: {path}", str(error)) from error


def read_video(path: Path, times: np.ndarray, fps: float) -> np.ndarray:
    """The frames uint8 [T, H, W, 3] shown at `times`, ascending seconds, half a frame's tolerance.

    ValueError when the video has no frame at one of them.
    """
    slack = 0.5 / fps
    found: list[np.ndarray] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base or Fraction(1, 90_000)
        container.seek(max(0, int((times[0] - slack) / base)), stream=stream, backward=True)
        for frame in container.decode(stream):
            now = float((frame.pts or 0) * base)
            if now < times[len(found)] - slack:
                continue
            if now > times[len(found)] + slack:
                break
            found.append(frame.to_ndarray(format="rgb24"))
            if len(found) == len(times):
                return np.stack(found)
    raise ValueError(f"frame index {len(found)} is out of range: no frame at {times[len(found)]} s")


def _info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: give a LeRobot dataset's root folder")
    info = dict(read_json(path))
    if not str(info.get("codebase_version", "")).startswith("v3"):
        found = info.get("codebase_version")
        raise ValueError(f"{path}: version {found}, not v3; convert it with lerobot's own script")
    return info


def _tasks(path: Path) -> dict[int, str]:
    """task_index -> instruction, which pandas keeps in the table's index column."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: no instructions without it")
    table = _table(path)
    texts = next((name for name in table.column_names if name != "task_index"), "task")
    return dict(zip(table["task_index"].to_pylist(), table[texts].to_pylist(), strict=True))


def _episode_files(folder: Path) -> Sequence[Path]:
    found = sorted((folder / EPISODES).glob("*/*.parquet"))
    if not found:
        raise FileNotFoundError(f"{folder / EPISODES}: no Parquet files there")
    return found


def _table(path: Path) -> pa.Table:
    """All columns but the episodes' statistics, which nobody here reads."""
    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        return file.read(columns=names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error})") from error


def _frames(path: Path, episode: Mapping[str, Any], columns: list[str], where: str) -> pa.Table:
    """The episode's rows, in time order."""
    number, length = episode["episode_index"], episode["length"]
    try:
        wanted = [("episode_index", "=", number)]
        rows = pq.read_table(path, columns=[*columns, "frame_index"], filters=wanted)
    except FileNotFoundError as error:
        raise BadEpisodeError(where, f"{path} is missing") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadEpisodeError(f"{where}: {path}", f"damaged or truncated ({error})") from error
    rows = rows.sort_by("frame_index")
    if rows["frame_index"].to_pylist() != list(range(length)):
        held = rows.num_rows
        raise BadEpisodeError(where, f"{path} holds {held} frames of it; {length} are listed")
    return rows


def _vectors(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """List cells as [T, dims]; every row must be as long as the others."""
    rows = column.to_pylist()
    if len({len(row) for row in rows}) > 1:
        raise BadEpisodeError(where, "actions differ in length")
    return np.array(rows, np.float32)
