"""Run with openpi-client's own Python: asks the server at a port, saves the actions it gets."""

import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, out = sys.argv[1:]
policy = WebsocketClientPolicy("127.0.0.1", int(port))
assert policy.get_server_metadata()["policy"] == "some-weights"
image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
said = ""
try:
    policy.infer({"image": image[0], "prompt": "reach the red block"})
except RuntimeError as error:
    said = str(error)
assert "must be uint8 [height, width, 3]" in said, said
answer = policy.infer({"image": image, "prompt": "reach the red block"})
np.save(out, answer["actions"])
