"""GGUF's blocks on a GPU, which here is tests/shim: every format in every matrix, and formats mixed as files mix them, against the
CPU's plain floats with the same weights. Single products: tests/cuda/test_kernels.c."""

import sys
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import conftest
import gguf_model
import tiny_tokenizer
from conftest import moebius, refused, succeed
from test_cuda import GPU, shim  # noqa: F401  (the fixture)
from test_gguf import WIDE, blocks, wide_shapes

sys.path.insert(0, str(conftest.TESTS / "server"))
from serving import Server  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 256, 70)]  # more than the variants for few rows take
SPLIT_KV_B = True
SHAPES = wide_shapes(WIDE, SPLIT_KV_B)
HAVE_KERNELS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]


def write_model(path, kind_of, config=WIDE, shapes=SHAPES):
    """A model of random blocks; kind_of: a tensor's name -> its type."""
    random, tensors = np.random.default_rng(11), {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = random.uniform(0.5, 1.5, shape).astype("<f4")
        elif name.endswith("ffn_gate_inp.weight"):
            tensors[name] = random.normal(0, 0.5, shape).astype("<f4")
        else:
            kind = kind_of(name)
            tensors[name] = (blocks(random, kind, shape)[0], Type[kind])
    tokenizer = gguf_model.tokenizer_keys(tiny_tokenizer.tokenizer(), tiny_tokenizer.config(), config["vocab_size"], "deepseek-llm")
    return gguf_model.write(path, {**gguf_model.keys_of(config, SPLIT_KV_B), **tokenizer}, tensors)


def logits(model, tmp_path, *flags, ids=IDS):
    succeed("logits", model, "--ids", ",".join(map(str, ids)), "--all", "--out", tmp_path / "out", *flags)
    return conftest.read_f32(tmp_path / "out", len(ids), -1)


def assert_near(got, want):
    """Activations are bf16 on a card, and an expert may be another one where two are near each other: few rows differ much."""
    assert np.isfinite(got).all()
    error = np.abs(got - want).max(axis=1) / np.abs(want).max()
    assert np.median(error) <= 0.02 and np.mean(error > 0.05) <= 0.1, (np.median(error), error.max())


@pytest.mark.parametrize("kind", HAVE_KERNELS)
def test_formats(kind, tmp_path):
    """A prompt at once and in pieces, which are other kernels and the same bits; the embedding, the head, experts and kv_b in blocks."""
    model = write_model(tmp_path / "m.gguf", lambda name: kind)
    want = logits(model, tmp_path, "--compute", "f32", "--threads", 1)
    got = logits(model, tmp_path, *GPU)
    assert_near(got, want)
    for chunk in (7, 33):
        assert np.array_equal(logits(model, tmp_path, *GPU, "--chunk", chunk), got), chunk
    said = run(model)
    assert said.code == 0 and said.json["text"], str(said)


def run(model, env=None):
    """With the self-test, which holds the card's layers against the CPU's. (Scratch of longer steps is more than the shim fills with
    NaN, and zeros in a kernel's place may be near enough.)"""
    return moebius("run", model, "-p", "A prompt", "-n", 4, "--temperature", 0, "--max-num-batched-tokens", 512, "--json", *GPU, env=env)


# Rows of 96 are no multiple of 256, so what comes back of an expert is in blocks of 32, as in files of V2-Lite.
MIXED = dict(WIDE, moe_intermediate_size=96)
KINDS = {"attn_q.": "Q4_K", "attn_kv_a_mqa.": "Q5_K", "attn_output.": "Q6_K", "attn_k_b.": "Q8_0", "attn_v_b.": "Q6_K", "ffn_down.": "Q3_K",
         "ffn_gate_exps.": "Q4_K", "ffn_up_exps.": "Q4_K", "ffn_down_exps.": "Q5_0", "ffn_down_shexp.": "Q8_0", "output.": "Q6_K",
         "ffn_gate.": "Q3_K", "ffn_up.": "Q2_K"}  # and two formats where one tile wants one


def mixed_model(path):
    shapes = dict(SHAPES)
    for name, shape in SHAPES.items():
        if "exps" in name or "shexp" in name:
            sizes = list(shape)
            sizes[-1 if "down" in name else -2] = 96
            shapes[name] = tuple(sizes)
    kind_of = lambda name: next((kind for part, kind in KINDS.items() if part in name), "Q4_K")
    return write_model(path, kind_of, MIXED, shapes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("mixed") / "m.gguf")


def test_mixed(mixed, tmp_path):
    """Formats that differ between matrices, within an expert, and between an expert and the shared one."""
    got = logits(mixed, tmp_path, *GPU)
    assert_near(got, logits(mixed, tmp_path, "--compute", "f32", "--threads", 1))
    assert np.array_equal(logits(mixed, tmp_path, *GPU, "--chunk", 5), got)


@pytest.mark.parametrize("kernel", ["embed", *(f"linear_bits{bits}_{variant}" for bits in (3, 4, 5, 6) for variant in ("skinny", "many"))])
def test_a_wrong_card(kernel, mixed):
    """The self-test hears of it."""
    assert run(mixed).code == 0
    refused(run(mixed, env={"MOEBIUS_SHIM_WRONG": kernel}), "self-test: GPU 0", "stage")


def test_serve(mixed, tmp_path):
    """Several at once have the answers that each has alone."""
    server = Server(mixed, *GPU, "--max-num-seqs", 4, "--max-model-len", 256, program=conftest.PROGRAM, folder=tmp_path)
    try:
        ask = lambda i: server.complete("abc" * (i + 1), max_tokens=6, temperature=0, ignore_eos=True)["choices"][0]["text"]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(ask, range(4)))
        assert together == [ask(i) for i in range(4)] and all(together)
    finally:
        server.process.kill()
        server.process.wait()


