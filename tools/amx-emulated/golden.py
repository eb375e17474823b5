#!/usr/bin/env python3
"""The golden models on an emulated AMX machine (README.md here): what it is to run, and whether what it wrote is right.

    golden.py prepare FOLDER     the models, their prompts and the list of commands, for the machine's root folder
    golden.py compare FILE       what the machine wrote, beside this machine's results and the golden values

MOEBIUS and TILES name this machine's programs (default build/moebius and build/tests/moebius_tiles); CHECK=1 adds
`moebius check`.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402
from test_golden import FORMS, Case, largest  # noqa: E402
from test_tiles import SETS  # noqa: E402

MOEBIUS = Path(os.environ.get("MOEBIUS", ROOT / "build" / "moebius"))
TILES = Path(os.environ.get("TILES", ROOT / "build" / "tests" / "moebius_tiles"))
LIMIT = 2e-4  # as test_tiles.py has it


class Job:
    """One `moebius logits` on the machine: of a set, at a level (None: by itself), with flags; `like`: the level that
    gives these bits in plain C or on this machine."""

    def __init__(self, set_name, level, like, *flags, program=MOEBIUS):
        self.set_name, self.level, self.like, self.flags, self.program = set_name, level, like, flags, program
        words = [set_name, level or "default", *(str(flag).removeprefix("--") for flag in flags)]
        self.name = "-".join(words)

    def case(self):
        return Case(self.set_name, "p200")

    def command(self):
        words = [self.name, self.level or "-", "/moebius", "logits", f"/golden/{self.set_name}", "--ids",
                 f"/golden/{self.set_name}/ids.json", "--out", "/out", "--all", *self.flags]
        return " ".join(str(word) for word in words)

    def here(self):
        """The bytes that this machine computes, at level `like`."""
        conftest.PROGRAM = str(self.program)
        with tempfile.TemporaryDirectory() as folder:
            self.case().logits(Path(folder), *self.flags, env={"MOEBIUS_CPU": self.like})
            return (Path(folder) / "logits.f32").read_bytes()

    def faults(self, got):
        if got != self.here():
            yield f"not the bits of {self.program.name} at {self.like}"
        if "--compute" in self.flags:
            case = self.case()
            rows = np.frombuffer(got, "<f4").reshape(len(case.tokens), case.vocab)[case.positions]
            error = largest(rows, case.expected)
            if not error <= LIMIT:
                yield f"{error:.2g} from the golden values, which is more than {LIMIT}"


def jobs():
    """Two threads on one processor are there for switches between them with live tiles."""
    for quantization in ("int4", "int8"):
        for threads in (1, 2):
            yield Job("v2lite-tiny", "amx", "avx2", "--quantization", quantization, "--threads", threads)
    yield Job("v2lite-tiny", None, "avx2", "--quantization", "int8", "--threads", 2)
    for name in SETS:
        for form in FORMS:
            yield Job(name, "amx-bf16", "amx-bf16", "--compute", "f32", "--attention", form, "--threads", 2, program=TILES)
    yield Job("v3-tiny-fp8", "amx-bf16", "amx-bf16", "--compute", "f32", "--attention", "absorbed", "--threads", 1,
              "--chunk", 7, program=TILES)


def commands():
    """Lines of init.c: NAME LEVEL PROGRAM ARGUMENT..."""
    yield "probe - /probe"
    for job in jobs():
        yield job.command()
    if os.environ.get("CHECK") == "1":
        for level in ("amx", "amx-bf16"):
            yield f"check-{level} {level} /moebius check --only"


def prepare(root):
    for name in sorted({job.set_name for job in jobs()}):
        case, folder = Case(name, "p200"), root / "golden" / name
        folder.mkdir(parents=True)
        for file in (case.folder / "config.json", *case.folder.glob("model*")):
            shutil.copy(file, folder)
        (folder / "ids.json").write_text(json.dumps(case.tokens))
    (root / "commands").write_text("".join(line + "\n" for line in commands()))


def read_results(path):
    """{name: (exit code, seconds, lines, data)} of the commands that ended."""
    results = {}
    lines, data, name = [], bytearray(), None
    for line in path.read_text(errors="replace").splitlines():
        word, _, rest = line.partition(" ")
        if word == "begin":
            name, lines, data = rest, [], bytearray()
        elif word == "line" and name:
            lines.append(rest)
        elif word == "data" and name:
            data += bytes.fromhex(rest)
        elif word == "end" and name:
            code, seconds = rest.split()[-2:]
            results[name] = (int(code), float(seconds), lines, bytes(data))
            name = None
    return results


def compare(path):
    results, passed, failed = read_results(path), 0, 0
    by_name = {job.name: job for job in jobs()}
    for name in (line.split()[0] for line in commands()):
        code, seconds, lines, data = results.get(name, (None, 0, [], b""))
        if code is None:
            faults = ["never ended"]
        elif code:
            faults = [f"exit code {code}", *lines[-3:]]
        else:
            faults = list(by_name[name].faults(data)) if name in by_name else []
        passed, failed = passed + (not faults), failed + bool(faults)
        print(f"{name:<70} {'FAILED: ' + '; '.join(faults) if faults else 'ok'}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("prepare", "compare"):
        sys.exit(__doc__)
    sys.exit({"prepare": prepare, "compare": compare}[sys.argv[1]](Path(sys.argv[2])))
