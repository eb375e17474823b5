"""What proves and measures the GPU's kernels on a machine that has one, tried where none is: benches on the shim's driver, the list of
steps and its budget, the golden models without Python, and the gate's choice of what to compile. Never speeds: the shim has none.
"""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

import conftest
from conftest import GOLDEN, TESTS, moebius, refused, succeed
from test_cuda import BUILD, GPU, SHIM, fake, shim  # noqa: F401 (shim is a fixture)

sys.path.insert(0, str(TESTS / "cuda"))
import gate

SHAPE = TESTS / "cuda" / "tiny-shape.json"
SMALL = ["--prompt", "4", "--generate", "3", "--repeat", "1", "--max-model-len", "16"]
BIN = BUILD / "gpu-bundle" / "bin"


# --- benches -----------------------------------------------------------------------------------------------------------


def constants_of_plan():
    return succeed("plan", "deepseek-v2-lite", "--gpu", "rtx-4090", "--ram", "64@89", "--explain", "--json").json["constants"]


def bench(quant, *flags, env=None):
    return succeed("bench", *GPU, "--config", SHAPE, "--quant", quant, *SMALL, *flags, env=env)


def powercap(folder):
    zone = folder / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "123", "max_energy_range_uj": "1000000"}.items():
        (zone / name).write_text(text + "\n")
    return {"MOEBIUS_POWERCAP": str(folder)}


def check_joules(report, card_has_meter):
    """The shim's card takes 1.5 J from one look to the next, and the processor, whose meter stands still, nothing. Without the card's
    meter there is no sum."""
    tokens = [(report["prefill"][0], 4), (report["decode"][0], 3), (report["decode"][1], 6)]
    for line, n in tokens:
        card = pytest.approx(1.5 / n) if card_has_meter else None
        assert line["joules_per_token"] == {"total": card, "processor": 0, "card": card}


@pytest.mark.parametrize("quant", ["bf16", "int4"])
def test_bench_of_weights_made_on_the_card(quant, tmp_path):
    """Figures that belong together do; nothing but steps is sent to the card; the report file is the same JSON."""
    file = tmp_path / "report.json"
    result = bench(quant, "--batch", "1,2", "--depth", "0", "--json", "--report", file,
                   env={**fake(log=1), **powercap(tmp_path / "rapl"), "FAKE_NVML": "" if quant == "int4" else "none"})
    report = result.json
    check_joules(report, quant == "int4")
    assert json.loads(file.read_text()) == report
    assert "repack" not in result.err and "generate_tiles" in result.err
    assert report["gpu"]["card"]["name"].startswith("fibres") and report["load_gb_s"] is None
    assert report["gpu"]["load"]["generated"] and report["synthetic"]["seed"] == 1
    constants = report["gpu"]["constants"]
    assert all(constants[name] > 0 for name in ("read_gb_s", "boundary_us", "node_gap_us", "to_card_gb_s", "from_card_gb_s"))
    assert constants["boundary_us"] >= constants["node_gap_us"]
    profile = report["gpu"]["profile"]
    assert sum(line["layers"] for line in profile["launches"]) == profile["step_kernels"]
    built = constants_of_plan()["gpu_launches_a_layer"]["value"]  # what `plan` counts with is what is launched
    assert (profile["layer_kernels"], profile["dense_layer_kernels"]) == (built, built)
    assert [(line["batch"], line["depth"]) for line in report["decode"]] == [(1, 0), (2, 0)]
    for line in report["decode"]:
        assert line["synthetic"] and line["kernels"] == profile["step_kernels"]
        assert line["bytes_s"] == pytest.approx(line["bytes_per_step"] / line["read_gb_s"] * 1e-9)
        assert line["kernels_s"] == pytest.approx(line["kernels"] * constants["boundary_us"] * 1e-6)
        assert line["floor_s"] == pytest.approx(line["bytes_s"] + line["kernels_s"])
        assert line["step_over_floor"] == pytest.approx(line["step_s"] / line["floor_s"])
    assert report["prefill"][0]["tflop_per_s"] > 0