def test_experts_on_the_cpu(mixed, tmp_path):
    """Those experts' blocks are put into another order, and nothing else's."""
    flags = [*GPU, "--expert-device", "cpu"]
    got = logits(mixed, tmp_path, *flags)
    assert_near(got, logits(mixed, tmp_path, "--compute", "f32", "--threads", 1))
    assert np.array_equal(got, logits(mixed, tmp_path, *flags, "--no-repack"))
    report = succeed("bench", mixed, "--prompt", 1, "--generate", 1, "--batch", 1, "--depth", 0, "--repeat", 1, "--json", *flags)
    routed = [t for t in gguf.GGUFReader(mixed).tensors if "_exps." in t.name]
    rounded = sum(t.n_bytes + 4096 * WIDE["n_routed_experts"] for t in routed)
    assert sum(t.n_bytes for t in routed) <= report.json["repacked_bytes"] < rounded


def test_experts_over_the_link(mixed, tmp_path):
    """In long steps they come to the card as they lie in the file, whatever order the CPU has them in; what the card has no kernels
    for stays the CPU's."""
    long = [*GPU, "--cpu-moe", "--op-offload-min-batch", 8]
    card = logits(mixed, tmp_path, *GPU)
    assert np.array_equal(logits(mixed, tmp_path, *long), card) and np.array_equal(logits(mixed, tmp_path, *long, "--no-repack"), card)
    other = write_model(tmp_path / "m.gguf", lambda name: "TQ1_0" if "_exps" in name else "Q8_0")
    assert "--op-offload-min-batch 8: layer 1: there are no GPU kernels" in moebius("logits", other, "--ids", "1", *long).err
    assert np.array_equal(logits(other, tmp_path, *long), logits(other, tmp_path, *GPU, "--cpu-moe", "--no-op-offload"))


def test_quantized_anew(mixed, tmp_path):
    """What was the way out before there were kernels still works, and is what `quantize` makes."""
    succeed("quantize", mixed, "--quant", "int4", "-o", tmp_path / "int4.safetensors")
    assert np.array_equal(logits(mixed, tmp_path, *GPU, "--quantization", "int4"), logits(tmp_path / "int4.safetensors", tmp_path, *GPU))


def bytes_of(path, name):
    return next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name).data.tobytes()


def test_scales_that_are_no_numbers(tmp_path):
    """A NaN among the scales ends the start, by name."""
    raw = bytearray(write_model(tmp_path / "m.gguf", lambda name: "Q4_K").read_bytes())
    at = raw.rindex(bytes_of(tmp_path / "m.gguf", "blk.1.attn_output.weight")[:144])
    raw[at:at + 2] = b"\x00\x7e"
    (tmp_path / "nan.gguf").write_bytes(raw)
    refused(moebius("logits", tmp_path / "nan.gguf", "--ids", "1", *GPU), "layer 1, o", "NaN")


def test_plan(tmp_path):
    """What a card takes: scales of six bits become bytes there (tests/cuda/test_kernels.c has the same numbers), kv_b bf16."""
    more = {"Q4_K": 0.125, "Q3_K": 0.125, "Q5_K": 0.125, "IQ4_XS": 0.0625, "Q6_K": 0, "Q4_0": 0}
    planned = lambda *flags: succeed("plan", tmp_path / "m.gguf", "--ram", "64@89", "--json", *flags).json["weights_bytes"]
    for kind, bits in more.items():
        write_model(tmp_path / "m.gguf", lambda name: kind)
        weights = sum(int(np.prod(shape)) for name, shape in SHAPES.items()
                      if len(shape) > 1 and not any(part in name for part in ("token_embd", "_k_b", "_v_b", "gate_inp")))
        assert planned("--gpu", "rtx-4090") - planned("--gpu", "none") == weights * bits / 8, kind
