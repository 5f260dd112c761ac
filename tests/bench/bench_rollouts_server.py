"""A constant policy behind the peer's own model server; runs in the peer's interpreter.

    PEER_PYTHON tests/bench/bench_rollouts_server.py PORT HORIZON NOTES.jsonl

Writes a line when an episode starts (the peer has reset by then) and when it ends.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA

ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


class Constant(PredictModelServer):
    def __init__(self, horizon: int, notes: str) -> None:
        super().__init__(chunk_size=horizon)
        self.chunk = np.asarray([ACTION] * horizon, np.float32)
        self.notes = notes

    def predict(self, obs: Any, ctx: Any) -> dict[str, Any]:
        return {"actions": self.chunk.copy()}

    def get_action_spec(self) -> dict[str, Any]:
        return {
            "position": POSITION_DELTA,
            "rotation": ROTATION_AA,
            "gripper": GRIPPER_CLOSE_POS,
        }

    def get_observation_spec(self) -> dict[str, Any]:
        return {"agentview": IMAGE_RGB, "language": LANGUAGE}

    async def on_episode_start(self, config: dict[str, Any], ctx: Any) -> None:
        await super().on_episode_start(config, ctx)
        self._note("start", ctx, 0)

    async def on_episode_end(self, result: dict[str, Any], ctx: Any) -> None:
        await super().on_episode_end(result, ctx)
        self._note("end", ctx, int(result.get("steps", 0)))

    def _note(self, kind: str, ctx: Any, steps: int) -> None:
        entry = {"kind": kind, "shard": ctx.session_id, "steps": steps, "at": time.monotonic()}
        with open(self.notes, "a") as notes:
            notes.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    serve(Constant(int(sys.argv[2]), sys.argv[3]), host="127.0.0.1", port=int(sys.argv[1]))
