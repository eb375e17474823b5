#!/bin/sh
# The real program with real AMX instructions in an emulator: README.md here says what it takes.
#   BOCHS=/path/bochs BIOS=/path/BIOS-bochs-latest VGABIOS=/path/vgabios.bin KERNEL=/path/vmlinuz tools/amx-emulated/run.sh
# CPUS (1): processors of the machine. CHECK=1: also `moebius check`, half an hour. HOURS (3): the longest run.
# BUILD (build): where moebius and tests/moebius_tiles are. OUT (BUILD/amx-emulated): what this leaves.
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build}
OUT=${OUT:-$BUILD/amx-emulated}
: "${BOCHS:?}" "${BIOS:?}" "${VGABIOS:?}" "${KERNEL:?}"
export MOEBIUS="${MOEBIUS:-$BUILD/moebius}" TILES="${TILES:-$BUILD/tests/moebius_tiles}"
golden() { build/venv/bin/python tools/amx-emulated/golden.py "$@"; }

rm -rf "$OUT"
mkdir -p "$OUT/root" "$OUT/iso/boot/grub"
${CC:-gcc} -O2 -static -o "$OUT/root/init" tools/amx-emulated/init.c
${CC:-gcc} -O2 -static -pthread -mamx-tile -mamx-int8 -mamx-bf16 -o "$OUT/root/probe" tools/amx-emulated/probe.c
cp "$MOEBIUS" "$OUT/root/moebius"
ldd "$MOEBIUS" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$OUT/root$(dirname "$library")"
    cp -L "$library" "$OUT/root$library"
done
golden prepare "$OUT/root"

(cd "$OUT/root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$OUT/iso/boot/initrd"
cp "$KERNEL" "$OUT/iso/boot/kernel"
cat >"$OUT/iso/boot/grub/grub.cfg" <<END
set timeout=0
serial --unit=0 --speed=115200
terminal_output serial
linux /boot/kernel console=ttyS0,115200 mitigations=off nokaslr no5lvl tsc=reliable nowatchdog panic=-1
initrd /boot/initrd
boot
END
grub-mkrescue -o "$OUT/machine.iso" "$OUT/iso" >"$OUT/iso.log" 2>&1

cat >"$OUT/bochsrc" <<END
cpu: model=sapphire_rapids, count=${CPUS:-1}, ips=20000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=1024, host=1024
romimage: file=$BIOS
vgaromimage: file=$VGABIOS
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$OUT/machine.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$OUT/serial.txt
port_e9_hack: enabled=1, all_rings=1
clock: sync=none
log: $OUT/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
display_library: nogui
END
timeout "${HOURS:-3}h" "$BOCHS" -q -f "$OUT/bochsrc" </dev/null >"$OUT/results.txt" 2>"$OUT/bochs.err" || true
golden compare "$OUT/results.txt"
