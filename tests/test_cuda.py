"""The CUDA backend without a GPU: tests/shim is a driver whose card is this machine, and whose kernels are the very sources that
nvcc compiles, run by fibres. So numbers, work lists, uploads and error paths are tested; speed is not, and memory order
in test_cuda_races.py.

The golden sets are judged as test_golden.py judges the default path: bf16 activations and a bf16 cache.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import conftest
import int4
import gguf_model
from conftest import GOLDEN, change_config, copy_set, moebius, refused, succeed
from test_golden import SHORT, Case, is_sparse, with_routing
from test_int8 import write as write_int8

BUILD = Path(os.environ.get("MOEBIUS", conftest.ROOT / "build" / "moebius")).resolve().parent
SHIM = BUILD / "tests" / "shim"
DRIVER = Path(os.environ.get("MOEBIUS_CUDA_DRIVER", SHIM))  # make cuda-race-test, make cuda-ptx-test
GPU = ["--device", "cuda"]
SETS = [name for name in conftest.SETS if not is_sparse(name)]  # test_cuda_sparse.py, test_cuda_hybrid.py


# On a machine with a GPU (`make gpu-pytest`): the program itself, on the first card; what needs the fake driver is left out there.
ON_CARD = bool(os.environ.get("MOEBIUS_GPU"))


@pytest.fixture(autouse=True)
def shim(monkeypatch):
    """The program with the shim's kernels, and the shim's driver where the loader looks first."""
    if ON_CARD:
        return
    assert (DRIVER / "libcuda.so.1").exists(), f"{DRIVER} is not built (make shim)"
    monkeypatch.setattr(conftest, "PROGRAM", str(SHIM / "moebius"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(DRIVER))


def fake(**options):
    return {"MOEBIUS_FAKE_CUDA": ",".join(f"{name}={value}" for name, value in options.items())}


def logits(tmp_path, name, case_id, *flags, env=None):
    return Case(name, case_id).logits(tmp_path, *GPU, *flags, env=env)


def check_near(case, tmp_path, *flags):
    """The reference's experts in most rows, and in these its logits but for the rounding of activations."""
    got, agree = with_routing(case, tmp_path, *GPU, *flags)
    error = np.abs(got - case.expected)
    assert agree.mean() >= 0.8
    assert error[agree].mean() <= 0.05
    assert error[agree].max() <= 0.2


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", SHORT)
@pytest.mark.parametrize("name", SETS)
def test_golden(name, case_id, tmp_path):
    check_near(Case(name, case_id), tmp_path)


@pytest.mark.parametrize("form", ["gptq", "packed"])
def test_int4_of_others(form, tmp_path):
    """By way of AWQ's words: the bits of AWQ's; not where scales are none of fp16."""
    def run(folder):
        succeed("logits", folder, "--ids", ",".join(map(str, range(3, 20))), "--all", "--out", tmp_path / "out", *GPU)
        return (tmp_path / "out").read_bytes()
    write, (matrices, plain) = getattr(int4, form), int4.read()
    assert run(write(tmp_path / "a", matrices, plain)) == run(GOLDEN / "v2lite-tiny-awq")
    for m in matrices.values():
        m.scale = m.scale * np.float32(1.001)
    folder = write(tmp_path / "b", matrices, plain, "F32")
    refused(moebius("logits", folder, "--ids", 1, "--out", tmp_path / "out", *GPU), f"int4_{form}", "fp16", "layer 0")


@pytest.mark.parametrize("form", ["channel", "block"])
def test_int8_of_others(form, tmp_path):
    """By way of our own INT8: the bits of the file that `quantize` makes of them."""
    def run(model):
        succeed("logits", model, "--ids", ",".join(map(str, range(3, 20))), "--all", "--out", tmp_path / "out", *GPU)
        return (tmp_path / "out").read_bytes()
    folder = write_int8(tmp_path / "m", form)
    succeed("quantize", folder, "--quant", "int8,head=bf16", "-o", tmp_path / "int8.safetensors")
    assert run(folder) == run(tmp_path / "int8.safetensors") != run(tmp_path / "plain")


