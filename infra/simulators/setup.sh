#!/usr/bin/env bash
# Build one simulator's own interpreter: bash infra/simulators/setup.sh NAME [SRC]
#
# NAME: libero, calvin or simpler. SRC: folder with checkouts, for the two that come from GitHub.
# The environment lies in $VLA_HOME/simulators/NAME (default ~/.vla). A second run with the same
# requirements ends at once.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
name=${1:-}
src=${2:-}
requirements=$here/requirements-$name.txt
system=$here/system-$name.txt
extra=$here/setup-$name.sh

if [ -z "$name" ] || [ ! -f "$requirements" ]; then
    echo "usage: setup.sh NAME [SRC]; NAME is one of:" "$(cd "$here" && ls requirements-*.txt | sed 's/requirements-\(.*\)\.txt/\1/' | tr '\n' ' ')" >&2
    exit 2
fi
if [ -n "$src" ]; then
    src=$(cd "$src" && pwd) || { echo "SRC=$2 is not a folder" >&2; exit 2; }
fi

home=${VLA_HOME:-$HOME/.vla}/simulators/$name
stamp=$home/.stamp
want=$(cat "$0" "$requirements" $(ls "$system" "$extra" 2>/dev/null) <(echo "$src") | sha256sum | cut -d' ' -f1)

# Each line of system-NAME.txt: a library's soname and the Debian package that has it.
missing_packages() {
    [ -f "$system" ] || return 0
    grep -v '^#' "$system" | while read -r soname package; do
        ldconfig -p 2>/dev/null | grep -q "$soname" || find /usr/lib -name "$soname*" 2>/dev/null | grep -q . || echo "$package"
    done
}

install_packages() {
    local missing
    missing=$(missing_packages | sort -u | tr '\n' ' ')
    [ -n "${missing// /}" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get install -y -q $missing >/dev/null 2>&1 || { apt-get update -q >/dev/null && apt-get install -y -q $missing >/dev/null; } || true
        missing=$(missing_packages | sort -u | tr '\n' ' ')
        [ -n "${missing// /}" ] || return 0
    fi
    echo "$name renders with system libraries that are missing here; as root: apt-get install -y $missing" >&2
}

install_packages
if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && [ -x "$home/bin/python" ]; then
    echo "$name is ready in $home"
    exit 0
fi

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "$name needs Python 3.11: install it or set PYTHON" >&2; exit 1; }
rm -f "$stamp"
[ -x "$home/bin/python" ] || "$python" -m venv "$home"
"$home/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
[ ! -f "$extra" ] || bash "$extra" "$home" "$src"
echo "$want" >"$stamp"
echo "$name is ready in $home; try: python -m envs preflight"
