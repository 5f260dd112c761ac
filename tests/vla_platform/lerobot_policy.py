"""Run with LeRobot's own Python: a checkpoint of random weights, and what LeRobot makes of it.

    lerobot_policy.py FOLDER FRAME.npy OUT.npy [KIND]

FOLDER is what LeRobot's training saves; OUT are the actions its own loop executes. KIND is act,
or diffusion, which looks at two moments (and for which nothing is put out).
"""

import sys

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

CAMERA, WRIST, STATE, SIDE = (
    "observation.images.image", "observation.images.image2", "observation.state", 96
)  # fmt: skip
SIZES = {
    "act": {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1,
            "pretrained_backbone_weights": None, "use_vae": False, "chunk_size": 6,
            "n_action_steps": 4},
    "diffusion": {"down_dims": (32, 64), "n_obs_steps": 2, "crop_shape": None},
}  # fmt: skip


def build(kind):
    camera = PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
    seen = {CAMERA: camera, WRIST: camera, STATE: PolicyFeature(FeatureType.STATE, (8,))}
    features = {
        "input_features": seen,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
    }
    config = make_policy_config(kind, device="cpu", push_to_hub=False, **features, **SIZES[kind])
    torch.manual_seed(0)
    return config, get_policy_class(kind)(config).eval()


def statistics():
    picture, action = torch.full((3, 1, 1), 0.5), torch.arange(7.0)
    eight = torch.zeros(8)
    each = {CAMERA: picture, WRIST: picture, "action": action, STATE: eight}
    return {
        name: {"mean": mean, "std": 1 + mean, "min": mean - 1, "max": mean + 1}
        for name, mean in each.items()
    }


def main(folder, frame, out, kind="act"):
    config, policy = build(kind)
    before, after = make_pre_post_processors(config, dataset_stats=statistics())
    for part in (policy, before, after):
        part.save_pretrained(folder)
    if kind != "act":
        return
    image = torch.from_numpy(np.load(frame)).permute(2, 0, 1).float() / 255
    state = torch.tensor([1.0, 2, 3, 0, 0, 0, 4, 5])
    seen = {CAMERA: image, WRIST: image.flip(1), STATE: state, "task": "reach the red block"}
    with torch.no_grad():
        actions = [after(policy.select_action(before(dict(seen)))) for _ in range(4)]
    np.save(out, torch.cat(actions).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
