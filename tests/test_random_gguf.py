"""tools/random_gguf.py: files that load, give finite logits, and hold the types that llama.cpp's quantizer chooses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from conftest import GOLDEN, PROGRAM, ROOT, read_f32, succeed

sys.path.insert(0, str(ROOT / "tools"))
import random_gguf  # noqa: E402

TOOL = ROOT / "tools" / "random_gguf.py"
WIDE = {**random_gguf.V2_LITE, "num_hidden_layers": 5, "hidden_size": 256, "vocab_size": 300, "num_attention_heads": 2,
        "kv_lora_rank": 256, "intermediate_size": 512, "moe_intermediate_size": 96, "n_routed_experts": 8}


def tool(out, config, *flags):
    path = out.parent / "config.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, TOOL, out, "--config", path, *flags]
    return subprocess.run(command, capture_output=True, text=True)


def make(tmp_path, config, *flags):
    done = tool(tmp_path / "m.gguf", config, *flags)
    assert done.returncode == 0, done.stderr
    return tmp_path / "m.gguf"


def logits(model, out):
    succeed("logits", model, "--ids", "0,20,30,40", "--all", "--out", out)
    return read_f32(out, 4, -1)


@pytest.mark.parametrize("kv_b", ["split", "whole"])
@pytest.mark.parametrize("kind, found", [
    ("q4_k_m", {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}), ("q5_k_m", {"F32", "Q5_K", "Q5_1", "Q6_K", "Q8_0"}),
    ("q8_0", {"F32", "Q8_0"}), ("q4_1", {"F32", "Q4_1", "Q6_K"}), ("q2_k", {"F32", "Q2_K", "Q4_0", "Q6_K"}),
    ("q3_k", {"F32", "Q3_K", "Q4_0", "Q6_K"}), ("iq4_xs", {"F32", "IQ4_XS", "IQ4_NL", "Q6_K"}), ("bf16", {"F32", "BF16"}),
    ("f16", {"F32", "F16"})])
def test_types(kind, found, kv_b, tmp_path):
    path = make(tmp_path, WIDE, "--type", kind, "--kv-b", kv_b)
    assert set(succeed("info", path, "--json").json["bytes_by_format"]) == found
    got = logits(path, tmp_path / "out")
    assert np.isfinite(got).all() and 0.3 < got.std() < 10, got.std()
    assert np.abs(got[0] - got[1]).max() > 0.1
    succeed("info", path, "--verify")


def test_other_shapes(tmp_path):
    """V3's: low-rank queries, groups, a bias of the router; fewer layers than are dense; a text in and out."""
    config = json.loads((GOLDEN / "v3-tiny/config.json").read_text())
    path = make(tmp_path, config, "--type", "q8_0")
    got = logits(path, tmp_path / "out")
    assert np.isfinite(got).all() and got.std() > 0.3
    done = succeed("run", path, "-p", "return a", "-n", 2, "--json")
    assert done.json["prompt_tokens"] > 2
    assert succeed("info", make(tmp_path, config, "--layers", "1"), "--json").json["layers"] == 1


def test_mixes_as_llama_quantize_writes_them():
    """What llama-quantize (llama-cpp-python 0.3.36's llama.cpp) made of V2-Lite's shape in F16, 27 layers, Q4_K_M."""
    more = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26}
    for split in (True, False):
        for name, shape in random_gguf.shapes_of(random_gguf.V2_LITE, split):
            kind = random_gguf.type_of(name, shape, "q4_k_m", 27).name
            if "norm" in name or "ffn_gate_inp" in name:
                want = "F32"
            elif "ffn_down" in name and "shexp" not in name:  # rows of 10944 or 1408
                want = "Q8_0" if int(name.split(".")[1]) in more else "Q5_0"
            elif "ffn_down_shexp" in name or "attn_kv_b" in name:
                want = "Q6_K" if int(name.split(".")[1]) in more else "Q4_K"
            else:
                want = {"output.weight": "Q6_K"}.get(name, "Q5_0" if "attn_k_b" in name else "Q4_K")
            assert kind == want, name


def test_same_seed_same_bytes(tmp_path):
    first = make(tmp_path, WIDE).read_bytes()
    assert make(tmp_path, WIDE).read_bytes() == first
    assert make(tmp_path, WIDE, "--seed", "2").read_bytes() != first


def test_a_failure_leaves_no_file(tmp_path):
    """A config.json without sizes, and a folder where nothing can be written: `m.gguf.partial` is a folder."""
    done = tool(tmp_path / "m.gguf", {"architectures": ["DeepseekV2ForCausalLM"]})
    assert done.returncode == 1 and "config.json: no key 'vocab_size'" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "m.gguf.partial").mkdir()
    done = tool(tmp_path / "m.gguf", WIDE)
    assert done.returncode == 1 and "m.gguf.partial" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_taken_over_between_tokens(threads, tmp_path):
    """While a text is made, its weights are put into another order: the same text as without."""
    path = make(tmp_path, {**WIDE, "num_hidden_layers": 12}, "--type", "q4_k_m")
    texts = [succeed("run", path, "-p", "return a", "-n", 100, "--temp", 1, "--seed", 3, "--ignore-eos", "--threads", threads,
                     "--json", *flags).json["text"] for flags in ([], [], ["--no-repack"])]
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) > 50


def test_no_repack_in_place_of_what_is_read_again(tmp_path):
    """Of a file that does not fit into memory, blocks that could be turned would take the room of those that cannot: they stay."""
    path = make(tmp_path, {**WIDE, "n_routed_experts": 512, "moe_intermediate_size": 256}, "--type", "iq2_xxs")
    bench = ["bench", path, "--prompt", 3, "--generate", 2, "--batch", 1, "--depth", 0, "--repeat", 1, "--json",
             "--expert-cache", 0]
    size = path.stat().st_size / 2**30
    few = succeed(*bench, env={"MOEBIUS_MEMORY": str(size * 0.8)})
    assert few.json["repacked_bytes"] == 0 and "stay as they lie" in few.err
    assert 0 < succeed(*bench, env={"MOEBIUS_MEMORY": str(size * 4)}).json["repacked_bytes"] < size * 2**30 / 2


def test_refused_memory(tmp_path):
    """Where the system refuses what seemed to be there (here: addresses), blocks stay as they lie, with a warning."""
    path = make(tmp_path, {**WIDE, "n_routed_experts": 128, "moe_intermediate_size": 256}, "--type", "q8_0")
    step = path.stat().st_size // 4096  # KiB: a quarter of what is wanted
    limited = 'ulimit -v "$1"; shift; exec "$@"'
    for limit in range(4 * step, 100 * step, step):
        done = subprocess.run(["sh", "-c", limited, "sh", str(limit), PROGRAM, "run", path, "-p", "return a", "-n", "3",
                               "--ignore-eos", "--threads", "2"], capture_output=True, text=True)
        if done.returncode == 0:
            break
    assert "weights stay as they lie, which is slower: no 0." in done.stderr
