#!/usr/bin/env bash
# The peer of bench_sft.py, in an environment of its own: tests/bench/peer_trl.sh
#
# TRL beside the torch and transformers of our own .venv, through a .pth file, so both sides
# compute with the same kernels. Where that .venv is absent, torch comes by itself.
set -euo pipefail

home=${VLA_HOME:-$HOME/.vla}
root=$(cd "$(dirname "$0")/../.." && pwd)
peer=$home/peers/trl

"${PYTHON:-python3.11}" -m venv "$peer"
site=$("$peer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/ours.pth"
"$peer/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 trl==1.16.0
echo "the peer is ready in $peer"
