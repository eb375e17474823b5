#!/usr/bin/env bash
# Shows where pages and threads lie under each --numa: a virtual machine of two memory nodes, four processors and this program, with
# the demo model on a disk of its own. Speed says nothing there.
#   tools/numa-vm.sh [build/moebius [MODEL]]     a folder with model.safetensors; experts of the demo model are a few pages each
# Needs qemu-system-x86, busybox-static, cpio and e2fsprogs; the kernel is Debian's linux-image-cloud-amd64, downloaded by apt-get (or
# KERNEL=FOLDER: one that is unpacked). With Open MPI here, one process a node is looked at, too.
set -euo pipefail
cd "$(dirname "$0")/.."

program=${1:-build/moebius}
model=${2:-models/demo}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kernel=${KERNEL:-$work/kernel}
root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,tmp,model,modules}

if [ ! -d "$kernel" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
    (cd "$work" && apt-get download "$package" && dpkg-deb -x "$package"_*.deb kernel)
fi

# Files go where they are here, and the libraries that they name with them.
bring() {
    local file
    for file in "$@"; do
        cp -r --parents -L "$file" "$root" && find -L "$file" -type f
    done | { xargs -r ldd 2>/dev/null || true; } | awk '$2 == "=>" && $3 ~ "^/" { print $3 } $1 ~ "^/lib64/" { print $1 }' | sort -u |
        xargs -r -I{} cp -n -L --parents {} "$root"
}
cp "$program" "$root/bin/moebius"
cp "$(dirname "$program")/moebius-mpi.so" "$root/bin/" 2>/dev/null || true
bring "$(realpath "$program")"
cp "$(command -v busybox)" "$root/bin/busybox"
if command -v mpirun >/dev/null && [ -f "$root/bin/moebius-mpi.so" ]; then
    bring /usr/bin/mpirun /usr/bin/orted "$(realpath "$(dirname "$program")/moebius-mpi.so")" /usr/lib/*/openmpi/lib \
        /usr/lib/*/pmix2 /usr/share/openmpi /etc/openmpi
fi
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    find "$kernel" -name "$module.ko*" -exec cp {} "$root/modules/" \;
done

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp
ip link set lo up; hostname vm
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    insmod /modules/$module.ko
done
for i in $(seq 50); do [ -b /dev/vda ] && break; sleep 0.2; done
mount -t ext4 -o ro /dev/vda /model

model=/model
[ -f /model/config.json ] || model=/model/model.safetensors

places() { # PID: pages by node of the weights, and of memory of its own; processors of its threads
    awk '{ kind = /safetensors/ ? "weights" : /anon=/ ? "own" : ""
           for (i = 2; i <= NF && kind; i++) if ($i ~ /^N[0-9]+=/) { split(substr($i, 2), n, "="); pages[kind " N" n[1]] += n[2] } }
         END { for (k in pages) printf "    %s: %d pages\n", k, pages[k] }' /proc/$1/numa_maps | sort
    echo "    threads on: $(grep -h Cpus_allowed_list /proc/$1/task/*/status | awk '{ print $2 }' | sort | uniq -c |
        awk '{ printf "%s%d x %s", (NR > 1 ? ", " : ""), $1, $2 }')"
}
watch() { # TITLE COMMAND...: its processes, once one has answered
    echo "== $1"; shift
    "$@" >/tmp/out 2>&1 &
    launcher=$!
    for i in $(seq 300); do
        wget -q -O /dev/null --header 'Content-Type: application/json' --post-data '{"prompt":[5,6,7],"max_tokens":16}' \
            http://127.0.0.1:8000/v1/completions 2>/dev/null && break
        kill -0 $launcher 2>/dev/null || { cat /tmp/out; return; }
        sleep 0.2
    done
    sed 's/^/    | /' /tmp/out | grep -E "nodes|numa|error|warning"
    for pid in $(pidof moebius); do echo "  process $pid"; places $pid; done
    for pid in $(pidof moebius); do kill -INT $pid 2>/dev/null; done
    wait $launcher
}
fresh() { echo 3 >/proc/sys/vm/drop_caches; }
on_node_0() { fresh; taskset 1 cat /model/model.safetensors >/dev/null; }

export OMPI_MCA_plm=isolated OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
moebius doctor --quick | grep -A3 "^memory nodes"
for numa in numactl auto distribute isolate; do fresh; watch "read from disk, --numa $numa" moebius serve $model --numa $numa; done
for numa in numactl auto; do on_node_0; watch "in memory, all on node 0, --numa $numa" moebius serve $model --numa $numa; done
on_node_0; watch "in memory, all on node 0, bound to node 1" taskset c moebius serve $model
fresh; watch "as many threads as half of the processors" moebius serve $model -t 2
fresh; watch "--cpu-strict 1, two threads" moebius serve $model -t 2 --cpu-strict 1
if [ -x /usr/bin/mpirun ]; then
    one_a_node="mpirun -n 2 --map-by ppr:1:numa --bind-to numa moebius serve $model"
    fresh; watch "read from disk, $one_a_node" $one_a_node
    on_node_0; watch "in memory, all on node 0, $one_a_node" $one_a_node
fi
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initramfs"
mke2fs -q -F -t ext4 -d "$model" "$work/model.img" "$(($(du -sm "$model" | cut -f 1) * 5 / 4 + 32))M" >/dev/null

timeout 900 qemu-system-x86_64 -accel tcg -cpu max -smp 4 -m 4G -nographic -no-reboot \
    -object memory-backend-ram,id=m0,size=2G -object memory-backend-ram,id=m1,size=2G \
    -numa node,nodeid=0,cpus=0-1,memdev=m0 -numa node,nodeid=1,cpus=2-3,memdev=m1 \
    -kernel "$(echo "$kernel"/boot/vmlinuz-*)" -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1" \
    -drive "file=$work/model.img,format=raw,if=virtio" </dev/null
