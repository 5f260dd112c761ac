"""Serve a LeRobot checkpoint by openpi's protocol, with the Python of LeRobot's own environment.

    make lerobot
    PYTHONPATH=.:platform ~/.vla/policies/lerobot/bin/python -m vla_platform.serve_lerobot \\
        --policy FOLDER --benchmark libero_10 --port 8001
    .venv/bin/python jobs/evaluate.py --policy ws://127.0.0.1:8001 --benchmark libero_10 \\
        --adapter libero

A checkpoint says nothing of what its actions mean: --benchmark does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from envs.api import ACTION_DIM, Observation
from envs.benchmarks import benchmark
from vla_platform import artifacts, cli
from vla_platform.serving import LOOPBACK, TOKEN, WRIST_KEY, PolicyServer, check_address

WEIGHTS = "model.safetensors"


class LeRobotPolicy:
    """A checkpoint's folder as a policy: its own preprocessing, one chunk, its postprocessing.

    The first camera of its config sees the main image, the second the wrist's. ValueError for
    a policy that looks at several moments, because an observation is one.
    """

    batch_invariant = False

    def __init__(self, folder: Path) -> None:
        # From LeRobot's environment, which the project's own knows nothing of.
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(folder)
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check(config, folder)
        self.config = config
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        there = {"device_processor": {"device": config.device}}
        self.before, self.after = make_pre_post_processors(
            config, str(folder), preprocessor_overrides=there
        )

    @staticmethod
    def _check(config: Any, folder: Path) -> None:
        if config.n_obs_steps != 1:
            raise ValueError(
                f"{folder}: a {config.type} policy that looks at {config.n_obs_steps} moments "
                "cannot be served, because an observation is one moment"
            )
        width = config.action_feature.shape[0]
        if width != ACTION_DIM:
            raise ValueError(f"{folder}: actions have {width} numbers, not {ACTION_DIM}")

    @property
    def chunk(self) -> int:
        return int(self.config.n_action_steps)

    def group(self, observation: Observation) -> int:
        return 0

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], length: int | None) -> np.ndarray:
        return np.stack([self._one(observation) for observation in observations])

    def _one(self, observation: Observation) -> np.ndarray:
        """float32 [k, 7]. A stochastic policy draws from the observation's seed."""
        torch.manual_seed(observation.seed)
        self.policy.reset()
        chunk = self.policy.predict_action_chunk(self.before(self.batch(observation)))
        steps = [self.after(chunk[:, step]) for step in range(self.chunk)]
        return torch.cat(steps).float().cpu().numpy()

    def batch(self, observation: Observation) -> dict[str, Any]:
        """LeRobot's names; ValueError for what the policy looks at and was not sent."""
        frames = [observation.image, *observation.views.values()]
        cameras = self.config.image_features
        if len(frames) < len(cameras):
            raise ValueError(
                f"the policy looks at {len(cameras)} cameras ({', '.join(cameras)}), so send "
                f"{WRIST_KEY!r} as well (evaluate.py --adapter libero does)"
            )
        sent: dict[str, Any] = {"task": observation.instruction}
        for (name, feature), frame in zip(cameras.items(), frames, strict=False):
            sent[name] = picture(frame, feature.shape)
        if self.config.robot_state_feature is not None:
            sent["observation.state"] = self._state(observation)
        return sent

    def _state(self, observation: Observation) -> Tensor:
        (width,) = self.config.robot_state_feature.shape
        state = np.asarray([] if observation.state is None else observation.state, np.float32)
        if state.shape != (width,):
            raise ValueError(
                f"the policy looks at a state of {width} numbers, it was sent {list(state.shape)}"
            )
        return torch.from_numpy(state)


def picture(frame: np.ndarray, shape: Sequence[int]) -> Tensor:
    """uint8 [H, W, 3] as float32 [3, h, w] in [0, 1], of the size that the policy declares."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    if pixels.shape[1:] != tuple(shape):
        size = (int(shape[1]), int(shape[2]))
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return pixels[0]


def main() -> int:
    args = arguments()
    token = os.environ.get(TOKEN) or None
    check_address(args.host, token)
    folder = args.policy
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} is no LeRobot checkpoint: it has no {WEIGHTS}")
    policy = LeRobotPolicy(folder)
    declared = {
        "policy": artifacts.file_digest(folder / WEIGHTS),
        "backbone": f"LeRobot's {policy.config.type}",
        "chunk": policy.chunk,
        "action_spec": asdict(benchmark(args.benchmark).action_spec),
    }
    server = PolicyServer(policy, np.asarray, declared, token, batch=1, threads=args.threads)
    with server.listen(args.host, args.port) as listening:
        address = "ws://{}:{}".format(*listening.socket.getsockname()[:2])
        cli.write_json(args.json, [{"url": address, **declared}])
        print(f"serving {declared['backbone']} of {folder} at {address}", flush=True)  # noqa: T201
        listening.serve_forever()
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog=f"Clients must show the token in {TOKEN}, where that is set.",
    )
    parser.add_argument("--policy", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--benchmark", required=True, help="whose units and signs it speaks")
    parser.add_argument("--host", default=LOOPBACK, help="others than this machine need a token")
    parser.add_argument("--port", type=int, default=8001, help="0 for any free one")
    parser.add_argument("--threads", type=cli.positive, default=os.cpu_count(), help="of the model")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the address here")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