@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny", "v2-tiny", "v2lite-tiny-awq"])
def test_golden_fp8_cache(name, tmp_path):
    """Beside the CPU with the same cache: what remains is the rounding of activations."""
    case = Case(name, "p17")
    flags = ["--kv-cache-dtype", "fp8"]
    on_cpu, cpu_agrees = with_routing(case, tmp_path, "--device", "cpu", "--compute", "f32", *flags)
    got, agree = with_routing(case, tmp_path, *GPU, *flags)
    both = agree & cpu_agrees
    assert both.mean() >= 0.4
    assert np.abs(got - on_cpu)[both].mean() <= 0.15


@pytest.mark.parametrize(
    "name, form",
    [("v2lite-tiny", "absorbed"), ("v3-tiny-fp8", "absorbed"), ("v2lite-tiny-awq", "absorbed"), ("v2-tiny", "expanded")],
)
def test_chunks_are_the_same_bits(name, form, tmp_path):
    """5 rows take the skinny variant, more the wide ones; more than 64 take that for prompts, and routing and sums have launches of
    their own; at 200 the experts do too. A row must not notice, in one form of attention."""
    case = Case(name, "p200")
    case.case["logits"]["positions"] = list(range(200))
    flags = [*GPU, "--attention", form, "--chunk"]
    whole = case.logits(tmp_path, *flags, 200)
    for chunk, rows in ((5, 20), (13, 26), (32, 32), (64, 130)):
        case.tokens, case.case["logits"]["positions"] = case.tokens[:rows], list(range(rows))
        assert np.array_equal(case.logits(tmp_path, *flags, chunk), whole[:rows]), f"chunk {chunk}"
        case = Case(name, "p200")


@pytest.mark.parametrize("name, kv", [("v3-tiny", "fp8"), ("v2-tiny", "bf16")])
def test_forms_of_attention(name, kv, tmp_path):
    """They round differently, and that is all."""
    case = Case(name, "p200")
    flags = ["--kv-cache-dtype", kv, "--attention"]
    absorbed, absorbed_agrees = with_routing(case, tmp_path, *GPU, *flags, "absorbed")
    expanded, expanded_agrees = with_routing(case, tmp_path, *GPU, *flags, "expanded")
    both = absorbed_agrees & expanded_agrees
    assert both.mean() >= (0.8 if kv == "bf16" else 0.4)
    error = np.abs(absorbed - expanded)[both]
    assert 0 < error.mean() <= (0.05 if kv == "bf16" else 0.1)


def test_fp8_times_fp8(tmp_path, monkeypatch):
    """Coarser, so only where it is asked for, and only on cards that have the instruction; elsewhere one line says so."""
    case = Case("v3-tiny-fp8", "p200")
    flags = [*GPU, "--attention", "absorbed", "--chunk", 200]
    plain, agrees = with_routing(case, tmp_path, *flags)
    monkeypatch.setenv("MOEBIUS_CUDA_FP8_NATIVE", "1")
    native, native_agrees = with_routing(case, tmp_path, *flags)
    both = agrees & native_agrees
    assert both.mean() >= 0.4
    error = np.abs(plain - native)[both]
    assert 0 < error.mean() <= 0.25
    for capability, warns in ((80, True), (90, True), (89, False), (120, False)):
        ids = ",".join(map(str, case.tokens[:70]))
        result = succeed("logits", case.folder, "--ids", ids, *flags, env=fake(log=1, capability=capability))
        assert ("linear_fp8_native" in result.err) != warns
        assert ("MOEBIUS_CUDA_FP8_NATIVE" in result.err) == warns


