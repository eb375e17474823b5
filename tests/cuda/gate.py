#!/usr/bin/env python3
"""Compile gate for the GPU's kernels: what each one takes of a processor, on every card, and which instructions it is made of, as
tables in the tree.

`make cuda-gate` compiles the kernels whose sources (or flags, or nvcc) are not those that their rows in kernels.tsv and
instructions.tsv were made from, and one more of each drawn by lot, and brings the tables up to date: so a change of registers is a
diff that someone reads. A spill to memory, a stack, more registers than a kernel's place in the design allows, a hot kernel without
wide loads or matrix units or with a 64-bit division, an atomic operation that nobody expects, or a row that comes out differently
from the same sources is a failure. `make cuda-gate CHECK=1` also fails on a table that is not up to date; `make cuda-gate-full`
compiles every row. Without nvcc it says that it was left out. Instructions are counted in PTX; where cuobjdump is, the machine code
of every cubin compiled is looked at too.
"""

import argparse
import hashlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "src/backend/cuda/kernels"
TABLES = Path(__file__).parent
COLUMNS = {"kernels.tsv": ["file", "arch", "kernel", "registers", "shared", "sources", "nvcc"],
           "instructions.tsv": ["file", "arch", "kernel", "loads_v4", "async_copies", "mma", "local", "div64", "atomics", "sources",
                                "nvcc"]}
PTX_ARCH = "80"  # the oldest card: its PTX has what all have
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror"]

# Kernels that must leave room for a second block of 256 threads beside them, and what all may take of static shared memory (the
# host leaves 8 KiB for it).
TWO_BLOCKS = re.compile(r"_skinny$")
TWO_BLOCKS_REGISTERS, ONE_BLOCK_REGISTERS, SHARED_BYTES = 128, 255, 8192


# Kernels that read weights or the cache, and what they may and must have. Sums are never atomic: their order would not be fixed.
HOT = re.compile(r"^(linear|attn|gemm|experts_(up|down))")
HOT_ATOMICS = {"add.u32", "min.u64"}  # arrivals of blocks, and the fault word
FORBIDDEN_ATOMICS = re.compile(r"\.(f16|f32|f64|bf16|f16x2|bf16x2)")


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
        machine_code = disassemble(nvcc, f"{folder}/out")
    output = done.stdout + done.stderr
    rows, problems = [], [f"{file} sm_{arch} {text}" for text in look_at_machine_code(machine_code)]
    for part in re.split(r"Compiling entry function '", output)[1:]:
        kernel = part.split("'")[0]
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if not used or not memory:
            problems.append(f"{file} sm_{arch} {kernel}: no figures from ptxas")
            continue
        row = dict(zip(COLUMNS["kernels.tsv"], [file, str(arch), kernel, used[1], shared[1] if shared else "0", "", version]))
        rows.append(row)
        if any(int(n) for n in memory.groups()):
            problems.append(f"{file} sm_{arch} {kernel}: stack and spills: {memory[0]}")
        problems += over_limits(row)
    if done.returncode or not rows:
        problems.append(f"{file} sm_{arch}: nvcc failed\n    " + "\n    ".join(output.splitlines()[-12:]))
    for row in rows:
        row["sources"] = hash_of(KERNELS / f"{file}.cu")
    return rows, problems


def disassemble(nvcc, cubin):
    """The cubin's machine code as text, or nothing where no cuobjdump is."""
    program = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(Path(nvcc).parent))
    if not program or not Path(cubin).exists():
        return ""
    return subprocess.run([program, "-sass", cubin], capture_output=True, text=True).stdout


def look_at_machine_code(text):
    """What is wrong with it, a line each."""
    for part in re.split(r"Function : ", text)[1:]:
        kernel = part.split()[0]
        if re.search(r"\b(LDL|STL)\b", part):
            yield f"{kernel}: local memory in the machine code"
        if HOT.search(kernel) and not re.search(r"\b(LDG\.E\S*128|LDGSTS\S*128)", part):
            yield f"{kernel}: no loads of 16 bytes in the machine code"
        if HOT.search(kernel) and not re.search(r"\bHMMA\b", part):
            yield f"{kernel}: no matrix unit in the machine code"


