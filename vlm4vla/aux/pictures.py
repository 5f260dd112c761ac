"""Pictures of question-answer data as published: files, bytes, base64, several, or a video."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov")
FRAMES = 9
"""Frames of a video, evenly spaced, that are shown as one sheet."""
LONGEST_PATH = 1024
"""A longer string is a picture in base64, not a path."""
Pixels = UInt8[np.ndarray, "H W 3"]


def load(folder: Path, value: Any) -> Pixels:
    """One picture from what a row holds; OSError or ValueError when it cannot be read.

    Backbones are shown one picture, so several of them, and frames of a video, become a sheet.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") else value.get("path")
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sheet([load(folder, each) for each in value])
    if not isinstance(value, str):
        raise ValueError(f"a picture cannot be {type(value).__name__}")
    if value.startswith("data:") or len(value) > LONGEST_PATH:
        return _decoded(_from_base64(value))
    if Path(value).suffix.lower() in VIDEOS:
        return sheet(_frames(_inside(folder, value)))
    return _decoded(_inside(folder, value).read_bytes())


def sheet(images: Sequence[Pixels]) -> Pixels:
    """Pictures as the cells of a near-square sheet, row by row, each of the first one's size."""
    if len(images) == 1:
        return images[0]
    height, width = images[0].shape[:2]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    out = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        cell = Image.fromarray(image).resize((width, height))
        out[top : top + height, left : left + width] = np.asarray(cell)
    return out


def _inside(folder: Path, name: str) -> Path:
    """The file, which must lie below the data's folder."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"the picture {name!r} lies outside {folder}")
    if not path.exists() and (folder / "images" / name).exists():
        return folder / "images" / name
    return path


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.split(",", 1)[-1], validate=True)
    except binascii.Error as error:
        raise ValueError(f"a picture is not base64 ({error})") from error


def _decoded(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _frames(path: Path) -> list[Pixels]:
    """`FRAMES` frames of a video, from the first to the last; fewer of a shorter one."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not frames:
        raise ValueError(f"{path.name} has no frames")
    wanted = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    return [frames[index] for index in wanted]