def test_which_form():
    """As on the CPU: from the break-even of operations on, which is 65 rows for this model."""
    case = Case("v2lite-tiny", "p200")

    def launches(rows, *flags):
        ids = ",".join(map(str, case.tokens[:rows]))
        return succeed("logits", case.folder, "--ids", ids, *GPU, *flags, env=fake(log=1)).err.count("attn_expanded")

    layers = case.config["num_hidden_layers"]
    assert launches(64) == 0 and launches(65) == layers
    assert launches(65, "--attention", "absorbed") == 0 and launches(65, "--batch-invariant") == 0
    assert launches(3, "--attention", "expanded") == layers


@pytest.mark.parametrize("seed", [2, 3])
def test_the_order_of_blocks_does_not_matter(seed, tmp_path):
    plain = logits(tmp_path, "v3-tiny-fp8", "p17")
    other = logits(tmp_path, "v3-tiny-fp8", "p17", env={"MOEBIUS_SHIM_SEED": str(seed)})
    assert np.array_equal(plain, other)


@pytest.mark.parametrize("kv, form", [("bf16", "absorbed"), ("fp8", "absorbed"), ("fp8", "expanded")])
def test_several_splits_of_the_cache(kv, form, tmp_path):
    """530 tokens are three splits of 256: one after the other in a long chunk, apart in a short one; or (expanded) several
    windows in one of the runs. The CPU says what is right."""
    case = Case("v2lite-tiny-ct-fp8", "p200")
    case.tokens = (case.tokens * 3)[:530]
    case.case["logits"]["positions"] = list(range(520, 530))
    flags = ["--kv-cache-dtype", kv, "--attention", form]
    whole = case.logits(tmp_path, *GPU, *flags, "--chunk", 530)
    window = {"MOEBIUS_CUDA_WINDOW": "128"}
    assert np.array_equal(case.logits(tmp_path, *GPU, *flags, "--chunk", 263, env=window), whole)
    on_cpu = case.logits(tmp_path, "--device", "cpu", *flags)
    assert np.abs(whole - on_cpu).mean() <= (0.05 if kv == "bf16" else 0.25)


def test_greedy_goes_on(tmp_path):
    """Decode steps over the cache equal one prefill of the same tokens, bit for bit."""
    case = Case("v2-tiny", "p200")
    out = tmp_path / "greedy.f32"
    flags = [*GPU, "--attention", "absorbed"]
    ids = succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens)), "--greedy", 12, "--out", out, *flags).json
    case.tokens = case.tokens + ids[:-1]
    case.case["logits"]["positions"] = list(range(199, 211))
    assert np.array_equal(case.logits(tmp_path, *flags), conftest.read_f32(out, 12, case.vocab))


# --- which device ----------------------------------------------------------------------------------------------------


def info(*flags, env=None, **options):
    return moebius("logits", Case("v2lite-tiny", "p1").folder, "--ids", "1,2", *flags, env={**(env or {}), **fake(**options)})


def one_line(result, *words):
    assert result.code == 0, str(result)
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, str(result)
    for word in words:
        assert word in lines[0], str(result)


def test_cpu_when_there_is_no_card():
    one_line(info(*GPU, devices=0), "no card", "computing on the CPU")
    one_line(info(*GPU, init=1), "no CUDA-capable device", "computing on the CPU")


def test_cpu_when_there_is_no_driver():
    one_line(info(*GPU, env={"LD_LIBRARY_PATH": ""}), "no GPU driver", "computing on the CPU")


def test_auto_is_silent_without_a_card():
    for result in (info(devices=0), info(init=1), info(env={"LD_LIBRARY_PATH": ""}), info("--device", "cpu")):
        assert result.code == 0 and not result.err, str(result)


def test_bad_device():
    for text in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0x", ""):
        refused(info("--device", text), "--device", "cuda:N")


