"""Demonstrations as a LeRobot v3 dataset, so that what is collected here is usable elsewhere.

The layout is the one `lerobot_v3` describes. Frames go into the Parquet as exact PNG, or into
H.264 videos (smaller, lossy). Everything is written beside the final folder and renamed last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.api import ACTION_DIM, Demonstration
from vlm4vla.data.frames import encode_png
from vlm4vla.data.lerobot_v3 import EPISODES, INFO, TASKS, VERSION

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA = f"data/{FILE}.parquet"
VIDEO = f"videos/{{video_key}}/{FILE}.mp4"
CAMERA = "observation.images.image"
AXES = ["x", "y", "z", "rx", "ry", "rz", "gripper"]
COUNTERS = ("frame_index", "episode_index", "index", "task_index")
EPISODES_PER_FILE = 100
CHUNK_FILES = 1000


@dataclass
class _State:
    """What has been written so far."""

    tasks: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    """Per episode: the mean and the mean square of each channel, in 0..1."""
    frames: int = 0
    shape: tuple[int, ...] = ()


def write_lerobot(
    folder: Path, demos: Iterable[Demonstration], fps: int, robot: str, video: bool = True
) -> int:
    """Write a dataset to `folder`, which must not exist; returns its number of episodes.

    fps: control steps a second. robot: `robot_type`, such as "panda".
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder or remove it")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    state = _State()
    for number, group in enumerate(_groups(demos)):
        _write_file(part, number, group, fps, video, state)
    if not state.episodes:
        raise ValueError(f"no episodes to write to {folder}")
    _write_meta(part, fps, robot, video, state)
    part.rename(folder)
    return len(state.episodes)


def _groups(demos: Iterable[Demonstration]) -> Iterator[Iterator[Demonstration]]:
    """The episodes of one file after those of another, never more than one in memory."""
    stream = iter(demos)
    for first in stream:
        yield _some(first, stream)


def _some(first: Demonstration, rest: Iterator[Demonstration]) -> Iterator[Demonstration]:
    yield first
    for _ in range(EPISODES_PER_FILE - 1):
        if (demo := next(rest, None)) is None:
            return
        yield demo


def _write_file(
    root: Path, number: int, demos: Iterable[Demonstration], fps: int, video: bool, state: _State
) -> None:
    """One data file and its video; a row group per episode, as lerobot's own writer does."""
    place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
    data, film = root / DATA.format(**place), root / VIDEO.format(video_key=CAMERA, **place)
    data.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(data, _schema(video), compression="snappy"))
        camera = stack.enter_context(_Film(film, fps)) if video else None
        for demo in demos:
            row = {"data": place, **({f"videos/{CAMERA}": place} if video else {})}
            episode = _remember(state, demo, row)
            if camera is not None:
                start = camera.add(demo.images)
                times = {"from_timestamp": start, "to_timestamp": start + len(demo.images) / fps}
                episode |= {f"videos/{CAMERA}/{name}": time for name, time in times.items()}
            writer.write_table(_rows(demo, episode, fps, video, state))


