#!/usr/bin/env bash
# The peer of bench_serving.py: tests/bench/peer_openpi.sh [SRC]
#
# openpi's own policy server beside the packages of our .venv: its checkout, of which only the
# server is imported, and openpi-client, which holds its wire format. SRC: a checkout on disk.
set -euo pipefail

url=https://github.com/Physical-Intelligence/openpi
commit=15a9616a00943ada6c20a0f158e3adb39df2ccac
root=$(cd "$(dirname "$0")/../.." && pwd)
peer=${VLA_HOME:-$HOME/.vla}/peers/openpi

rm -rf "$peer"
mkdir -p "$peer"
GIT_LFS_SKIP_SMUDGE=1 git clone -q --no-checkout "${1:-$url}" "$peer/openpi"
git -C "$peer/openpi" checkout -q --detach "$commit"
"$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$peer/client" openpi-client==0.1.2
echo "the peer is ready in $peer"