def test_cuda_was_not_built_in():
    """The plain program has kernels only if nvcc was there; without them it says so, when it finds a card."""
    command = [BUILD / "moebius", "logits", Case("v2lite-tiny", "p1").folder, "--ids", "1,2", *GPU]
    done = subprocess.run([str(word) for word in command], capture_output=True)
    if done.returncode:
        refused(conftest.Result([], done), "built without CUDA kernels")


# --- errors: one clear message each ------------------------------------------------------------------------------------


def test_old_driver():
    refused(info(*GPU, version=11080), "driver is too old", "11.8", "12.0")
    refused(info(*GPU, version=12090), "driver is too old", "12.9", "made by CUDA 13.0")


def test_old_card():
    refused(info(*GPU, capability=75), "compute capability 7.5", "8.0")


def test_no_such_card():
    one_line(info("--device", "cuda:3"), "there is no GPU 3", "computing on the CPU")


def test_kernels_that_the_card_does_not_take():
    refused(info(*GPU, load=1), "does not take the kernels", "no kernel image")


def test_too_little_memory():
    refused(info(*GPU, free_mib=1), "GPU", "GiB")


@pytest.mark.parametrize("k", range(1, 7))
def test_out_of_memory_at_every_allocation(k):
    """Three for good, then what the upload needs for a while; then the next finds nothing to fail."""
    result = info(*GPU, alloc=k, leaks=1)
    if k <= 5:
        refused(result, "GPU 0")
    else:
        assert result.code == 0 and not result.err, str(result)


@pytest.mark.parametrize("k", range(1, 5))
def test_no_pinned_memory(k):
    result = info(*GPU, pinned=k, leaks=1)
    if k <= 3:
        refused(result, "pinned memory")
    else:
        assert result.code == 0 and not result.err, str(result)


def count_of(kind, *flags):
    """How many calls of a kind a run makes: the last ones are those of its step."""
    return info(*GPU, *flags, log=1).err.count(f"fake cuda: {kind} ")


def test_launch_failures():
    refused(info(*GPU, launch=1), "stage load", "unspecified launch failure")
    launches = count_of("launch")
    for k in (launches - 20, launches - 8, launches):
        refused(info(*GPU, launch=k), "GPU 0", "stage", "unspecified launch failure")


def test_copy_and_wait_failures():
    refused(info(*GPU, copy=1), "GPU 0", "unspecified launch failure")
    refused(info(*GPU, wait=1), "GPU 0", "unspecified launch failure")
    refused(info(*GPU, event=1), "GPU 0", "unspecified launch failure")
    refused(info(*GPU, event=count_of("event")), "GPU 0", "stage", "unspecified launch failure")


TOUCH = """
import ctypes
cuda, at, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64(), ctypes.c_void_p()
done = [cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), cuda.cuCtxSetCurrent(context),
        cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(64))]
print(done, flush=True)
ctypes.string_at(at.value, 1)
print("touched")
"""


@pytest.mark.skipif(ON_CARD, reason="of the shim")
def test_the_cards_memory_is_not_the_hosts():
    """The shim's is the machine's, but whoever takes an address of it for one of his own dies, as he would beside a card."""
    done = subprocess.run([sys.executable, "-c", TOUCH], capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": str(DRIVER)})
    assert done.stdout == "[0, 0, 0, 0]\n" and done.returncode == -signal.SIGSEGV, done.stdout + done.stderr


def test_the_kernel_that_faults_is_named():
    """With MOEBIUS_CUDA_WAIT=1, also in a step whose shape was met before; else whoever waits next hears of it."""
    flags, env = ["--greedy", "4", *GPU], {"MOEBIUS_CUDA_WAIT": "1"}
    log = info(*flags, env=env, log=1).err
    waits = dict(re.findall(r"fake cuda: (\w+) \d+ x .*\nfake cuda: wait (\d+)", log))  # the last of each
    assert {"embed", "attn_bf16", "linear_bf16_skinny"} <= set(waits), log
    for kernel in ("embed", "attn_bf16"):
        refused(info(*flags, env=env, wait=waits[kernel]), "GPU 0", f": {kernel}: unspecified launch failure")


def test_what_only_the_cpu_does():
    refused(info(*GPU, "--compute", "f32"), "--compute f32", "--device cpu")
    refused(info(*GPU, "--kv-cache-dtype", "f32"), "f32", "bf16 or fp8")


def test_nan_in_a_weight(tmp_path):
    """Named at load, with its place in the model."""
    folder = copy_set("v2lite-tiny", tmp_path / "model")
    poison(folder / "model.safetensors", "model.layers.1.mlp.experts.3.up_proj.weight")
    refused(moebius("logits", folder, "--ids", "1,2", *GPU), "layer 1", "expert 3", "up", "NaN")


def poison(path, tensor):
    import json
    import struct

    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8 : 8 + size])[tensor]
    assert entry["dtype"] == "BF16"
    at = 8 + size + entry["data_offsets"][0] + 100
    data[at : at + 2] = b"\xc0\x7f"
    path.write_bytes(data)


