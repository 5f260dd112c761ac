#!/usr/bin/env bash
# Put the checkouts a requirements file names beside a simulator's interpreter:
#   bash checkouts.sh HOME SRC REQUIREMENTS PACKAGE_ROOT...
#
# Reads lines "# checkout: URL COMMIT", leaves each in HOME/src/NAME at that commit, and makes
# the PACKAGE_ROOTs (names of checkouts) importable. SRC, when not empty, is a folder that
# already has them: as SRC/NAME, as SRC itself when it is called NAME, or beside SRC.
set -euo pipefail
home=$1 src=$2 requirements=$3
shift 3

# Folders of another owner are fine to read from: nothing in them is run by git.
git() { command git -c safe.directory='*' -c advice.detachedHead=false "$@"; }

origin() { # URL NAME
    [ -n "$src" ] || { echo "$1"; return; }
    [ -d "$src/$2" ] && [ -n "$(ls -A "$src/$2")" ] && { echo "$src/$2"; return; }
    [ "$(basename "$src")" = "$2" ] && { echo "$src"; return; }
    [ -d "$(dirname "$src")/$2" ] && { echo "$(dirname "$src")/$2"; return; }
    echo "SRC=$src has no checkout called $2: git clone $1 $src/$2" >&2
    return 1
}

place() { # URL COMMIT
    local name from target
    name=$(basename "$1" .git)
    from=$(origin "$1" "$name")
    target=$home/src/$name
    # Built before from a folder that is not named now: it is what is wanted.
    [ -z "$src" ] && [ "$(git -C "$target" rev-parse HEAD 2>/dev/null)" = "$2" ] && return
    mkdir -p "$home/src"
    rm -rf "$target.new"
    git clone -q --no-checkout "$from" "$target.new" || {
        echo "cannot clone $from; with checkouts on disk: make ... SRC=FOLDER" >&2
        return 1
    }
    rm -rf "$target"
    mv "$target.new" "$target"
    local commit=$2
    git -C "$target" cat-file -e "$commit^{commit}" 2>/dev/null || {
        commit=$(git -C "$target" rev-parse HEAD)
        echo "WARNING: $from lacks the pinned commit $2; using $commit" >&2
    }
    git -C "$target" checkout -q -f --detach "$commit" 2>/dev/null || salvage "$target" "$commit"
}

# A snapshot without its large files: write what is there, and say what is not.
salvage() { # TARGET COMMIT
    git -C "$1" update-ref --no-deref HEAD "$2"
    git -C "$1" read-tree "$2"
    git -C "$1" checkout-index -a -f -q 2>/dev/null || true
    echo "WARNING: $1 lacks files (runs may fail, or not be comparable):" >&2
    git -C "$1" ls-files --deleted >&2
}

sed -n 's/^# checkout: //p' "$requirements" | while read -r url commit; do
    place "$url" "$commit"
done
packages=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf "$home/src/%s\n" "$@" >"$packages/checkouts.pth"
