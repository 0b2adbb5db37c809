#!/bin/sh
# Runs a command with CARGO_TARGET_DIR set to a directory under the user's cache.
#
# Checkouts share these directories, so that a new clone does not compile every dependency
# again. Cargo uses the same file names in all clones, so two clones must not build in one
# directory at once: each directory is locked while commands of a clone run, and a second
# clone takes the next directory. A CARGO_TARGET_DIR set by the caller is kept.
set -eu

if [ -n "${CARGO_TARGET_DIR:-}" ]; then
    exec "$@"
fi

cache="${XDG_CACHE_HOME:-$HOME/.cache}/peal/target"
checkout=$(pwd -P)
mkdir -p "$cache"

if ! command -v flock >/dev/null 2>&1; then
    CARGO_TARGET_DIR="$cache/$(printf '%s' "$checkout" | cksum | cut -d ' ' -f 1)"
    export CARGO_TARGET_DIR
    exec "$@"
fi

# Locks directory $1 unless another checkout uses it. The lock is shared by the commands of
# one checkout and is held until the last process that inherits descriptor 9 ends.
take() {
    mkdir -p "$1"
    exec 9>>"$1/.lock"
    if flock -n -x 9; then
        echo "$checkout" >"$1/.checkout"
    elif [ "$(cat "$1/.checkout" 2>/dev/null)" != "$checkout" ]; then
        return 1
    fi
    flock -n -s 9
}

# One command at a time chooses a directory.
exec 8>>"$cache/.lock"
flock -x 8
chosen=""
# Prefers the last directory of this checkout, then any free one, then a new one.
for dir in "$cache"/[0-9]*; do
    if [ -d "$dir" ] && [ "$(cat "$dir/.checkout" 2>/dev/null)" = "$checkout" ] && take "$dir"; then
        chosen=$dir
        break
    fi
done
number=1
while [ -z "$chosen" ]; do
    if take "$cache/$number"; then
        chosen=$cache/$number
    fi
    number=$((number + 1))
done
exec 8>&-

CARGO_TARGET_DIR=$chosen
export CARGO_TARGET_DIR
exec "$@"
