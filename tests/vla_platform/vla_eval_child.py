"""Run with vla-eval's own Python: its client asks our server, or its server answers our pool.

vla_eval_child.py ask URL OUT.npy        three observations of one episode, the actions saved
vla_eval_child.py serve MODE             prints its port; answers whole chunks of four actions,
                                         or (MODE single) one of them at a time
"""

import socket
import sys

import anyio
import numpy as np
from vla_eval.connection import Connection
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import GRIPPER_CLOSE_NEG, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_EULER


async def ask(url, out):
    frame = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    seen = {"images": {"agentview": frame}, "task_description": "reach the red block"}
    async with Connection(url) as line:
        assert line.server_info["action_spec"]["gripper"]["format"] == "binary_close_positive"
        await line.start_episode({"task": {"name": "reach"}})
        said = ""
        try:
            await line.act({"images": {"agentview": frame[0]}, "task_description": "reach"})
        except RuntimeError as error:
            said = str(error)
        assert "must be uint8 [height, width, 3]" in said, said
        np.save(out, [(await line.act(seen))["actions"] for _ in range(3)])
        await line.end_episode({"success": False})


class Cosine(PredictModelServer):
    """Actions that depend on the frame, as those of tests/vla_platform/policy_server.py."""

    def predict(self, obs, ctx):
        seen = obs["images"]["agentview"][::32, ::32].astype(np.float64).sum()
        first = np.cos(seen + np.arange(7))
        return {"actions": np.stack([first, first / 2, first / 4, first / 8])}

    def get_action_spec(self):
        return {
            "position": POSITION_DELTA,
            "rotation": ROTATION_EULER,
            "gripper": GRIPPER_CLOSE_NEG,
        }

    def get_observation_spec(self):
        return {"agentview": IMAGE_RGB, "language": LANGUAGE}


def answer(mode):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)  # noqa: T201
    serve(Cosine(chunk_size=4 if mode == "single" else None), "127.0.0.1", port)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        anyio.run(ask, *sys.argv[2:])
    else:
        answer(sys.argv[2])
