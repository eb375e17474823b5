#!/bin/sh
# Proves and measures Moebius on this machine's GPU; needs the driver and sh, nothing else. One JSON file holds everything, and is
# written anew after every step.
#   run.sh [--budget SECONDS] [--out FILE] [--only NAME,NAME] [--steps FILE] [--models DIR]
# --models: where a bundle that was made without the tiny models finds them (tests/golden/data of a source tree).
# python3 with torch (and transformers) adds a comparison with another engine; nvidia-smi the clocks; compute-sanitizer its checks.
set -eu
root=${0%/*}
[ "$root" != "$0" ] || root=.
root=$(cd "$root" && pwd)
budget=540 out=gpu.json only="" steps=$root/steps.json models=""
while [ $# -gt 0 ]; do
    case $1 in
    --budget) budget=$2 ;;
    --out) out=$2 ;;
    --only) only=$2 ;;
    --steps) steps=$root/$2 ;;
    --models) models=$2 ;;
    *) echo "use: run.sh [--budget SECONDS] [--out FILE] [--only NAME,NAME] [--steps FILE] [--models DIR]" >&2 && exit 2 ;;
    esac
    shift 2
done
for set in ${models:+"$models"/*/}; do
    set=$(cd "$set" && pwd)
    ln -sfn "$set" "$root/models/${set##*/}"
done
PATH=${PATH:-/usr/bin:/bin}:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
export PATH

# Machines that lend their cards out may have the driver where the loader does not look.
for folder in /usr/local/nvidia/lib64 /usr/lib/wsl/lib; do
    if [ -e "$folder/libcuda.so.1" ]; then LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder; fi
done
[ -z "${LD_LIBRARY_PATH:-}" ] || export LD_LIBRARY_PATH

# Where the machine's C library is older than the one that the programs were built with, they bring their own.
bin=$root/bin
if [ -n "${MOEBIUS_OWN_LIBC:-}" ] || ! "$bin/moebius" --version >/dev/null 2>&1; then bin=$root/bin-own-libc; fi

set -- "$steps" --bin "$bin" --out "$out" --budget "$budget"
[ -z "$only" ] || set -- "$@" --only "$only"
exec "$bin/visit" "$@"
