#!/usr/bin/env bash
# LeRobot in an environment of its own, to serve its checkpoints: make lerobot
#
# LeRobot asks for an older torch than the project does, so the two cannot share one. What serves
# (vla_platform.serve_lerobot) needs little more than LeRobot itself.
set -euo pipefail

home=${VLA_HOME:-$HOME/.vla}/policies/lerobot
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "LeRobot needs Python 3.11: install it or set PYTHON" >&2; exit 1; }
[ -x "$home/bin/python" ] || "$python" -m venv "$home"
"$home/bin/python" -m pip install --quiet --disable-pip-version-check lerobot==0.4.4 websockets msgpack
"$home/bin/python" -c 'import lerobot.policies.factory'
echo "LeRobot is ready in $home; it serves a checkpoint with: PYTHONPATH=.:platform $home/bin/python -m vla_platform.serve_lerobot"
