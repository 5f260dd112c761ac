"""Published demonstrations as a list of episodes that can be read one by one, in any order.

A reader lists its episodes cheaply (no frames), so that a dataset can be cut into shards that
many workers read at once. Whatever is wrong is said with the file and the row it is in.
"""

from __future__ import annotations

import hashlib
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.api import ACTION_DIM, Demonstration

DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, SyntaxError, MemoryError, EOFError, struct.error),
)
"""What decoders of files raise for damaged ones, beside OSError, which may be the disk's."""


class BadEpisodeError(ValueError):
    """One episode cannot be used; the message names its file and row."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


@dataclass(frozen=True)
class Entry:
    """One episode in a listing.

    where: "file: row" for people. identity: equal for the same episode listed twice, and the
    same wherever the data lies. ref: what the reader needs to find it. broken: why nothing from
    here on can be read, where a damaged file hides its episodes.
    """

    where: str
    identity: str
    ref: Any
    broken: str = ""


class Source(ABC):
    """A published dataset; picklable, so that workers on other machines can read it."""

    entries: Sequence[Entry]
    variant: str = ""
    """Whatever else decides what is read: a camera, a filter, a layout."""

    @abstractmethod
    def load(self, entry: Entry) -> Demonstration:
        """The episode; ValueError when it is damaged, OSError when its disk fails."""

    def read(self, index: int) -> Demonstration:
        """Episode `index`, checked; BadEpisodeError names its file and row."""
        entry = self.entries[index]
        if entry.broken:
            raise BadEpisodeError(entry.where, entry.broken)
        first = self._first()[entry.identity]
        if first != index:
            raise BadEpisodeError(entry.where, f"duplicate of {self.entries[first].where}")
        try:
            demo = self.load(entry)
        except BadEpisodeError:
            raise
        except (ValueError, KeyError) as error:
            raise BadEpisodeError(entry.where, str(error)) from error
        except DAMAGE as error:
            raise BadEpisodeError(entry.where, f"{type(error).__name__}: {error}") from error
        check(demo, entry.where)
        return demo

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Demonstration]:
        return (self.read(index) for index in range(len(self)))

    def fingerprint(self) -> str:
        """Hash of what is listed, in order: the same data at another place has the same."""
        text = "\n".join([self.variant, *(entry.identity for entry in self.entries)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _first(self) -> dict[str, int]:
        """Where each identity is listed first; made once per process."""
        if "_firsts" not in self.__dict__:
            listed = reversed(list(enumerate(self.entries)))
            self._firsts = {entry.identity: index for index, entry in listed}
        return self._firsts

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_firsts"}


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """ValueError that names the path for whatever its damage makes a reader trip over."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
            raise
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged, or not what it is read as ({why})") from error


def read_json(path: Path) -> Any:
    """ValueError that names the file when it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def check(demo: Demonstration, where: str) -> None:
    """BadEpisodeError unless frames, actions and instruction are what a policy trains on."""
    steps = len(demo.images)
    if not steps:
        raise BadEpisodeError(where, "no frames")
    if demo.images.dtype != np.uint8 or demo.images.ndim != 4 or demo.images.shape[-1] != 3:
        found = f"{demo.images.dtype} {list(demo.images.shape)}"
        raise BadEpisodeError(where, f"frames are {found}, not uint8 [T, H, W, 3]")
    if demo.actions.shape != (steps, ACTION_DIM):
        found = f"actions {list(demo.actions.shape)} for {steps} frames"
        raise BadEpisodeError(where, f"{found}, expected [{steps}, {ACTION_DIM}]")
    if not np.isfinite(demo.actions).all():
        row = int(np.argwhere(~np.isfinite(demo.actions))[0, 0])
        raise BadEpisodeError(where, f"action {row} is not finite: {demo.actions[row].tolist()}")
    if not isinstance(demo.instruction, str):
        raise BadEpisodeError(where, f"the instruction is a {type(demo.instruction).__name__}")
    if not demo.instruction.strip():
        raise BadEpisodeError(where, "the instruction is empty")


def demonstration(instruction: str, images: np.ndarray, actions: np.ndarray) -> Demonstration:
    """A published episode: contiguous frames uint8 [T, H, W, 3], actions as float32 [T, 7]."""
    frames = np.ascontiguousarray(images)
    return Demonstration(instruction, frames, actions.astype(np.float32), True, len(frames))


def rotated(images: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] turned by 180°."""
    return images[:, ::-1, ::-1]
