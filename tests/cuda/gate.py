#!/usr/bin/env python3
"""Compile gate for the GPU's kernels: what each one takes of a processor, on every card, as a table in the tree.

`make cuda-gate` compiles the kernels whose sources (or flags, or nvcc) are not those that their rows in kernels.tsv were made
from, and one more row drawn by lot, and brings the table up to date: so a change of registers is a diff that someone
reads. A spill to memory, a stack, more registers than a kernel's place in the design allows, or a row that comes out differently
from the same sources is a failure. `make cuda-gate CHECK=1` also fails on a table that is not up to date; `make cuda-gate-full`
compiles every row. Without nvcc it says that it was left out.
"""

import argparse
import hashlib
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "src/backend/cuda/kernels"
TABLE = Path(__file__).with_name("kernels.tsv")
COLUMNS = ["file", "arch", "kernel", "registers", "shared", "sources", "nvcc"]
FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror"]

# Kernels that must leave room for a second block of 256 threads beside them, and what all may take of static shared memory (the
# host leaves 8 KiB for it).
TWO_BLOCKS = re.compile(r"_skinny$")
TWO_BLOCKS_REGISTERS, ONE_BLOCK_REGISTERS, SHARED_BYTES = 128, 255, 8192


def sources_of(path):
    """The file and everything of ours that it includes."""
    found, wanted = {}, [path]
    while wanted:
        name = wanted.pop().resolve()
        if name in found:
            continue
        found[name] = name.read_bytes()
        for include in re.findall(rb'^\s*#\s*include\s+"([^"]+)"', found[name], re.M):
            wanted.append(name.parent / include.decode())
    return found


def hash_of(path):
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name, data in sorted(sources_of(path).items()):
        digest.update(name.name.encode() + b"\0" + data)
    return digest.hexdigest()[:16]


def compile_rows(nvcc, version, file, arch):
    """(rows of the table, complaints) of one file for one card."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, "--cubin", f"-arch=sm_{arch}", "-o", f"{folder}/out", str(KERNELS / f"{file}.cu")]
        done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    rows, problems = [], []
    for part in re.split(r"Compiling entry function '", output)[1:]:
        kernel = part.split("'")[0]
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if not used or not memory:
            problems.append(f"{file} sm_{arch} {kernel}: no figures from ptxas")
            continue
        row = dict(zip(COLUMNS, [file, str(arch), kernel, used[1], shared[1] if shared else "0", "", version]))
        rows.append(row)
        if any(int(n) for n in memory.groups()):
            problems.append(f"{file} sm_{arch} {kernel}: stack and spills: {memory[0]}")
        problems += over_limits(row)
    if done.returncode or not rows:
        problems.append(f"{file} sm_{arch}: nvcc failed\n    " + "\n    ".join(output.splitlines()[-12:]))
    for row in rows:
        row["sources"] = hash_of(KERNELS / f"{file}.cu")
    return rows, problems


def over_limits(row):
    most = TWO_BLOCKS_REGISTERS if TWO_BLOCKS.search(row["kernel"]) else ONE_BLOCK_REGISTERS
    where = f"{row['file']} sm_{row['arch']} {row['kernel']}"
    if int(row["registers"]) > most:
        yield f"{where}: {row['registers']} registers, at most {most}"
    if int(row["shared"]) > SHARED_BYTES:
        yield f"{where}: {row['shared']} bytes of static shared memory, at most {SHARED_BYTES}"


def read_table():
    """{(file, arch): rows}"""
    table = {}
    if TABLE.exists():
        for line in TABLE.read_text().splitlines()[1:]:
            row = dict(zip(COLUMNS, line.split("|")))
            table.setdefault((row["file"], row["arch"]), []).append(row)
    return table


def write_table(table):
    lines = ["|".join(COLUMNS)]
    for key in sorted(table, key=lambda key: (key[0], int(key[1]))):
        lines += ["|".join(row[c] for c in COLUMNS) for row in sorted(table[key], key=lambda row: row["kernel"])]
    TABLE.write_text("\n".join(lines) + "\n")


def is_current(rows, file, version):
    return bool(rows) and all(r["sources"] == hash_of(KERNELS / f"{file}.cu") and r["nvcc"] == version for r in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="")
    parser.add_argument("--archs", default="80 86 89 90 120")
    parser.add_argument("--full", action="store_true", help="compile every row")
    parser.add_argument("--check", action="store_true", help="a table that is not up to date is a failure")
    parser.add_argument("--seed", default="", help="which row is drawn (default: by the sources)")
    a = parser.parse_args()
    if not a.nvcc:
        print("left out: no nvcc was found, so no kernel was compiled\n0 passed, 0 failed")
        return 0
    version = re.findall(r"V([\d.]+)", subprocess.run([a.nvcc, "--version"], capture_output=True, text=True).stdout)[-1]
    known = subprocess.run([a.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    archs = [arch for arch in a.archs.split() if f"compute_{arch}" in known]
    for arch in set(a.archs.split()) - set(archs):
        print(f"left out: this nvcc does not know sm_{arch}")

    table, passed, failed = read_table(), 0, 0
    files = sorted(path.stem for path in KERNELS.glob("*.cu"))
    pairs = [(file, arch) for file in files for arch in archs]
    stale = [(f, arch) for f, arch in pairs if not is_current(table.get((f, arch)), f, version)]
    current = [pair for pair in pairs if pair not in stale]
    seed = a.seed or "".join(hash_of(KERNELS / f"{file}.cu") for file in files)
    drawn = current if a.full else random.Random(seed).sample(current, min(1, len(current)))
    for file, arch in stale + drawn:
        rows, problems = compile_rows(a.nvcc, version, file, arch)
        by_kernel = lambda rows: sorted(rows, key=lambda row: row["kernel"])
        if (file, arch) in drawn and by_kernel(rows) != by_kernel(table[file, arch]):
            problems.append(f"{file} sm_{arch}: other figures than in {TABLE.name}, from the same sources")
        if (file, arch) in stale and a.check:
            problems.append(f"{file} sm_{arch}: {TABLE.name} is not up to date (make cuda-gate, then commit it)")
        passed, failed = passed + (not problems), failed + bool(problems)
        print(f"{'FAILED' if problems else 'ok':<7}{file} sm_{arch}: {len(rows)} kernels", flush=True)
        for problem in problems:
            print("    " + problem)
        if rows and not a.check:
            table[file, arch] = rows
    kept = {pair: rows for pair, rows in table.items() if pair[0] in files}
    if not a.check:
        write_table(kept)
    print(f"{passed} passed, {failed} failed; {len(current) - len(drawn)} unchanged")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
