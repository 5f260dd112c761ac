"""Small datasets in the layouts that CALVIN, LIBERO, OXE and LeRobot publish.

CALVIN: github.com/mees/calvin, dataset/README.md. LIBERO: robomimic's HDF5, as its
`create_dataset.py` writes it. RLDS: tensorflow-datasets' folder of TFRecords. LeRobot v3 is
written by `vlm4vla.data.lerobot_write`.
"""

import io
import json

import h5py
import numpy as np
from PIL import Image

from vlm4vla.data.tfrecord import build_example, write_records


def smooth(steps, side, seed=0):
    """Frames uint8 [T, side, side, 3] that differ from each other and survive compression."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (steps, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(f).resize((side, side), 3)) for f in coarse])


def actions(steps, seed=0):
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-1, 1, (steps, 7))
    moves[:, 6] = np.where(moves[:, 6] < 0, -1.0, 1.0)
    return moves


def calvin(folder, spans, texts, last=None):
    """A split with the time steps that the spans cover; returns (frames, actions) by step."""
    folder.mkdir(parents=True)
    steps = (max(b for _, b in spans) if last is None else last) + 1
    frames, moves = smooth(steps, 20), actions(steps)
    for step in range(steps):
        np.savez(
            folder / f"episode_{step:07d}.npz",
            rgb_static=frames[step],
            rgb_gripper=frames[step][:8, :8],
            rel_actions=moves[step],
            actions=moves[step],
            robot_obs=np.zeros(15),
        )
    annotate(folder, spans, texts)
    return frames, moves


def annotate(folder, spans, texts):
    (folder / "lang_annotations").mkdir(exist_ok=True)
    content = {
        "language": {"ann": texts, "task": ["t"] * len(texts), "emb": np.zeros((len(texts), 1, 4))},
        "info": {"episodes": [], "indx": spans},
    }
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", content, allow_pickle=True)


def libero(path, lengths, instruction="put the bowl on the plate"):
    """One task's file; returns its (frames, actions) by demonstration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": list(instruction)})
        data.attrs["num_demos"] = len(lengths)
        for number, steps in enumerate(lengths):
            frames, moves = smooth(steps, 16, number), actions(steps, number)
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = steps
            group["obs/agentview_rgb"] = frames
            group["obs/eye_in_hand_rgb"] = frames
            group["actions"] = moves
            made.append((frames, moves))
    return made


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def rlds_record(steps, seed, image="image_0", text="put the spoon on the towel", dims=7):
    """One episode's record with its (frames, actions, state)."""
    frames, moves = smooth(steps, 16, seed), actions(steps, seed)[:, :dims].astype(np.float32)
    moves[:, -1] = (moves[:, -1] + 1) / 2 if image == "image_0" else moves[:, -1]
    state = np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)
    features = {
        f"steps/observation/{image}": [png(frame) for frame in frames],
        "steps/observation/state": state,
        "steps/action": moves,
        "steps/language_instruction": [text.encode()] * steps,
        "steps/is_first": np.arange(steps) == 0,
        "episode_metadata/file_path": [b"somewhere"],
    }
    return build_example(features), (frames, moves, state)


def rlds(folder, name, shards, image="image_0"):
    """A version folder whose shards are lists of records."""
    folder.mkdir(parents=True)
    for number, payloads in enumerate(shards):
        path = folder / f"{name}-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        write_records(path, payloads)
    lengths = [str(len(payloads)) for payloads in shards]
    split = {"name": "train", "shardLengths": lengths, "numBytes": "1"}
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    leaf = {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor"}
    steps = {
        "observation": {"featuresDict": {"features": {image: leaf, "state": leaf}}},
        "action": leaf,
        "language_instruction": leaf,
    }
    step = {"featuresDict": {"features": steps}}
    features = {"steps": {"sequence": {"feature": step}}}
    schema = {"featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(schema))
