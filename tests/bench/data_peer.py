"""LeRobot's loader and writer, run by the interpreter of tests/bench/peer_lerobot.sh.

data_peer.py read FOLDER BATCH CHUNK       take turns reading a dataset, see data_turns.py
data_peer.py write FRAMES.npz FOLDER       a dataset of those frames, as lerobot records one
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from data_turns import serve
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

try:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
except ImportError:  # lerobot-dataset: the same loader, packaged alone
    from ledataset.datasets.lerobot_dataset import LeRobotDataset

CAMERA, FPS = "observation.images.image", 20
WORKERS, AHEAD = 2, 2


def shift(image: Tensor) -> Tensor:
    """As `vlm4vla.data.augment.shift`, on lerobot's float [3, H, W]."""
    side = image.shape[-1]
    reach = round(10 / 224 * side)
    row, column = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    wide = pad(image[None], (reach,) * 4, mode="replicate")[0]
    return wide[:, row : row + side, column : column + side]


def read(folder: str, batch: str, chunk: str) -> None:
    ahead = [step / FPS for step in range(int(chunk))]
    data = LeRobotDataset(
        "local/set", root=folder, delta_timestamps={"action": ahead}, image_transforms=shift
    )
    loader = DataLoader(
        data,
        batch_size=int(batch),
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        prefetch_factor=AHEAD,
        persistent_workers=True,
    )
    serve(_endless(loader), int(batch), WORKERS * AHEAD)


def _endless(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


def write(source: str, folder: str) -> None:
    rows = np.load(source)
    side = rows["frames"].shape[1]
    features = {
        CAMERA: {"dtype": "video", "shape": (side, side, 3), "names": ["h", "w", "c"]},
        "action": {"dtype": "float32", "shape": (7,), "names": list("xyzrpyg")},
    }
    data = LeRobotDataset.create("local/set", fps=FPS, features=features, root=Path(folder))
    for index, episode in enumerate(rows["episodes"]):
        if index and episode != rows["episodes"][index - 1]:
            data.save_episode()
        frame = {CAMERA: rows["frames"][index], "action": rows["actions"][index]}
        data.add_frame({**frame, "task": "pick it up"})
    data.save_episode()
    data.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
