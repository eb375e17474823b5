#!/bin/sh
# Installs what Moebius needs and this machine lacks; silent and quick when nothing is missing.
#   tools/setup.sh build          what `make` needs
#   tools/setup.sh build test     also what `make test` needs
#   tools/setup.sh --check build  only look: prints the line to run and fails when something is missing
# As root it installs at once, otherwise through sudo, otherwise it prints the line to run. Debian and its children.
set -eu

check_only=no
if [ "${1:-}" = --check ]; then
    check_only=yes
    shift
fi
sets="${*:-build}"

has_command() { command -v "$1" >/dev/null 2>&1; }
has_library() { has_command pkg-config && pkg-config --exists "$1" 2>/dev/null; }
has_sanitizers() { has_command clang && ls "$(clang -print-runtime-dir 2>/dev/null)"/libclang_rt.asan*.a >/dev/null 2>&1; }

missing=""
need() { # PACKAGE TEST...: remembers the package when the test fails
    package=$1
    shift
    "$@" || missing="$missing $package"
}

for set in $sets; do
    case $set in
    build)
        need build-essential has_command "${CC:-gcc}"
        need build-essential test -e /usr/include/stdio.h
        need pkg-config has_command pkg-config
        need libjansson-dev has_library jansson
        need libpcre2-dev has_library libpcre2-8
        need libssl-dev has_library libcrypto
        need libedit-dev has_library libedit
        need libmicrohttpd-dev has_library libmicrohttpd
        need libxxhash-dev has_library libxxhash
        need libcurl4-openssl-dev has_library libcurl
        need libutf8proc-dev has_library libutf8proc
        ;;
    test)
        need libcmocka-dev has_library cmocka
        need clang has_command clang
        need nodejs has_command node
        need libclang-rt-dev has_sanitizers
        need openmpi-bin has_command mpirun
        need libopenmpi-dev has_command mpicc
        need openssl has_command openssl
        need python3-venv python3 -c 'import ensurepip, venv' 2>/dev/null
        ;;
    *)
        echo "setup.sh: unknown set \"$set\": expected build or test" >&2
        exit 2
        ;;
    esac
done
[ -n "$missing" ] || exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')

if [ "$check_only" = yes ]; then
    {
        echo "Missing here: $missing"
        echo "Install with:  make setup"
    } >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
line="apt-get update && apt-get install -y $missing"
if ! has_command apt-get; then
    echo "setup.sh: no apt-get here; please install what Debian calls: $missing" >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    as_root=""
elif has_command sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root="sudo"
else
    echo "setup.sh: some packages are missing. As root, run:" >&2
    echo "  $line" >&2
    exit 1
fi
echo "Installing: $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $as_root apt-get -q update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy install $missing; } \
    >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup.sh: the installation failed; the line was: $line" >&2
    exit 1
fi
