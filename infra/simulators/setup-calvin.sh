#!/usr/bin/env bash
# What pip cannot do for CALVIN (called by setup.sh): its checkouts. The simulator has to sit in
# a git checkout, since its constructor asks for its own commit.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bash "$here/checkouts.sh" "$1" "$2" "$here/requirements-calvin.txt" calvin_env