def _remember(state: _State, demo: Demonstration, places: Mapping[str, Any]) -> dict[str, Any]:
    """The episode's row of `meta/episodes`; its numbers continue the ones before."""
    if state.shape and demo.images.shape[1:] != state.shape:
        raise ValueError(f"frames of {demo.images.shape[1:]} after frames of {state.shape}")
    state.shape = demo.images.shape[1:]
    state.tasks.setdefault(demo.instruction, len(state.tasks))
    episode: dict[str, Any] = {
        "episode_index": len(state.episodes),
        "tasks": [demo.instruction],
        "length": demo.steps,
        "dataset_from_index": state.frames,
        "dataset_to_index": state.frames + demo.steps,
        **{f"{key}/{name}": at for key, place in places.items() for name, at in place.items()},
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    state.episodes.append(episode)
    state.frames += demo.steps
    state.actions.append(demo.actions)
    state.pixels.append(_moments(demo.images))
    return episode


def _moments(images: np.ndarray) -> np.ndarray:
    """float64 [2, 3] of a sample of the episode's pixels: mean and mean square per channel."""
    sample = images[:: max(1, len(images) // 8), ::4, ::4].reshape(-1, 3) / 255.0
    return np.stack([sample.mean(0), (sample**2).mean(0)])


def _rows(
    demo: Demonstration, episode: Mapping[str, Any], fps: int, video: bool, state: _State
) -> pa.Table:
    steps = np.arange(demo.steps)
    actions = pa.FixedSizeListArray.from_arrays(demo.actions.ravel(), ACTION_DIM)
    columns: dict[str, Any] = {
        "action": actions,
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(demo.steps, episode["episode_index"]),
        "index": steps + episode["dataset_from_index"],
        "task_index": np.full(demo.steps, state.tasks[demo.instruction]),
    }
    if not video:
        columns[CAMERA] = [{"bytes": encode_png(image), "path": None} for image in demo.images]
    return pa.Table.from_pydict(columns, schema=_schema(video))


def _schema(video: bool) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        ("action", pa.list_(pa.float32(), ACTION_DIM)),
        ("timestamp", pa.float32()),
        *((name, pa.int64()) for name in COUNTERS),
        *([] if video else [(CAMERA, image)]),
    ]
    return pa.schema(fields)


class _Film:
    """One H.264 file; a key frame every second frame, so that any frame is read quickly."""

    def __init__(self, path: Path, fps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.container, self.fps, self.count = av.open(str(path), "w"), fps, 0
        self.stream = self.container.add_stream(
            "libx264", rate=fps, options={"crf": "18", "g": "2", "bf": "0"}
        )
        self.stream.pix_fmt = "yuv420p"

    def __enter__(self) -> _Film:
        return self

    def add(self, images: np.ndarray) -> float:
        """Append frames uint8 [T, H, W, 3]; returns the second at which they begin."""
        if not self.count:
            self.stream.height, self.stream.width = images.shape[1:3]
        if images.shape[1] % 2 or images.shape[2] % 2:
            raise ValueError(f"videos need even sides, not {images.shape[1:3]}; write images")
        start = self.count / self.fps
        for image in images:
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(image)))
        self.count += len(images)
        return start

    def __exit__(self, *_: object) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


def _write_meta(root: Path, fps: int, robot: str, video: bool, state: _State) -> None:
    path = root / EPISODES / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(state.episodes), path)
    pq.write_table(_task_table(state.tasks), root / TASKS)
    (root / "meta/stats.json").write_text(json.dumps(_stats(state), indent=1))
    (root / INFO).write_text(json.dumps(_info(fps, robot, video, state), indent=1))


def _task_table(tasks: Mapping[str, int]) -> pa.Table:
    """As pandas writes a frame whose index is the instruction; lerobot looks tasks up in it."""
    table = pa.table({"task_index": list(tasks.values()), "task": list(tasks)})
    column = {"name": "task", "field_name": "task", "pandas_type": "unicode"}
    index = {**column, "numpy_type": "object", "metadata": None}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [index]}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _stats(state: _State) -> dict[str, dict[str, Any]]:
    actions = np.concatenate(state.actions).astype(np.float64)
    mean, square = np.mean(state.pixels, axis=0)
    spread = np.sqrt(np.maximum(square - mean**2, 0.0))
    ends = {"min": np.zeros(3), "max": np.ones(3)}
    channels = {"mean": mean, "std": spread, **ends}
    quantiles = {f"q{q:02d}": np.quantile(actions, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    columns = {"min": actions.min(0), "max": actions.max(0), "mean": actions.mean(0)}
    columns |= {"std": actions.std(0), **quantiles}
    count = [len(actions)]
    return {
        "action": {**{name: value.tolist() for name, value in columns.items()}, "count": count},
        CAMERA: {
            **{name: value.reshape(3, 1, 1).tolist() for name, value in channels.items()},
            "count": count,
        },
    }


def _info(fps: int, robot: str, video: bool, state: _State) -> dict[str, Any]:
    height, width = state.shape[:2]
    camera: dict[str, Any] = {"dtype": "video" if video else "image"}
    camera |= {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
    if video:
        shown = {"video.height": height, "video.width": width, "video.fps": fps}
        codec = {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.channels": 3}
        camera["info"] = {**shown, **codec, "video.is_depth_map": False, "has_audio": False}
    return {
        "codebase_version": VERSION,
        "robot_type": robot,
        "total_episodes": len(state.episodes),
        "total_frames": state.frames,
        "total_tasks": len(state.tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(state.episodes)}"},
        "data_path": DATA,
        "video_path": VIDEO if video else None,
        "features": {
            "action": {"dtype": "float32", "shape": [ACTION_DIM], "names": AXES},
            CAMERA: camera,
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{name: {"dtype": "int64", "shape": [1], "names": None} for name in COUNTERS},
        },
    }