def test_model_that_the_kernels_do_not_take(tmp_path):
    folder = copy_set("v2lite-tiny", tmp_path / "model")
    change_config(folder, num_experts_per_tok=64, n_routed_experts=64)
    assert moebius("logits", folder, "--ids", "1", *GPU).code == 1


# --- recorded steps ------------------------------------------------------------------------------------------------------


def greedy(tmp_path, n, *flags, env=None):
    case = Case("v3-tiny", "p17")
    out = tmp_path / "greedy.f32"
    result = succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens)), "--greedy", n, "--out", out, *GPU, *flags,
                     env=env)
    return result, out.read_bytes()


def test_recorded_steps_are_the_same_bits(tmp_path):
    """The first step of a shape is eager, the second is recorded, the others replay it."""
    result, recorded = greedy(tmp_path, 8, env=fake(log=1))
    assert "fake cuda: graph 6" in result.err and "fake cuda: graph 7" not in result.err
    result, eager = greedy(tmp_path, 8, env={"MOEBIUS_CUDA_GRAPHS": "0", **fake(log=1)})
    assert "graph" not in result.err
    assert recorded == eager


def test_a_look_inside_a_recorded_step(tmp_path):
    """The residual stream and the routing are wanted in the middle of every step: each becomes an eager one."""
    case = Case("v2lite-tiny", "p17")

    def run(*flags, env=None):
        files = [tmp_path / name for name in ("logits", "hidden", "experts")]
        succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens[:6])), "--all", "--out", files[0], "--hidden",
                files[1], "--experts", files[2], *GPU, *flags, env=env)
        return [file.read_bytes() for file in files]

    assert run("--chunk", 1) == run("--chunk", 6) == run("--chunk", 1, env={"MOEBIUS_CUDA_GRAPHS": "0"})


def test_replay_fails():
    folder = Case("v3-tiny", "p1").folder
    refused(moebius("logits", folder, "--ids", "1,2", "--greedy", 6, *GPU, env=fake(graph=1)), "GPU 0", "a recorded step")


def test_no_memory_for_a_recording():
    arguments = ["logits", Case("v3-tiny", "p1").folder, "--ids", "1,2", "--greedy", 6, *GPU]
    eager = succeed(*arguments, env=fake(prepare=1, log=1))
    assert "no memory for a recorded step" in eager.err and "fake cuda: graph" not in eager.err
    assert eager.out == succeed(*arguments).out


# --- routed experts on the CPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", SHORT)
@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8", "v2-tiny", "v2lite-tiny-awq"])
def test_experts_on_the_cpu(name, case_id, tmp_path):
    case = Case(name, case_id)
    got, agree = with_routing(case, tmp_path, *GPU, "--expert-device", "cpu")
    error = np.abs(got - case.expected)
    assert agree.mean() >= 0.8
    assert error[agree].mean() <= 0.05
    assert error[agree].max() <= 0.25


