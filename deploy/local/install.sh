#!/bin/sh
# Installs the dependencies of Peal besides Rust: a C compiler, the programs of PostgreSQL and
# Redis. Uses apt-get on Debian and Ubuntu (with sudo unless root); elsewhere it prints the
# command to run. Does nothing when everything is installed. Peal runs private servers; servers
# that the packages start stay unused.
#
# `install.sh tests` also tries to install Python, for the tests that need it; without Python
# those tests are skipped.
set -eu

oldest=15

# The major version that the `postgres` in directory $1 reports; 0 when incomplete.
version_in() {
    for program in initdb postgres psql pg_isready; do
        [ -x "$1/$program" ] || { echo 0; return; }
    done
    found=$("$1/postgres" --version 2>/dev/null | sed -n 's/.*(PostgreSQL) \([0-9][0-9]*\).*/\1/p')
    echo "${found:-0}"
}

has_postgres() {
    for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin \
        "$(pg_config --bindir 2>/dev/null || true)" \
        "$(dirname "$(command -v initdb 2>/dev/null || echo /nowhere/initdb)")"; do
        [ "$(version_in "$dir")" -ge "$oldest" ] && return
    done
    return 1
}

has_redis() {
    command -v redis-server >/dev/null 2>&1 || command -v valkey-server >/dev/null 2>&1
}

has_compiler() {
    command -v cc >/dev/null 2>&1
}

has_python() {
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1
}

is_ready() {
    has_compiler && has_postgres && has_redis
}

missing() {
    has_compiler || echo "  a C compiler (cc)"
    has_postgres || echo "  PostgreSQL $oldest or newer, with its server programs"
    has_redis || echo "  Redis"
}

refuse() {
    echo "Peal needs these programs, which are missing:" >&2
    missing >&2
    echo "$1" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Sets $packages to the packages of the missing programs.
choose_packages() {
    packages=""
    has_compiler || packages="$packages gcc libc6-dev"
    has_postgres || packages="$packages postgresql"
    has_redis || packages="$packages redis-server"
}

install_with_apt() {
    choose_packages
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
        refuse "Run as root: apt-get update && apt-get install -y$packages"
    fi
    echo "Installing$packages" >&2
    as_root apt-get -o DPkg::Lock::Timeout=120 -q update >&2
    offered=$(apt-cache policy postgresql | sed -n 's/ *Candidate: \([0-9][0-9]*\).*/\1/p')
    if ! has_postgres && [ "${offered:-0}" -lt "$oldest" ]; then
        refuse "The PostgreSQL of this system is too old. The PostgreSQL project offers newer packages; as root:
  apt-get install -y postgresql-common
  /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y
  apt-get install -y postgresql-17
Then run this again."
    fi
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -q \
        install -y --no-install-recommends $packages >&2
    is_ready || refuse "apt-get succeeded, but the programs are still missing."
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "cargo is missing; Peal needs Rust 1.95 or newer: see https://rustup.rs" >&2
    exit 1
fi
if [ "${1:-}" = tests ] && ! has_python; then
    if command -v apt-get >/dev/null 2>&1 && as_root apt-get -o DPkg::Lock::Timeout=120 -q update >&2; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -q \
            install -y --no-install-recommends python3 python3-venv >&2 || true
    fi
    has_python || echo "Without Python 3 and its venv module some tests are skipped." >&2
fi
if is_ready; then
    exit 0
fi
if command -v apt-get >/dev/null 2>&1; then
    install_with_apt
elif command -v brew >/dev/null 2>&1; then
    refuse "Run: xcode-select --install; brew install postgresql@17 redis"
elif command -v dnf >/dev/null 2>&1; then
    refuse "Run: sudo dnf install gcc postgresql-server redis"
elif command -v pacman >/dev/null 2>&1; then
    refuse "Run: sudo pacman -S gcc postgresql redis"
elif command -v apk >/dev/null 2>&1; then
    refuse "Run: apk add build-base postgresql postgresql-client redis"
elif command -v zypper >/dev/null 2>&1; then
    refuse "Run: sudo zypper install gcc postgresql-server redis"
else
    refuse "Install them with your system's package manager."
fi
