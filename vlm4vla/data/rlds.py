"""RLDS episodes in tensorflow-datasets' layout: Bridge V2 and LIBERO as the field trains on them.

Layout (tensorflow.org/datasets/external_tfrecord, github.com/google-research/rlds): a version
folder with `dataset_info.json` (splits and records per shard), `features.json` and
`NAME-SPLIT.tfrecord-00000-of-00016`, …. A record is one episode: a `tf.train.Example` whose
features are named by their path (`steps/observation/image_0`), T values in each; images are
JPEG or PNG. Bridge V2 holds episodes that nobody labelled: their empty instruction makes them
bad, so prepare it with `--skip-bad`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.api import ACTION_DIM, Demonstration, did_you_mean
from vlm4vla.data.frames import decode
from vlm4vla.data.source import (
    BadEpisodeError,
    Entry,
    Source,
    demonstration,
    read_json,
    understood,
)
from vlm4vla.data.tfrecord import Values, parse_example, read_record, records

_FILE = re.compile(r"(?P<name>.+)-(?P<split>\w+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
Steps = Mapping[str, Values]
Fix = Callable[[np.ndarray, np.ndarray | None], tuple[slice, np.ndarray]]


def _as_is(actions: np.ndarray, _: np.ndarray | None) -> tuple[slice, np.ndarray]:
    return slice(None), actions


def _bridge(actions: np.ndarray, state: np.ndarray | None) -> tuple[slice, np.ndarray]:
    """Which frames stay, and their actions [T', 7] in the simulator's units.

    As OpenVLA's `bridge_orig` transform, which the paper's code trains through: the first frame
    has no action, motions are those the arm made, the last frame has none. 0 closes the gripper
    there; -1 does here.
    """
    if state is None or state.shape[-1] < 6:
        raise ValueError("no steps/observation/state [T, 7] to take the arm's motion from")
    gripper = 2 * binary_gripper(actions[1:, -1]) - 1
    moved = np.diff(state[1:, :6], axis=0)
    return slice(1, -1), np.concatenate([moved, gripper[:-1, None]], axis=1)


def binary_gripper(values: np.ndarray) -> np.ndarray:
    """Openings [T] as 0 or 1; a value in between takes the next decided one (Octo, OpenVLA)."""
    out = np.empty_like(values)
    following = values[-1] if len(values) else 0.0
    for step in range(len(values) - 1, -1, -1):
        if values[step] > 0.95 or values[step] < 0.05:
            following = np.round(values[step])
        out[step] = following
    return out


@dataclass(frozen=True)
class Layout:
    """The features of one dataset family; `fix` gives frames and actions in our units."""

    image: str
    fix: Fix
    instruction: str = "steps/language_instruction"


LAYOUTS: Mapping[str, Layout] = {
    "bridge": Layout("steps/observation/image_0", _bridge),
    "libero": Layout("steps/observation/image", _as_is),
}
"""LIBERO's frames are stored turned by 180° already (`modified_libero_rlds`)."""


class Rlds(Source):
    """folder: a version folder (`bridge_orig/1.0.0`). layout: a row of LAYOUTS; by name if None."""

    def __init__(self, folder: Path, split: str = "train", layout: str | None = None) -> None:
        with understood(folder):
            info = _json(folder / "dataset_info.json")
            self.layout = _layout(layout or info["name"])
            self.variant = self.layout.image
            _check_features(folder / "features.json", self.layout)
            files = _files(folder, split)
            self.entries = [entry for file in files for entry in _entries(file)]
            _check_counts(folder, info, split, files, self.entries)

    def load(self, entry: Entry) -> Demonstration:
        path, record = entry.ref
        try:
            return self._episode(parse_example(read_record(path, record)))
        except KeyError as error:
            raise BadEpisodeError(entry.where, f"no feature {error.args[0]}") from error
        except (ValueError, OSError) as error:
            raise BadEpisodeError(entry.where, str(error)) from error

    def _episode(self, steps: Steps) -> Demonstration:
        frames, texts = steps[self.layout.image], steps[self.layout.instruction]
        if not isinstance(frames, list) or not isinstance(texts, list):
            raise ValueError("frames and instructions must be bytes")
        if not frames or not texts:
            raise ValueError("no frames" if texts else "no instruction")
        actions = _rows(steps["steps/action"], len(frames), "steps/action")
        state = steps.get("steps/observation/state")
        if actions.shape[1] != ACTION_DIM:
            raise ValueError(f"actions have {actions.shape[1]} dimensions, not {ACTION_DIM}")
        rows = None if state is None else _rows(state, len(frames), "steps/observation/state")
        stay, actions = self.layout.fix(actions, rows)
        images = [decode(frame) for frame in frames[stay]]
        return demonstration(texts[0].decode(), np.stack(images), actions)


def _rows(values: Values, steps: int, name: str) -> np.ndarray:
    """A flat feature as [T, dims]."""
    if isinstance(values, list):
        raise ValueError(f"{name} holds bytes, not numbers")
    flat = np.asarray(values)
    if flat.size % steps:
        raise ValueError(f"{name} has {flat.size} values for {steps} frames")
    return flat.reshape(steps, -1)


def _layout(name: str) -> Layout:
    for prefix, layout in LAYOUTS.items():
        if name.startswith(prefix):
            return layout
    raise did_you_mean("RLDS layout", name, LAYOUTS)


def _json(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: give a version folder, such as …/1.0.0")
    return dict(read_json(path))


def _check_features(path: Path, layout: Layout) -> None:
    """ValueError when the published schema lacks what the layout reads."""
    names = set(_leaves(_json(path)))
    missing = {layout.image, layout.instruction, "steps/action"} - names
    if missing:
        raise ValueError(f"{path}: no {sorted(missing)}; it has {sorted(names)}")


def _leaves(feature: Mapping, name: str = "") -> Iterator[str]:
    """Paths of features.json's leaves; a sequence adds no part to its path."""
    if "sequence" in feature:
        yield from _leaves(feature["sequence"].get("feature", {}), name)
    elif "featuresDict" in feature:
        for key, inner in feature["featuresDict"]["features"].items():
            yield from _leaves(inner, f"{name}/{key}" if name else key)
    else:
        yield name


def _files(folder: Path, split: str) -> list[Path]:
    """The split's shards in order; FileNotFoundError names those that are missing."""
    found: dict[int, Path] = {}
    count = 0
    for path in folder.iterdir():
        match = _FILE.fullmatch(path.name)
        if match and match["split"] == split:
            found[int(match["number"])], count = path, int(match["count"])
    missing = sorted(set(range(count)) - set(found))
    if missing or not found:
        what = f"shards {missing} of {count}" if found else "every shard"
        raise FileNotFoundError(f"{folder}: {what} of split {split!r} missing")
    return [found[number] for number in sorted(found)]


def _entries(path: Path) -> Iterator[Entry]:
    try:
        for number, record in enumerate(records(path)):
            identity = f"{record.length} {record.crc:08x}"
            yield Entry(f"{path}: record {number}", identity, (path, record))
    except ValueError as error:
        yield Entry(str(path), f"broken {path.name}", (path, None), broken=str(error))


def _check_counts(
    folder: Path, info: Mapping, split: str, files: list[Path], entries: list[Entry]
) -> None:
    """ValueError when a shard holds other than dataset_info.json says."""
    row = next((row for row in info.get("splits", []) if row["name"] == split), None)
    if row is None or "shardLengths" not in row:
        return
    held = Counter(entry.ref[0] for entry in entries)
    broken = {entry.ref[0] for entry in entries if entry.broken}
    for path, told in zip(files, row["shardLengths"], strict=False):
        if held[path] != int(told) and path not in broken:
            raise ValueError(
                f"{path} holds {held[path]} episodes, {folder}/dataset_info.json says {told}"
            )
