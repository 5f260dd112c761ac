#!/usr/bin/env bash
# The peer of bench_rollouts.py, in an environment of its own: make bench-peer
#
# vla-eval and the torch that its LIBERO adapter imports. LIBERO itself is the very copy that our
# children use, through a .pth file, so both sides simulate with the same packages.
set -euo pipefail

home=${VLA_HOME:-$HOME/.vla}
libero=$home/simulators/libero
peer=$home/peers/vla-eval
[ -x "$libero/bin/python" ] || { echo "the peer simulates with our LIBERO: run \`make libero\` first" >&2; exit 1; }
"$libero/bin/python" -c 'import libero' || { echo "LIBERO in $libero is incomplete: run \`make libero\` first" >&2; exit 1; }

"${PYTHON:-python3.11}" -m venv "$peer"
site=$("$peer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$libero/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/libero.pth"
"$peer/bin/python" -m pip install --quiet --disable-pip-version-check vla-eval==0.8.0 torch==2.13.0
echo "the peer is ready in $peer"