def count_instructions(ptx):
    """{kernel: its counts} of a PTX file's entry points."""
    counts = {}
    for part in re.split(r"^\s*\.visible \.entry ", ptx, flags=re.M)[1:]:
        body = re.sub(r"//.*", "", part)
        find = lambda pattern: re.findall(r"(?:^|[\s{;])" + pattern, body, re.M)
        atomics = {f"{op}.{kind}" for op, kind in find(r"(?:atom|red)(?:\.\w+)*?\.(add|min|max|and|or|xor|inc|dec|exch|cas)\.([a-z0-9]+)")}
        counts[part.split("(")[0].strip()] = {
            "loads_v4": len(find(r"ld\.global[.\w:]*\.v4\.")), "async_copies": len(find(r"cp\.async\.c[ag]\.")),
            "mma": len(find(r"mma\.sync")), "local": len(find(r"(?:ld|st)\.local")),
            "div64": len(find(r"(?:div|rem)\.[us]64")), "atomics": " ".join(sorted(atomics)) or "none"}
    return counts


def unexpected(row):
    """What is wrong with a kernel's instructions."""
    where = f"{row['file']} {row['kernel']}"
    atomics = set(row["atomics"].split()) - {"none"}
    if int(row["local"]):
        yield f"{where}: {row['local']} loads and stores of local memory"
    if any(FORBIDDEN_ATOMICS.search("." + kind) for kind in atomics):
        yield f"{where}: a floating-point atomic: {row['atomics']}"
    if not HOT.search(row["kernel"]):
        return
    if int(row["loads_v4"]) + int(row["async_copies"]) == 0:
        yield f"{where}: no loads of 16 bytes"
    if int(row["mma"]) == 0:
        yield f"{where}: no matrix unit"
    if int(row["div64"]):
        yield f"{where}: {row['div64']} divisions of 64-bit integers"
    if atomics - HOT_ATOMICS:
        yield f"{where}: atomics {row['atomics']}, expected at most {' '.join(sorted(HOT_ATOMICS))}"


