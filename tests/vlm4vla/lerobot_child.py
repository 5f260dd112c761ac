"""Run by the interpreter of an environment that has lerobot: reads our dataset, writes its own.

lerobot_child.py read FOLDER OUT.npz      every row of a dataset, as lerobot's loader gives it
lerobot_child.py write ROWS.npz FOLDER KIND   those rows as image or video, by lerobot's writer
"""

import sys
from pathlib import Path

import numpy as np

try:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
except ImportError:  # lerobot-dataset: the same loader, packaged alone
    from ledataset.datasets.lerobot_dataset import LeRobotDataset

CAMERA = "observation.images.image"


def read(folder: str, out: str) -> None:
    data = LeRobotDataset("local/set", root=folder)
    rows = [data[index] for index in range(len(data))]
    frames = [np.round(255 * row[CAMERA].numpy().transpose(1, 2, 0)) for row in rows]
    np.savez(
        out,
        frames=np.stack(frames).astype(np.uint8),
        actions=np.stack([row["action"].numpy() for row in rows]),
        tasks=[row["task"] for row in rows],
        episodes=[int(row["episode_index"]) for row in rows],
    )


def write(source: str, folder: str, kind: str) -> None:
    rows = np.load(source)
    side = rows["frames"].shape[1]
    features = {
        CAMERA: {"dtype": kind, "shape": (side, side, 3), "names": ["h", "w", "c"]},
        "action": {"dtype": "float32", "shape": (7,), "names": list("xyzrpyg")},
    }
    data = LeRobotDataset.create(
        "local/set", fps=10, features=features, root=Path(folder), use_videos=kind == "video"
    )
    for index in range(len(rows["frames"])):
        if index and rows["episodes"][index] != rows["episodes"][index - 1]:
            data.save_episode()
        frame = {CAMERA: rows["frames"][index], "action": rows["actions"][index]}
        data.add_frame({**frame, "task": str(rows["tasks"][index])})
    data.save_episode()
    data.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