def test_experts_on_the_cpu_are_not_on_the_card(tmp_path):
    """Fewer matrices are sent; chunks still have the same bits; a lost card is still one message."""
    case = Case("v3-tiny", "p17")
    counts = {}
    for where in ("gpu", "cpu"):
        result = succeed("logits", case.folder, "--ids", "1,2,3", *GPU, "--expert-device", where, env=fake(log=1))
        counts[where] = result.err.count("repack_tiles")
    assert counts["cpu"] * 3 < counts["gpu"]
    flags = [*GPU, "--expert-device", "cpu", "--chunk"]
    assert np.array_equal(case.logits(tmp_path, *flags, 5), case.logits(tmp_path, *flags, 17))
    flags = ["--expert-device", "cpu"]
    refused(info(*GPU, *flags, event=count_of("event", *flags)), "GPU 0", "unspecified launch failure")
    refused(info(*GPU, *flags, event=count_of("event", *flags) - 1), "GPU 0", "unspecified launch failure")


@pytest.mark.parametrize("name", ["packed", "v3-tiny-fp8", "v2lite-tiny-awq"])
def test_experts_on_the_cpu_from_disk(name, tmp_path):
    """Beside a card they are read when they are needed as they are without one."""
    file, ids = tmp_path / "packed", ",".join(map(str, range(40)))
    if name == "packed":
        succeed("quantize", Case("v3-tiny", "p1").folder, "--quant", "int4", "-o", file)
    else:
        file = Case(name, "p1").folder
    flags = ["logits", file, "--ids", ids, "--all", "--chunk", 9, *GPU, "--expert-device", "cpu", "--out"]
    succeed(*flags, tmp_path / "there")
    result = succeed(*flags, tmp_path / "read", "--expert-cache", 0.0001)
    assert "experts fit into" in result.err
    assert (tmp_path / "there").read_bytes() == (tmp_path / "read").read_bytes()
    refused(moebius("logits", file, "--ids", "1", *GPU, "--expert-cache", 1), "--expert-cache", "--expert-device cpu")


def test_fp4(tmp_path):
    """What `quantize` makes of a model: experts in FP4, the rest in FP8."""
    file, ids = tmp_path / "packed", ",".join(map(str, range(70)))
    said = succeed("quantize", Case("v3-tiny", "p1").folder, "--quant", "fp4", "-o", file)
    assert b"routed     fp4" in said.out, said
    flags = ["logits", file, "--ids", ids, "--all", "--out"]
    succeed(*flags, tmp_path / "cpu", "--compute", "f32")
    gpu = [*GPU, "--attention", "absorbed"]
    succeed(*flags, tmp_path / "gpu", *gpu)
    succeed(*flags, tmp_path / "pieces", *gpu, "--chunk", 7)
    want, got = (conftest.read_f32(tmp_path / name, 70, -1) for name in ("cpu", "gpu"))
    error = np.abs(got - want).max(axis=1) / np.abs(want).max()
    assert np.median(error) <= 0.02 and np.mean(error > 0.05) <= 0.1, (np.median(error), error.max())
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "gpu").read_bytes()


# --- GGUF ------------------------------------------------------------------------------------------------------------


def gguf_logits(model, tmp_path, *flags):
    succeed("logits", model, "--ids", "5,6,7,8,9", "--all", "--out", tmp_path / "out", *GPU, *flags)
    return conftest.read_f32(tmp_path / "out", 5, -1)


def test_gguf(tmp_path):
    """BF16 is as good as a folder's, with kv_b put together in memory; blocks: test_cuda_gguf.py."""
    path = gguf_model.convert(conftest.GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", gguf_model.Type.BF16)
    assert np.array_equal(gguf_logits(path, tmp_path), gguf_logits(conftest.GOLDEN / "v2lite-tiny", tmp_path))
