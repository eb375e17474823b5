"""The soak (tests/soak), for a moment: a seeded mix of all APIs, polite and rude clients, and one end of a server under load; with
guesses, short steps, a quantized model and a cache on a disk, in the sanitizers' build. Every answer must be the one it is alone."""

import subprocess
import sys
from pathlib import Path

from serving import DEBUG_PROGRAM

SOAK = Path(__file__).resolve().parent.parent / "soak" / "run.py"


def test_a_moment_of_the_soak():
    command = [sys.executable, SOAK, "--only", "all", "--minutes", "0.2", "--round", "4", "--clients", "10", "--pool", "40",
               "--program", DEBUG_PROGRAM]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
