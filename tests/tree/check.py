#!/usr/bin/env python3
"""Rules of the tree that a compiler does not check. Prints what breaks them and closes with `N passed, N failed`.

Rules: includes point one way; files and functions stay small; pages name files and functions that are there; text files
are tidy and hold nothing that belongs to one machine.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 70

# (file, function): why it may be longer. An entry that is no longer needed is an error too.
LONG_FUNCTIONS = {}

# Who may include whom. "forward" is src/forward.[ch].
LAYERS = {
    "base": {"base"},
    "cache": {"base", "cache"},
    "model": {"base", "model"},
    "hub": {"base", "model", "hub"},
    "text": {"base", "model", "text"},
    "grammar": {"base", "text", "grammar"},
    "expert": {"base", "model", "expert"},
    "ranks": {"base", "ranks"},
    "plan": {"base", "model", "plan"},
    "backend": {"base", "model", "expert", "ranks", "backend"},
    "check": {"base", "model", "backend", "check"},
    "forward": {"base", "model", "backend", "forward"},
    "selftest": {"base", "model", "backend", "check", "forward", "selftest"},
    "sched": {"base", "cache", "model", "text", "grammar", "expert", "ranks", "backend", "forward", "sched"},
    "server": {"base", "model", "text", "grammar", "expert", "ranks", "sched", "cli", "find", "engine", "server"},
    "cli": {"base", "model", "cli"},
    "find": {"base", "model", "hub", "ranks", "plan", "backend", "cli", "find"},
    "engine": {"base", "cache", "model", "text", "grammar", "expert", "ranks", "plan", "backend", "forward", "selftest", "sched", "cli", "find", "engine"},
    "cmd": {"base", "cache", "model", "hub", "text", "grammar", "expert", "ranks", "plan", "backend", "check", "forward", "sched", "cli", "find", "engine", "server", "cmd"},
    "main": {"ranks", "cmd"},
}
DATA = ("tests/golden/data/", "tests/golden/demo/", "tests/data/", "models/")  # not ours to format
KERNEL_FOLDER = "src/backend/cpu/"
GPU_KERNEL_FOLDER = "src/backend/cuda/kernels/"  # their headers, and the structs that they share with the host
KERNEL_MAY_INCLUDE = {"base/cpu.h", "model/format.h"}  # and headers of their own folder


def tracked_files():
    """Files that are, or would be, in git; without data."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(name for name in set(names) if (ROOT / name).is_file() and not name.startswith(DATA))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def layer_of(path):
    """`model/config.c` -> "model"; `forward.h` -> "forward"."""
    return Path(path.split("/")[0]).stem


def is_kernel(name):
    return name.startswith((KERNEL_FOLDER + "kern", KERNEL_FOLDER + "x86/"))


def includes_of(name):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', read(name), re.M)


def check_includes(files):
    """Includes point from right to left only, and kernels see their own headers only."""
    sources = [name for name in files if name.startswith("src/") and name.endswith((".c", ".h"))]
    for name in sources:
        path = name.removeprefix("src/")
        layer = layer_of(path)
        if layer not in LAYERS:
            yield f"{name}: folder {layer} is not in the table of layers"
            continue
        for include in includes_of(name):
            beside = (ROOT / name).parent / include
            if (ROOT / "src" / include).is_file():
                target = layer_of(include)
            elif beside.is_file():
                include = str(beside.resolve().relative_to(ROOT / "src"))
                target = layer_of(include)
            else:
                yield f'{name}: includes "{include}", which is not in src'
                continue
            if target not in LAYERS[layer]:
                yield f"{name}: {layer} must not include {include}"
            own = include.startswith(KERNEL_FOLDER.removeprefix("src/")) and is_kernel("src/" + include)
            if is_kernel(name) and not own and include not in KERNEL_MAY_INCLUDE:
                yield f"{name}: a kernel must not include {include}"


def check_gpu_kernels(files):
    """Kernels for GPUs see their own folder and the structs that they share with the host only."""
    for name in files:
        if not name.startswith(GPU_KERNEL_FOLDER):
            continue
        for include in includes_of(name):
            if not re.fullmatch(r"\.\./params(_\w+)?\.h", include) and not (ROOT / GPU_KERNEL_FOLDER / include).is_file():
                yield f"{name}: a kernel must not include {include}"


def check_file_sizes(files):
    """No source file is over 800 lines."""
    for name in files:
        if name.endswith((".c", ".h", ".cu", ".cuh", ".py", ".sh")):
            n = read(name).count("\n")
            if n > MAX_FILE_LINES:
                yield f"{name}: {n} lines, at most {MAX_FILE_LINES}"


