"""What all black-box tests share: the program, the golden data, and how a refusal must look.

MOEBIUS names the program (default build/moebius). Other people's data is looked for in $MOEBIUS_TEST_DATA, else in
../shared beside the checkout; tests that need it are skipped, and say so, when it is not there.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

PROGRAM = os.environ.get("MOEBIUS", str(ROOT / "build" / "moebius"))
GOLDEN = TESTS / "golden" / "data"
SHARED = Path(os.environ.get("MOEBIUS_TEST_DATA", ROOT.parent / "shared"))
os.environ.setdefault("MOEBIUS_NODES", "/nowhere")  # one memory node, however many there are: a line less at every start
SETS = sorted(path.parent.name for path in GOLDEN.glob("*/manifest.json"))


def open_terminal():
    """The two ends of a pseudo-terminal; where the system has none (a bare chroot), the test is left out."""
    try:
        return os.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminals here: {error}")


class Result:
    def __init__(self, arguments, done):
        self.arguments, self.code, self.out = arguments, done.returncode, done.stdout
        self.err = done.stderr.decode(errors="replace")

    @property
    def text(self):
        return self.out.decode()

    @property
    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return f"moebius {' '.join(self.arguments)}\nexit {self.code}\n{self.err}\n{self.out[:2000]!r}"


def moebius(*arguments, env=None, stdin=b"", timeout=120):
    """Runs the program; never fails by itself."""
    arguments = [str(a) for a in arguments]
    little = {"MOEBIUS_MEMORY": "1"} if arguments[:1] == ["bench"] else {}  # it reads an eighth many times: of all, that takes seconds
    env = {**little, "HF_HUB_OFFLINE": "1", **os.environ, "UBSAN_OPTIONS": "halt_on_error=1", **(env or {})}
    env.pop("PYTEST_CURRENT_TEST", None)  # holds the test's parameters, and may be too long to pass on
    done = subprocess.run([PROGRAM, *arguments], input=stdin, capture_output=True, timeout=timeout, env=env)
    return Result(arguments, done)


def succeed(*arguments, **options):
    result = moebius(*arguments, **options)
    assert result.code == 0, str(result)
    assert "Sanitizer" not in result.err, str(result)
    return result


def refused(result, *words):
    """One clear message that holds all `words`, exit 1 or 2; never a crash."""
    assert result.code in (1, 2), str(result)
    assert "Sanitizer" not in result.err and "runtime error" not in result.err, str(result)
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, str(result)
    assert re.match(r"moebius( [a-z-]+)?: \S", lines[0]), str(result)
    for word in words:
        assert str(word) in lines[0], f"the message lacks {word!r}: {result}"
    return lines[0]


@functools.cache
def taken_level():
    """The level of instructions that this machine takes by itself."""
    return succeed("doctor", "--quick", "--json", env={"MOEBIUS_CPU": ""}).json["processor"]["level"]


def read_f32(path, *shape):
    return np.fromfile(path, "<f4").reshape(shape)


def read_i32(path, *shape):
    return np.fromfile(path, "<i4").reshape(shape)


def copy_set(name, folder):
    """A copy of a golden checkpoint (without the expected values) that a test may change."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (GOLDEN / name).iterdir():
        if path.name.startswith(("config.json", "model", "tokenizer")):
            shutil.copy(path, folder / path.name)
    return folder


def change_config(folder, **changes):
    """Sets keys of config.json; a value of DELETE removes the key."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is DELETE:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


DELETE = object()


@pytest.fixture
def model(tmp_path):
    """A folder with v2lite-tiny, to be damaged."""
    return copy_set("v2lite-tiny", tmp_path / "model")


@pytest.fixture
def shards(tmp_path):
    """A folder with v2-tiny: two shards and an index."""
    return copy_set("v2-tiny", tmp_path / "model")
