"""--numa with two memory nodes that are played: a folder says that each has one of this machine's processors. What the kernel then does
with pages is seen by tools/numa-vm.sh, in an emulator; the order of threads and the rule for pages are in tests/unit/test_numa.c."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import PROGRAM, ROOT, moebius, refused, succeed

MODEL = ROOT / "models" / "demo"
RUN = ["run", MODEL, "-p", "the", "-n", 2]
CPUS = sorted(os.sched_getaffinity(0))
MPIRUN = "mpirun -n 2 --map-by ppr:1:numa --bind-to numa moebius serve MODEL"

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="one processor: no two nodes can be played")


def play(folder, *nodes):
    for i, cpus in enumerate(nodes):
        node = folder / f"node{i}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(",".join(map(str, cpus)) + "\n")
        (node / "meminfo").write_text(f"Node {i} MemTotal:       64000000 kB\nNode {i} MemFree:       1 kB\n")
    return {"MOEBIUS_NODES": str(folder)}


@pytest.fixture
def two(tmp_path):
    """Or, in a container that forbids policies, nothing to be tested."""
    env = play(tmp_path / "nodes", CPUS[:1], CPUS[1:])
    if any("--cap-add SYS_NICE" in line for line in succeed("doctor", "--quick", "--json", env=env).json["advice"]):
        pytest.skip("this system forbids policies for memory")
    return env


def lines(result, word="node"):
    return [line for line in result.err.splitlines() if word in line]


def test_one_node_has_nothing_to_say(tmp_path):
    one = play(tmp_path / "nodes", CPUS)
    assert not lines(succeed(*RUN, env=one))
    assert not lines(succeed(*RUN, "--numa", "numactl", env=one))
    for word in ("distribute", "isolate"):  # llama.cpp's command lines have it on any machine
        assert len(lines(succeed(*RUN, "--numa", word, env=one), "nothing to choose")) == 1
    assert "memory nodes" not in succeed("doctor", "--quick", env=one).text.replace("1 memory node", "")


def test_several_are_shared_unless_said_otherwise(two):
    for flags in ([], ["--numa", "auto"], ["--numa", "distribute"]):
        said = lines(succeed(*RUN, *flags, env=two), "pages and threads go over all 2")
        assert len(said) == 1 and "--numa isolate" in said[0] and "--numa numactl" in said[0]
    assert not lines(succeed(*RUN, "--numa", "numactl", env=two))
    refused(moebius(*RUN, "--numa", "mirror", env=two), "--numa", "auto|distribute|isolate|numactl", "mirror")


def test_an_error_is_one_line(two, tmp_path):
    refused(moebius("run", tmp_path, "-p", "the", env=two), "config.json")


def test_what_lies_in_memory_is_looked_at(two):
    """All of it lies on the first node here, and the second one is not there to go to."""
    (MODEL / "model.safetensors").read_bytes()
    said = lines(succeed(*RUN, env=two), "lay on the wrong memory nodes")
    if os.path.exists("/sys/devices/system/node/node1"):
        pytest.skip("this machine has several nodes: who knows where the file lies")
    wrong, seen, moved = map(float, re.search(r"([\d.]+) of ([\d.]+) GB .*; ([\d.]+) GB were moved", said[0]).groups())
    assert 0.4 * seen < wrong < 0.6 * seen and moved == 0
    assert lines(succeed(*RUN, env=two), "stay on the wrong memory nodes")
    one = ["taskset", "-c", str(CPUS[0]), PROGRAM, *map(str, RUN)]  # bound to the first, where all of it is
    done = subprocess.run(one, capture_output=True, text=True, env={**os.environ, **two})
    assert done.returncode == 0 and "node" not in done.stderr, done.stderr


def places(*flags, env):
    """Which processors the threads of a running bench may use."""
    command = [PROGRAM, "bench", MODEL, "--prompt", "64", "--batch", "1", "--depth", "0", "--repeat", "1000", *flags]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "MOEBIUS_MEMORY": "1", **env})
    try:
        seen, end = set(), time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < end and process.poll() is None:
            for task in os.listdir(f"/proc/{process.pid}/task"):
                try:
                    seen.add(frozenset(os.sched_getaffinity(int(task))))
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
        return seen
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_threads_stay_on_their_nodes(two):
    """Two threads: the second one's node is the second; the caller's thread stays free, for whatever it starts."""
    both = {frozenset(CPUS), frozenset(CPUS[1:])}
    assert places("-t", 2, env=two) == both
    assert frozenset(CPUS[:1]) in places("-t", 2, "--cpu-strict", 1, env=two)


@pytest.mark.skipif(not shutil.which("mpirun") or CPUS[:2] != [0, 1] or not (Path(PROGRAM).resolve().parent / "moebius-mpi.so").exists(),
                    reason="left out: no mpirun and moebius-mpi.so, or not the two processors that are played to be two nodes")
def test_one_process_a_node(two, tmp_path):
    """doctor's own command line, told that this machine is two nodes of a processor each: every process keeps to its own."""
    if "Open MPI" not in subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("the command line is Open MPI's")
    env = {**os.environ, **two, "HWLOC_SYNTHETIC": "numa:2 core:1 pu:1", "HWLOC_THISSYSTEM": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "MOEBIUS_MEMORY": "1", "ASAN_OPTIONS": "detect_leaks=0"}
    line = MPIRUN.replace("moebius serve MODEL", f"{PROGRAM} bench {MODEL} --prompt 64 --generate 8 --batch 1 --depth 0").split()
    done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0 and "routed experts of every layer" in done.stderr, done.stderr
    assert "1 thread reads" in done.stdout and "pages and threads go" not in done.stderr, done.stdout + done.stderr


def test_doctor_and_plan(two):
    text = succeed("doctor", "--quick", env=two).text
    assert MPIRUN in text and re.search(r"^memory nodes node 0: 65.54 GB, 1 processors for this process$", text, re.M), text
    report = succeed("doctor", "--quick", "--json", env=two).json
    assert report["processor"]["memory_nodes"] == 2 and any(MPIRUN in line for line in report["advice"])
    bound = subprocess.run(["taskset", "-c", str(CPUS[0]), PROGRAM, "doctor", "--quick"], capture_output=True, text=True,
                           env={**os.environ, **two}).stdout
    assert "bound to one of 2 memory nodes" in bound and "mpirun" not in bound
    speed = succeed("plan", MODEL, env={**two, "MOEBIUS_MEMORY": "1"}).text
    assert "pages over all memory nodes" in speed
    assert "memory nodes" not in succeed("plan", MODEL, env={"MOEBIUS_MEMORY": "1"}).text