def test_bench_in_words():
    text = bench("fp8", "--batch", "1", "--depth", "0", env={**fake(), "MOEBIUS_POWERCAP": "/nowhere"}).text
    for words in ("energy: 0.5 J a token, 0.5 of them of the card; the processor has no meter\n",
                  "fibres on a CPU", "made on the card", "step / floor", "kernels, ", "a layer with experts", "synthetic"):
        assert words in text, text


def test_no_joules_of_one_card_among_several(tmp_path):
    flags = ["--device", "cuda:0,cuda:1", *SMALL, "--batch", "1", "--depth", "0", "--json"]
    report = succeed("bench", GOLDEN / "v2lite-tiny", *flags, env={**fake(devices=2), **powercap(tmp_path / "rapl")}).json
    for line in (report["prefill"][0], report["decode"][0]):
        assert line["joules_per_token"] == {"total": None, "processor": 0, "card": None}


def test_bench_counts_the_same_bytes_as_on_the_cpu():
    """The experts of a GPU's steps are looked up apart. Without a card the same command measures the CPU, and says so."""
    flags = [GOLDEN / "v2lite-tiny", *GPU, *SMALL, "--batch", "1,2", "--depth", "0", "--json"]
    on_cpu, on_card = (succeed("bench", *flags, env={**fake(devices=devices), "MOEBIUS_MEMORY": "0.5"}) for devices in (0, 1))
    assert "computing on the CPU" in on_cpu.err and "gpu" not in on_cpu.json
    for a, b in zip(on_cpu.json["decode"], on_card.json["decode"], strict=True):
        assert a["bytes_per_step"] == pytest.approx(b["bytes_per_step"], rel=0.02)
    load = on_card.json["gpu"]["load"]
    assert not load["generated"] and load["bytes"] > 1e6
    assert on_card.json["load_gb_s"] == pytest.approx(load["bytes"] / load["s"] * 1e-9)


def test_bench_gpu():
    report = succeed("bench", "gpu", "--json", env=fake(processors=1)).json
    assert report["load"] is None and report["profile"] is None and report["constants"]["barrier_us"] > 0
    report = succeed("bench", "gpu", "--json").json
    assert report["constants"]["barrier_us"] == 0  # the shim's blocks run one after another: the probe gives up waiting
    refused(moebius("bench", "gpu", env=fake(devices=0)), "the GPU driver sees no card")
    refused(moebius("bench", "gpu", env={"LD_LIBRARY_PATH": ""}), "no GPU driver", "libcuda.so.1")
    refused(moebius("bench", "gpu", "--device", "cpu"), "no GPU")


def test_a_lost_card_is_one_message():
    refused(moebius("bench", "gpu", env=fake(launch=3)), "GPU 0", "measuring it", "unspecified launch failure")
    for k in (1, 2):
        refused(moebius("bench", "gpu", env=fake(alloc=k, leaks=1)), "GPU 0", "out of memory")
    refused(moebius("bench", *GPU, "--config", SHAPE, *SMALL, env=fake(alloc=4)), "GPU 0", "GiB free")