def instruction_rows(nvcc, version, file, arch):
    """(rows of instructions.tsv, complaints) of one file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS[:3], "-ptx", f"-arch=compute_{arch}", "-o", f"{folder}/out", str(KERNELS / f"{file}.cu")]
        done = subprocess.run(command, capture_output=True, text=True)
        ptx = Path(folder, "out").read_text() if Path(folder, "out").exists() else ""
    rows, sources = [], hash_of(KERNELS / f"{file}.cu")
    for kernel, counts in count_instructions(ptx).items():
        rows.append({"file": file, "arch": arch, "kernel": kernel, **{name: str(n) for name, n in counts.items()},
                     "sources": sources, "nvcc": version})
    problems = [problem for row in rows for problem in unexpected(row)]
    if done.returncode or not rows:
        problems.append(f"{file}: nvcc -ptx failed\n    " + "\n    ".join((done.stdout + done.stderr).splitlines()[-12:]))
    return rows, problems


def over_limits(row):
    most = TWO_BLOCKS_REGISTERS if TWO_BLOCKS.search(row["kernel"]) else ONE_BLOCK_REGISTERS
    where = f"{row['file']} sm_{row['arch']} {row['kernel']}"
    if int(row["registers"]) > most:
        yield f"{where}: {row['registers']} registers, at most {most}"
    if int(row["shared"]) > SHARED_BYTES:
        yield f"{where}: {row['shared']} bytes of static shared memory, at most {SHARED_BYTES}"


def read_table(name):
    """{(file, arch): rows}"""
    table = {}
    if (TABLES / name).exists():
        for line in (TABLES / name).read_text().splitlines()[1:]:
            row = dict(zip(COLUMNS[name], line.split("|")))
            table.setdefault((row["file"], row["arch"]), []).append(row)
    return table


def write_table(name, table):
    lines = ["|".join(COLUMNS[name])]
    for key in sorted(table, key=lambda key: (key[0], int(key[1]))):
        lines += ["|".join(row[c] for c in COLUMNS[name]) for row in sorted(table[key], key=lambda row: row["kernel"])]
    (TABLES / name).write_text("\n".join(lines) + "\n")


def is_current(rows, file, version):
    return bool(rows) and all(r["sources"] == hash_of(KERNELS / f"{file}.cu") and r["nvcc"] == version for r in rows)


def check_table(name, compile_one, nvcc, version, files, archs, a):
    """Brings one table up to date, or checks it: (passed, failed, unchanged)."""
    table, passed, failed = read_table(name), 0, 0
    pairs = [(file, arch) for file in files for arch in archs]
    stale = [(f, arch) for f, arch in pairs if not is_current(table.get((f, arch)), f, version)]
    current = [pair for pair in pairs if pair not in stale]
    seed = a.seed or "".join(hash_of(KERNELS / f"{file}.cu") for file in files)
    drawn = current if a.full else random.Random(seed).sample(current, min(1, len(current)))
    for file, arch in stale + drawn:
        rows, problems = compile_one(nvcc, version, file, arch)
        by_kernel = lambda rows: sorted(rows, key=lambda row: row["kernel"])
        if (file, arch) in drawn and by_kernel(rows) != by_kernel(table[file, arch]):
            problems.append(f"{file} sm_{arch}: other figures than in {name}, from the same sources")
        if (file, arch) in stale and a.check:
            problems.append(f"{file} sm_{arch}: {name} is not up to date (make cuda-gate, then commit it)")
        passed, failed = passed + (not problems), failed + bool(problems)
        print(f"{'FAILED' if problems else 'ok':<7}{name}: {file} {arch}: {len(rows)} kernels", flush=True)
        for problem in problems:
            print("    " + problem)
        if rows and not a.check:
            table[file, arch] = rows
    if not a.check:
        write_table(name, {pair: rows for pair, rows in table.items() if pair[0] in files})
    return passed, failed, len(current) - len(drawn)


def main():
    global KERNELS, TABLES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="")
    parser.add_argument("--archs", default="80 86 89 90 120")
    parser.add_argument("--full", action="store_true", help="compile every row")
    parser.add_argument("--check", action="store_true", help="a table that is not up to date is a failure")
    parser.add_argument("--seed", default="", help="which row is drawn (default: by the sources)")
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="the folder of the sources")
    parser.add_argument("--tables", type=Path, default=TABLES, help="the folder of the tables")
    a = parser.parse_args()
    KERNELS, TABLES = a.kernels, a.tables
    if not a.nvcc:
        print("left out: no nvcc was found, so no kernel was compiled\n0 passed, 0 failed")
        return 0
    version = re.findall(r"V([\d.]+)", subprocess.run([a.nvcc, "--version"], capture_output=True, text=True).stdout)[-1]
    known = subprocess.run([a.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    archs = [arch for arch in a.archs.split() if f"compute_{arch}" in known]
    for arch in set(a.archs.split()) - set(archs):
        print(f"left out: this nvcc does not know sm_{arch}")
    files = sorted(path.stem for path in KERNELS.glob("*.cu"))
    results = [check_table("instructions.tsv", instruction_rows, a.nvcc, version, files, [PTX_ARCH], a),
               check_table("kernels.tsv", compile_rows, a.nvcc, version, files, archs, a)]
    passed, failed, unchanged = (sum(numbers) for numbers in zip(*results))
    print(f"{passed} passed, {failed} failed; {unchanged} unchanged")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
