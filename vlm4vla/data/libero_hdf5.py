"""LIBERO's released demonstrations: one HDF5 file per task.

Layout (libero-project.github.io, robomimic's): `<task>_demo.hdf5` with `data.attrs`
`problem_info` (JSON with `language_instruction`) and groups `data/demo_<i>` holding
`obs/agentview_rgb` uint8 [T, 128, 128, 3] and `actions` float64 [T, 7] in the controller's
units (±1; the gripper closes at +1). The stored frames are as OpenGL renders them; the
benchmark's observations and everybody's evaluators turn them by 180°, so this does too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from envs.api import ACTION_DIM, Demonstration
from vlm4vla.data.source import DAMAGE, BadEpisodeError, Entry, Source, demonstration, rotated

FRAMES = "obs/agentview_rgb"
_DEMO = re.compile(r"\w*_\d+", re.ASCII)
STILL = 1e-4
"""An arm action shorter than this moves nothing (`libero_*_no_noops`, OpenVLA's filter)."""


class LiberoHdf5(Source):
    """paths: `*_demo.hdf5` files, or folders of them.

    no_noops: leave out steps that neither move the arm nor change the gripper, as in
    `libero_10_no_noops`. That dataset also replayed what was left; here the frames stay those
    that were recorded, one control step apart where nothing was left out.
    """

    def __init__(self, paths: Sequence[Path], no_noops: bool = False) -> None:
        self.no_noops = no_noops
        self.variant = "no_noops" if no_noops else ""
        self.entries = [entry for file in _files(paths) for entry in _entries(file)]

    def load(self, entry: Entry) -> Demonstration:
        path, name, instruction = entry.ref
        with h5py.File(path, "r") as file:
            group = file[f"data/{name}"]
            images, actions = _array(group, FRAMES, entry), _array(group, "actions", entry)
        if self.no_noops and actions.shape == (len(images), ACTION_DIM):
            moves = moving(actions)
            images, actions = images[moves], actions[moves]
        return demonstration(instruction, rotated(images), actions)


def moving(actions: np.ndarray) -> np.ndarray:
    """bool [T]: which of actions [T, 7] move the arm or change the gripper's last kept command."""
    moves = np.linalg.norm(actions[:, :-1], axis=1) >= STILL
    gripper: float | None = None
    for step, command in enumerate(actions[:, -1]):
        moves[step] |= gripper is not None and command != gripper
        if moves[step]:
            gripper = command
    return moves


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        found = sorted(path.rglob("*.hdf5")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise FileNotFoundError(f"{path}: no .hdf5 files there")
        yield from found


def _entries(path: Path) -> list[Entry]:
    try:
        return list(_listed(path))
    except ValueError:
        raise
    except (OSError, *DAMAGE) as error:
        why = f"damaged or truncated ({error})"
        return [Entry(str(path), f"broken {path.name}", None, broken=why)]


def _listed(path: Path) -> Iterator[Entry]:
    with h5py.File(path, "r") as file:
        if "data" not in file:
            raise ValueError(f"{path}: no group `data`; is it a LIBERO demonstration file?")
        instruction = _instruction(path, file["data"])
        if strange := [name for name in file["data"] if not _DEMO.fullmatch(name)]:
            raise ValueError(f"{path}: data/{strange[0]} where demo_<number> belongs")
        for name in sorted(file["data"], key=lambda name: int(name.rpartition("_")[2])):
            ref = (path, name, instruction)
            yield Entry(f"{path}: data/{name}", _identity(file["data"][name], name), ref)


def _instruction(path: Path, data: h5py.Group) -> str:
    try:
        text = json.loads(data.attrs["problem_info"])["language_instruction"]
        # Some files hold a list of characters.
        return "".join(text).strip().strip('"')
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no language_instruction in data.attrs.problem_info") from error


def _identity(group: h5py.Group, name: str) -> str:
    """Of the actions: two episodes never share all of them."""
    try:
        return hashlib.sha256(np.asarray(group["actions"][()]).tobytes()).hexdigest()
    except (OSError, *DAMAGE):
        return f"unreadable {group.file.filename} {name}"


def _array(group: h5py.Group, name: str, entry: Entry) -> np.ndarray:
    try:
        return group[name][()]
    except KeyError as error:
        raise BadEpisodeError(entry.where, f"no dataset {name}") from error
    except OSError as error:
        raise BadEpisodeError(entry.where, f"{name} is damaged ({error})") from error