# --- quantised on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["int4", "int8", "fp8", "bf16"])
def test_quantised_on_the_way_is_the_same_bits(quant, tmp_path):
    """One matrix at a time gives what a file of `moebius quantize` gives."""
    file, outs = tmp_path / "packed.safetensors", []
    succeed("quantize", GOLDEN / "v2-tiny", "--quant", quant, "-o", file)
    for model, flags in ((file, []), (GOLDEN / "v2-tiny", ["--quantization", quant])):
        outs.append(tmp_path / f"{len(outs)}.f32")
        succeed("logits", model, "--ids", "5,6,7,8", "--all", "--out", outs[-1], *GPU, *flags)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_files_are_read_on_several_threads(tmp_path):
    """Matrices of more than a megabyte go in parts; the card gets what one thread brings it."""
    config, file, outs = tmp_path / "config.json", tmp_path / "synthetic.safetensors", []
    shape = {"hidden_size": 1024, "intermediate_size": 1100, "num_hidden_layers": 1, "vocab_size": 600}
    config.write_text(json.dumps({**json.loads(SHAPE.read_text()), **shape}))
    succeed("synth", "--config", config, "--quant", "bf16", "-o", file)
    for threads in (1, 3):
        outs.append(tmp_path / f"{threads}.f32")
        succeed("logits", file, "--ids", "7", "--out", outs[-1], *GPU, "--threads", threads)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_quantised_for_experts_on_the_cpu(tmp_path):
    """These need their bytes in memory for good."""
    outs = []
    for flags in (["--expert-device", "cpu"], []):
        outs.append(tmp_path / f"{len(outs)}.f32")
        succeed("logits", GOLDEN / "v2-tiny", "--ids", "5,6,7", "--out", outs[-1], *GPU, "--quantization", "int8", *flags)
    a, b = (conftest.read_f32(out, -1) for out in outs)
    assert abs(a - b).max() < 0.25


# --- the list of steps -----------------------------------------------------------------------------------------------------


def visit(tmp_path, steps, *flags):
    """(exit status, the JSON it left)"""
    plan = tmp_path / "steps.json"
    plan.write_text(json.dumps({"commit": "abc", "steps": steps}))
    out = tmp_path / "gpu.json"
    done = subprocess.run([BIN / "visit", plan, "--out", out, *map(str, flags)], capture_output=True, text=True, timeout=60)
    assert out.exists(), done.stdout + done.stderr
    assert not list(tmp_path.glob("gpu.json.*"))
    return done, json.loads(out.read_text())


def shell(name, script, limit_s=20, **more):
    return {"name": name, "limit_s": limit_s, "command": ["/bin/sh", "-c", script], **more}


def test_steps(tmp_path):
    """One that reports, one that fails, one that is stopped with half a report and a child, one whose program is not there."""
    done, result = visit(tmp_path, [
        shell("card", "echo '{\"card\": {\"name\": \"x\"}}' > {report}; echo said"),
        shell("bad", "printf 'caf\\303\\251\\n'; exit 3"),
        shell("slow", "echo '[1]' > {report}; echo before; sleep 30 & wait", limit_s=1),
        {"name": "absent", "limit_s": 5, "optional": True, "command": ["no-such-program-here"]},
        {"name": "missing", "limit_s": 5, "command": ["no-such-program-here"]},
        shell("where", "test -f {root}/steps.json && echo {bin} $MORE", environment={"MORE": "more"})], "--bin", "/some/where")
    assert done.returncode == 1 and "2 passed, 3 failed, 1 left out" in done.stdout
    card, bad, slow, missing, where = result["steps"]
    assert result["complete"] and result["commit"] == "abc" and result["card"] == {"name": "x"}
    assert card["rc"] == 0 and card["said"] == "said\n" and card["result"]["card"]["name"] == "x"
    assert bad["rc"] == 3 and bad["result"] is None and bad["said"] == "caf??\n"
    assert slow["stopped"] and slow["result"] == [1] and slow["said"] == "before\n" and slow["seconds"] < 5
    assert missing["rc"] == 127 and where["said"] == "/some/where more\n"
    assert [line["name"] for line in result["left_out"]] == ["absent"]


def test_steps_within_a_budget(tmp_path):
    """What has no time left is listed; a long step is stopped when the budget ends."""
    done, result = visit(tmp_path, [shell("long", "sleep 30"), shell("late", "true")], "--budget", 4)
    assert [(step["name"], step["stopped"]) for step in result["steps"]] == [("long", True)]
    assert result["left_out"] == [{"name": "late", "why": "no time was left"}]
    assert result["seconds"] < 8