def functions_of(name):
    """(function, lines) of every function definition: from a line at column 0 that opens a parameter list to the closing
    brace at column 0. clang-format keeps that layout."""
    start, function = 0, None
    for number, line in enumerate(read(name).splitlines(), 1):
        opening = re.match(r"[A-Za-z_][^;=]*?(\w+)\(", re.sub(r"__attribute__\s*\(\(.*?\)\)+", "", line))
        if opening and not line.endswith(";"):
            start, function = number, opening.group(1)
        elif line.startswith("}"):
            if function and line == "}":
                yield function, number - start + 1
            function = None


def check_function_sizes(files):
    """Functions over 70 lines are exceptions with a name and a reason."""
    long = {}
    for name in files:
        if name.startswith(("src/", "tests/", "tools/")) and name.endswith(".c"):
            long.update({(name, f): n for f, n in functions_of(name) if n > MAX_FUNCTION_LINES})
    for (name, function), n in long.items():
        if (name, function) not in LONG_FUNCTIONS:
            yield f"{name}: {function} has {n} lines, at most {MAX_FUNCTION_LINES} (or name it, with the reason, in {Path(__file__).name})"
    for name, function in LONG_FUNCTIONS.keys() - long.keys():
        yield f"{name}: {function} is listed as a long function and is none"


def straight_line(readme):
    """Lines `file  function  -- text` of the text block after the heading "The straight line"."""
    block = re.search(r"^#+ The straight line\s*$.*?^```text\n(.*?)^```", readme, re.M | re.S)
    return [line for line in block.group(1).splitlines() if line.strip()] if block else []


def check_straight_line(files):
    """README's straight line names real functions, in the files beside them."""
    if "README.md" not in files:
        yield "README.md is missing"
        return
    lines = straight_line(read("README.md"))
    if not lines:
        yield 'README.md: no ```text block after a heading "The straight line"'
    for line in lines:
        found = re.fullmatch(r"\s*(\S+\.c)\s+(\w+)\s+--\s+\S.*", line)
        if not found:
            yield f'README.md: straight line: expected "file  function  -- text", found "{line}"'
            continue
        file, function = found.groups()
        if not (ROOT / file).is_file():
            yield f"README.md: straight line: there is no {file}"
        elif function not in {f for f, _ in functions_of(file)}:
            yield f"README.md: straight line: {file} defines no function {function}"


def check_named_files(files):
    """Source files that README, DESIGN and CONTRIBUTING name are there, by their paths or the ends of them."""
    ends = {"/".join(name.split("/")[i:]) for name in files for i in range(name.count("/") + 1)}
    for page in ("README.md", "DESIGN.md", "CONTRIBUTING.md"):
        for name in re.findall(r"`([\w./-]+\.(?:c|h|cu|cuh|py|sh))`", read(page)):
            if name not in ends and "NAME" not in name:
                yield f"{page}: there is no {name}"


def is_text(name):
    return b"\0" not in (ROOT / name).read_bytes()[:8000]


def check_style(files):
    """No tabs, trailing blanks, carriage returns, invisible characters; every file ends with a newline."""
    for name in files:
        if not is_text(name):
            continue
        try:
            text = read(name)
        except UnicodeDecodeError as error:
            yield f"{name}: not UTF-8: {error}"
            continue
        if text and not text.endswith("\n"):
            yield f"{name}: no newline at the end"
        if text.endswith("\n\n"):
            yield f"{name}: blank lines at the end"
        for number, line in enumerate(text.split("\n"), 1):
            if "\t" in line and Path(name).name != "Makefile" and not name.endswith(".mk"):
                yield f"{name}:{number}: a tab"
            if line != line.rstrip() or "\r" in line:
                yield f"{name}:{number}: blanks at the end of the line"
            if re.search("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]", line):
                yield f"{name}:{number}: an invisible character"


def check_words(files):
    """Nothing that is true on one machine only: its paths, registry hosts, numbers of issues."""
    forbidden = [
        (r"(^|[^a-z.])/(wor[k]|far[m])/", "a path of one machine"),
        (r"https?://[^ ]*(npmj[s]|pyp[i]|pythonhoste[d]|debia[n])\.", "the host of a package registry"),
        (r"\bissu[e] #?\d+\b", "the number of an issue"),
    ]
    for name in files:
        if not is_text(name):
            continue
        for number, line in enumerate(read(name).split("\n"), 1):
            for pattern, what in forbidden:
                if re.search(pattern, line):
                    yield f"{name}:{number}: {what}"


def main():
    files = tracked_files()
    checks = [check_includes, check_gpu_kernels, check_file_sizes, check_function_sizes, check_straight_line, check_named_files, check_style, check_words]
    failed = 0
    for check in checks:
        problems = list(check(files))
        failed += bool(problems)
        print(f"{'FAILED' if problems else 'ok':<7}{check.__doc__.splitlines()[0]}")
        for problem in problems:
            print("    " + problem)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
