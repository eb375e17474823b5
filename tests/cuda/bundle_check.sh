#!/bin/sh
# Runs a bundle in an empty root that has nothing but sh, its C library and the shim's driver:
#   tests/cuda/bundle_check.sh BUNDLE LIBCUDA
# chroot needs root; without it this says so and leaves it out.
set -eu
bundle=$1 driver=$2
if [ "$(id -u)" != 0 ] || ! command -v chroot >/dev/null; then
    echo "left out: gpu-bundle-check: chroot needs root"
    echo "0 passed, 0 failed"
    exit 0
fi
root=$(mktemp -d "${TMPDIR:-/tmp}/gpu-root-XXXXXX")
trap 'rm -rf "$root"' EXIT
trap 'exit 1' INT TERM

shell=$(readlink -f "$(command -v dash || command -v sh)")
mkdir -p "$root/bin" "$root/tmp" "$root/dev" "$root/driver"
cp "$shell" "$root/bin/sh"
ldd "$shell" "$driver" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p' | sort -u |
    while read -r library; do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
cp -L "$driver" "$root/driver/libcuda.so.1"
cp -a "$bundle" "$root/bundle"
[ -e "$root/dev/null" ] || mknod -m 666 "$root/dev/null" c 1 3 2>/dev/null || : >"$root/dev/null"

# Without /proc the loader does not know where a program lies; all of ours lie in one folder.
mkdir -p "$root/proc/self"
ln -s /bundle/bin/visit "$root/proc/self/exe"

check() { # NAME, the folder of the programs that are to be used, then what to set
    name=$1 programs=$2
    shift 2
    rm -f "$root/tmp/gpu.json"
    if env -i PATH="$PATH" LD_LIBRARY_PATH=/driver "$@" chroot "$root" /bin/sh /bundle/run.sh --steps steps-check.json --out /tmp/gpu.json \
        --budget 240 >"$root/tmp/said" 2>&1 && grep -q '"complete": true' "$root/tmp/gpu.json" &&
        grep -q "\"programs\": \"$programs\"" "$root/tmp/gpu.json"; then
        echo "ok     $name: $(tail -n 1 "$root/tmp/said")"
        passed=$((passed + 1))
    else
        echo "FAILED $name"
        sed 's/^/    /' "$root/tmp/said"
        failed=$((failed + 1))
    fi
}
passed=0 failed=0
check "in an empty root" /bundle/bin
check "in an empty root, with the bundle's own C library" /bundle/bin-own-libc MOEBIUS_OWN_LIBC=1
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
