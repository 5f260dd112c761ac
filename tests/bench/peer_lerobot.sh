#!/usr/bin/env bash
# The peer of bench_data.py, in an environment of its own: tests/bench/peer_lerobot.sh
#
# LeRobot's dataset and loader, as `lerobot-dataset` packages them without its robots and policies
# (lerobot itself pins an older torch than this machine may have), with torchcodec, its faster video decoder, where
# this machine has the FFmpeg libraries that torchcodec loads. tests/vlm4vla/test_data_lerobot.py
# finds it there, too.
set -euo pipefail

home=${VLA_HOME:-$HOME/.vla}
peer=$home/peers/lerobot

"${PYTHON:-python3.11}" -m venv "$peer"
"$peer/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 torchcodec lerobot-dataset==0.4.4 h5py
"$peer/bin/python" -c 'import torchcodec' 2>/dev/null ||
    echo "no FFmpeg libraries here: lerobot decodes with PyAV (apt-get install ffmpeg)" >&2
echo "the peer is ready in $peer"
