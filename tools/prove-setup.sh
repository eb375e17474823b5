#!/usr/bin/env bash
# Proves that `make demo` and `make test` work on a fresh Debian with only git, gcc and make: makes one in a folder with
# debootstrap, clones the last commit into it, and runs both there.
#   tools/prove-setup.sh               the last commit
#   tools/prove-setup.sh --worktree    the files as they are now
#   tools/prove-setup.sh --image       packaging/Dockerfile instead: built by buildah (no daemon) on that Debian, and the demo model run in it
# Needs root and debootstrap. Mirror, proxy and pip settings are those of this machine. KEEP=1 keeps the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "prove-setup: $*" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || fail "needs root (debootstrap and chroot)"
command -v debootstrap >/dev/null || fail "needs debootstrap: apt-get install -y debootstrap"

suite=bookworm
root=$PWD/build/prove-$suite
log=$PWD/build/prove-setup.log
mkdir -p build

# The mirror that this machine's apt uses for the suite, in either style of sources.
mirrors() {
    cat /etc/apt/sources.list.d/*.sources |
        awk -v suite="$suite" '/^URIs:/ { uri = $2 } /^Suites:/ { for (i = 2; i <= NF; i++) if ($i == suite) print uri }'
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list |
        sed -n "s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) $suite .*/\2/p"
}
mirror=$( (mirrors 2>/dev/null || true) | head -n 1)
[ -n "$mirror" ] || fail "no source for $suite in /etc/apt"

leave() { # also takes away what an earlier run has left
    for mounted in dev/pts proc; do
        if mountpoint -q "$root/$mounted"; then umount "$root/$mounted"; fi
    done
    if [ -z "${KEEP:-}" ]; then rm -rf --one-file-system "$root"; fi
}
KEEP="" leave
trap leave EXIT

echo "making a fresh $suite in $root ..."
debootstrap --variant=minbase --include=git,gcc,make,ca-certificates "$suite" "$root" "$mirror" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; fail "debootstrap failed; see $log"; }

echo "taking over this machine's settings of apt and pip ..."
cp /etc/resolv.conf "$root/etc/resolv.conf"
echo "127.0.0.1 localhost $(hostname)" >"$root/etc/hosts" # as an installed system has it: mpirun asks for its own name
rm -f "$root/etc/apt/sources.list"
cp /etc/apt/sources.list "$root/etc/apt/" 2>/dev/null || true
cp /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list "$root/etc/apt/sources.list.d/" 2>/dev/null || true
cp /etc/apt/auth.conf.d/* "$root/etc/apt/auth.conf.d/" 2>/dev/null || true
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/00host"
for config in /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    if [ -e "$config" ]; then cp "$config" "$root/etc/pip.conf"; fi
done
authorities=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
cp "$authorities" "$root/etc/host-authorities.crt"
settings=(PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PIP_CERT=/etc/host-authorities.crt)
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT http_proxy https_proxy no_proxy; do
    if [ -n "${!name:-}" ]; then settings+=("$name=${!name}"); fi
done

# The image, on the fresh Debian under the names that the Dockerfile asks for. Its settings go in as build arguments would not: with it.
prove_image() {
    local store=$PWD/build/prove-image base container
    local tool=(buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs)
    rm -rf "$store"
    base=$("${tool[@]}" from scratch)
    "${tool[@]}" add -q "$base" "$root" / >>"$log"
    for setting in "${settings[@]}"; do "${tool[@]}" config --env "$setting" "$base"; done
    "${tool[@]}" commit -q "$base" docker.io/library/debian:12 >>"$log"
    "${tool[@]}" tag docker.io/library/debian:12 docker.io/library/debian:12-slim
    start=$SECONDS
    "${tool[@]}" bud --isolation chroot --pull-never -t moebius -f packaging/Dockerfile . >>"$log" 2>&1 ||
        { tail -n 40 "$log" >&2; fail "the image could not be built; see $log"; }
    echo "image: built in $((SECONDS - start)) s"
    container=$("${tool[@]}" from --pull-never moebius)
    "${tool[@]}" run --isolation chroot -v "$PWD/models/demo:/cache/demo:ro" "$container" -- \
        moebius run /cache/demo -p 'def add(a, b):' -n 8 --temp 0 || fail "the demo model did not run in the image"
    if [ -z "${KEEP:-}" ]; then rm -rf --one-file-system "$store"; fi
}
if [ "${1:-}" = --image ]; then
    command -v buildah >/dev/null || fail "needs buildah: apt-get install -y buildah"
    prove_image
    exit
fi

if [ "${1:-}" = --worktree ]; then
    mkdir "$root/moebius"
    git ls-files -co --exclude-standard -z | tar --null --files-from=- -c | tar -x -C "$root/moebius"
    git -C "$root/moebius" init -q
    git -C "$root/moebius" add -A
else
    git clone -q --no-hardlinks . "$root/moebius"
fi
mount -t proc proc "$root/proc"
mkdir -p "$root/dev/pts" # pseudo-terminals of its own
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -sf pts/ptmx "$root/dev/ptmx"

for target in demo test; do
    echo "make $target ..."
    start=$SECONDS
    if ! chroot "$root" env -i "${settings[@]}" make -C /moebius "$target" >>"$log" 2>&1 </dev/null; then
        tail -n 60 "$log" >&2
        fail "make $target failed; see $log"
    fi
    echo "make $target: passed in $((SECONDS - start)) s"
done
tail -n 1 "$log"
