"""The smallest policy server of openpi's protocol: `websockets` alone, none of our wire code.

    python tests/vla_platform/policy_server.py MODE [PORT]

It prints its port. Modes: answer, declare, named, other, nan, short, fail, garbage, mute, slow,
drop, steady (thinks 50 ms), libero (is asked as openpi's LIBERO policies are).
"""

from __future__ import annotations

import itertools
import sys
import time

import msgpack
import numpy as np
from websockets.sync.server import ServerConnection, serve

SPEC = {
    "translation_scale": 0.05,
    "rotation": "euler",
    "rotation_scale": 0.5,
    "gripper_close": -1,
}
"""The tabletop's, but with the other gripper sign."""
METADATA = {
    "answer": {},
    "declare": {"action_spec": SPEC, "checkpoint": "a", "reset_pose": np.zeros(3)},
    "named": {"action_spec": SPEC, "checkpoint": "π0"},
    "libero": {},
    "other": {"action_spec": {**SPEC, "rotation": "axis_angle"}},
}


def encode(value):
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return value


def decode(value):
    if b"__ndarray__" in value:
        return np.ndarray(
            buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"]
        )
    return value


def actions(mode: str, seen: dict) -> np.ndarray:
    """A function of the frame, so that asking twice is seen to give the same."""
    image = seen["observation/image"]
    assert image.shape == (224, 224, 3) and image.dtype == np.uint8
    assert isinstance(seen["prompt"], str)
    if mode == "libero":
        assert seen["observation/wrist_image"].shape == (224, 224, 3)
        assert seen["observation/state"].shape == (8,)
    chunk = np.zeros((1 if mode == "short" else 10, 8), np.float64)  # padded, as openpi's are
    chunk[:, :7] = np.cos(image[::32, ::32].astype(np.float64).sum() + np.arange(7))
    return chunk * np.nan if mode == "nan" else chunk


COUNT = itertools.count()


def handler(mode: str, connection: ServerConnection) -> None:
    metadata = METADATA.get(mode, METADATA["declare"])
    if mode == "mute":
        time.sleep(30)
    connection.send("hello" if mode == "garbage" else msgpack.packb(metadata, default=encode))
    for message in connection:
        if mode == "fail":
            connection.send("Traceback (most recent call last):\nValueError: no such robot")
            connection.close(code=1011)
            return
        if mode == "slow":
            time.sleep(30)
        if mode == "steady":
            time.sleep(0.05)
        if mode == "drop" and next(COUNT) % 7 == 3:
            connection.socket.close()
            return
        seen = msgpack.unpackb(message, object_hook=decode)
        answer = {"actions": actions(mode, seen), "server_timing": {"infer_ms": 1.0}}
        connection.send(msgpack.packb(answer, default=encode))


def main(mode: str, port: int = 0) -> None:
    with serve(lambda c: handler(mode, c), "127.0.0.1", port, compression=None) as server:
        print(server.socket.getsockname()[1], flush=True)  # noqa: T201
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