def test_steps_that_are_wanted(tmp_path):
    done, result = visit(tmp_path, [shell("a", "true"), shell("ab", "true"), shell("b", "true")], "--only", "ab,b")
    assert [step["name"] for step in result["steps"]] == ["ab", "b"] and done.returncode == 0


def test_the_steps_of_a_visit_are_commands_that_we_have(tmp_path, monkeypatch):
    """Their flags parse: nothing is found out only on a machine with a GPU. Each is refused for a reason of its own, not for its flags."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)  # without a card no bench measures one first
    steps = json.loads((TESTS / "cuda" / "steps.json").read_text())["steps"]
    assert len({step["name"] for step in steps}) == len(steps)
    commands = [step["command"] for step in steps]
    ours = [command[1:] for command in commands if command[0] == "{bin}/moebius"]
    assert len(ours) > 12
    for flags in ours:
        flags = [word.replace("{report}", str(tmp_path / "report.json")) for word in flags]
        if flags[0] == "doctor":
            succeed(*flags, "--quick")
        elif flags[0] == "synth":
            flags[-1] = tmp_path / "nowhere" / "file"
            refused(moebius(*flags), "nowhere")
        elif "--like" in flags:
            flags[flags.index("--max-model-len") + 1] = "9999999"
            refused(moebius(*flags), "--max-model-len 9999999 is longer")
        elif flags[1] != "gpu":
            refused(moebius(*flags, env=fake(devices=0)), "/tmp/moebius-visit", ".safetensors")  # no card is measured first


# --- tests that a card fails -------------------------------------------------------------------------------------------------


def kernels(*arguments, **env):
    return subprocess.run([BUILD / "tests" / "cuda" / "test_kernels", *arguments], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **env})


def test_a_wrong_kernel_is_described():
    """Which format, shape and number of rows, how many values, where, and that they are no numbers; all of it, not the first thing."""
    done = kernels("test_products, int4 64", MOEBIUS_SHIM_WRONG="linear_int4_skinny")
    wrong = [line for line in done.stderr.splitlines() if line.startswith("WRONG ")]
    assert done.returncode == 1 and len(wrong) >= 6, done.stderr
    assert wrong[0].startswith("WRONG int4 64, q_b: 8 rows: 96 of 1120 values, 96 of them no numbers, at rows mod 16 0fff, tokens mod 8 ff; "
                               "the first is row 128, token 0: expected ")
    assert not any(": 9 rows" in line for line in wrong)  # the wide kernels are right


def test_tests_go_on_after_a_lost_card():
    """In a new process, from the next one on."""
    done = kernels("--from", "33", **fake(wait=12))
    assert "going on in a new one" in done.stderr and done.returncode, done.stderr
    for name in ("test_room", "test_ended_by_another_thread", "test_refused_format"):
        assert f"[  FAILED  ] {name}\n" in done.stdout, done.stdout


# --- golden models without Python -------------------------------------------------------------------------------------------


def golden(models, *flags, env=None):
    return subprocess.run([BIN / "golden", SHIM / "moebius", models, *flags], capture_output=True, text=True, timeout=120,
                          env={"MOEBIUS_MEMORY": "1", **os.environ, **(env or {})})  # a bench of all of it takes seconds


def test_golden_program(tmp_path):
    report = tmp_path / "report.json"
    done = golden(GOLDEN, "--sets", "v2lite-tiny", "--cases", "p17", "--report", report)
    assert done.returncode == 0 and "2 passed, 0 failed" in done.stdout, done.stdout + done.stderr
    lines = json.loads(report.read_text())
    assert [line["check"] for line in lines] == ["reference", "recorded steps"]
    assert lines[0]["rows"] == 17 and 0 < lines[0]["mean_error"] < 0.05


def test_golden_program_finds_wrong_numbers(tmp_path):
    folder = tmp_path / "v2lite-tiny"
    shutil.copytree(GOLDEN / "v2lite-tiny", folder)
    values = conftest.read_f32(folder / "p17.logits.f32", -1)
    (folder / "p17.logits.f32").write_bytes((values + 0.5).astype("<f4").tobytes())
    done = golden(tmp_path, "--cases", "p17")
    assert done.returncode == 1 and "1 passed, 1 failed" in done.stdout, done.stdout + done.stderr
    assert '"first_wrong":"position 0, token 0: expected ' in done.stdout and "its self-test finds nothing" in done.stderr
    assert golden(tmp_path / "nothing").returncode == 1


def test_golden_program_wants_a_card():
    done = golden(GOLDEN, "--sets", "v2lite-tiny", "--cases", "p17", env=fake(devices=0))
    assert done.returncode == 1 and "0 passed, 2 failed" in done.stdout, done.stdout + done.stderr
    assert "computing on the CPU" in done.stderr


# --- the gate ------------------------------------------------------------------------------------------------------------------

FAKE_NVCC = r"""#!/bin/sh
case "$*" in
--version) echo 'Build, V9.9.1' ;;
--list-gpu-arch) echo 'compute_80 compute_90' ;;
*)
    echo "$*" >> CALLS
    for word; do source=$word; done
    name=${source##*/}; name=${name%.cu}
    while [ "$1" != -o ]; do shift; done
    printf '.visible .entry %s(\n)\n{\n\tld.global.nc.L1::no_allocate.v4.u32 {%%r1};\n\tmma.sync.aligned.m16n8k16 {%%r1};\n}\n' "$name" > "$2"
    echo "ptxas info : Compiling entry function '$name' for 'sm_80'"
    echo '    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads'
    echo 'ptxas info : Used 40 registers'
    ;;
esac
"""


@pytest.fixture
def fake_gate(tmp_path):
    """Runs the gate over three small sources with an nvcc that notes what it was asked for."""
    kernels, calls, nvcc = tmp_path / "kernels", tmp_path / "calls", tmp_path / "nvcc"
    kernels.mkdir()
    for name in ("linear_a", "linear_b", "other"):
        (kernels / f"{name}.cu").write_text(f'#include "shared.cuh"\n// {name}\n' if name != "other" else "// other\n")
    (kernels / "shared.cuh").write_text("// 1\n")
    nvcc.write_text(FAKE_NVCC.replace("CALLS", str(calls)))
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)

    def run(*flags):
        calls.write_text("")
        done = subprocess.run([sys.executable, TESTS / "cuda" / "gate.py", "--nvcc", nvcc, "--archs", "80 90 120", "--kernels", kernels,
                               "--tables", tmp_path, *flags], capture_output=True, text=True)
        compiled = [line.split("/")[-1].removesuffix(".cu") for line in calls.read_text().splitlines()]
        return done, compiled

    return run, kernels


def test_gate_compiles_what_changed_and_one_more(fake_gate):
    run, kernels = fake_gate
    done, compiled = run()
    assert done.returncode == 0 and "left out: this nvcc does not know sm_120" in done.stdout
    assert sorted(compiled) == sorted(3 * ["linear_a", "linear_b", "other"])  # PTX once, and two cards
    done, compiled = run("--check")
    assert done.returncode == 0 and len(compiled) == 2, done.stdout  # one of each table, drawn
    assert run("--check")[1] == compiled  # the same one for the same sources
    assert len({tuple(run("--check", "--seed", str(seed))[1]) for seed in range(6)}) > 1
    assert len(run("--full", "--check")[1]) == 9
    (kernels / "shared.cuh").write_text("// 2\n")
    done, compiled = run("--check")
    assert done.returncode == 1 and "linear_a 80" in done.stdout and "is not up to date" in done.stdout
    assert compiled.count("linear_a") == compiled.count("linear_b") == 3 and compiled.count("other") == 2  # the drawn ones
    assert run()[0].returncode == 0 and len(run("--check")[1]) == 2


PTX = """
.visible .entry NAME(
    .param .align 8 .b8 p[8]
)
{
    ld.global.nc.L1::no_allocate.v4.u32 {%r1,%r2,%r3,%r4}, [%rd1];
    @%p1 cp.async.cg.shared.global [%r1], [%rd2], 16;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r5}, {%f1};
    atom.global.add.u32 %r9, [%rd3], 1;
    // ld.local.u32 in a comment
    MORE
}
"""


def complaints(name, more="", drop=""):
    ptx = PTX.replace("NAME", name).replace("MORE", more)
    ptx = "\n".join(line for line in ptx.splitlines() if not drop or drop not in line)
    row = gate.count_instructions(ptx)[name]
    return row, list(gate.unexpected({"file": "f", "kernel": name, **row}))


def test_gate_knows_instructions():
    row, problems = complaints("linear_x")
    assert row == {"loads_v4": 1, "async_copies": 1, "mma": 1, "local": 0, "div64": 0, "atomics": "add.u32"} and not problems
    for more, word in (("st.local.u32 [%rd1], %r1;", "local memory"), ("div.s64 %rd1, %rd2, %rd3;", "64-bit"),
                       ("@%p2 rem.u64 %rd1, %rd2, %rd3;", "64-bit"), ("atom.global.add.f32 %f1, [%rd1], %f2;", "floating-point"),
                       ("red.global.gpu.add.f32 [%rd1], %f2;", "floating-point"), ("atom.global.cas.b32 %r1, [%rd1], %r2, %r3;", "atomics")):
        assert any(word in problem for problem in complaints("linear_x", more)[1]), more
    assert "no matrix unit" in complaints("attn_x", drop="mma")[1][0]
    ptx = PTX.replace("NAME", "attn_x").replace("v4.u32", "u32").replace("cp.async", "nothing")
    assert "16 bytes" in list(gate.unexpected({"file": "f", "kernel": "attn_x", **gate.count_instructions(ptx)["attn_x"]}))[0]
    assert not complaints("repack_x", "div.s64 %rd1, %rd2, %rd3;")[1]  # not hot


def test_gate_knows_machine_code():
    hot = "Function : linear_x\n LDG.E.128.CONSTANT R4, [R2.64] ;\n HMMA.16816.F32.BF16 R8, R4, R6, R8 ;\n"
    assert not list(gate.look_at_machine_code(hot))
    assert "local" in list(gate.look_at_machine_code(hot + " STL [R1], R4 ;\n"))[0]
    assert len(list(gate.look_at_machine_code("Function : linear_x\n LDG.E R4, [R2.64] ;\n"))) == 2


def test_gate_tables_are_of_these_sources():
    """A row for each kernel of the tree, for every card that `make` compiles for, from the sources as they are: `make test` itself
    compiles for one. Instructions are counted for one target, and a kernel that is not made for it has none."""
    import re

    sizes, instructions = (gate.read_table(name) for name in ("kernels.tsv", "instructions.tsv"))
    cards = re.search(r"^CUDA_CARDS := (.*)$", (conftest.ROOT / "src/backend/cuda/cuda.mk").read_text(), re.M)[1].split()
    for file in gate.KERNELS.glob("*.cu"):
        kernels = set(re.findall(r"^KERNEL\w*\((\w+),", file.read_text(), re.M))
        rows = [row for (f, _), rows in sizes.items() if f == file.stem for row in rows]
        assert {row["kernel"] for row in rows} == kernels, f"kernels.tsv: {file.stem} (make cuda-gate)"
        assert {row["arch"] for row in rows} == set(cards), f"kernels.tsv: {file.stem} (make cuda-gate)"
        targets = [target for f, target in instructions if f == file.stem]
        assert len(targets) == 1, f"instructions.tsv: {file.stem} (make cuda-gate)"
        made, counted = ({row["kernel"] for row in table[file.stem, targets[0]]} for table in (sizes, instructions))
        assert made == counted, f"instructions.tsv: {file.stem} (make cuda-gate)"
        now = gate.hash_of(file)
        assert all(row["sources"] == now for row in [*rows, *instructions[file.stem, targets[0]]]), f"{file.stem} (make cuda-gate)"
