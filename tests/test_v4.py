"""DeepSeek-V4: a window, compressed rows and an indexer that chooses among them, residual streams, experts by token. The numbers of
v4-tiny and v4-tiny-fp8 are in test_golden.py with those of all sets; here is what only they must not depend on (test_hybrid_bits.py: V4.1
neither), what a query sees, and what is refused. The prefix cache is in server/test_hybrid.py."""

import json

import numpy as np
import pytest

import st
from conftest import DELETE, GOLDEN, change_config, copy_set, moebius, read_f32, refused, succeed
from test_golden import Case, check_levels, largest
from test_sparse import rewrite

SETS = ["v4-tiny", "v4-tiny-fp8"]
KINDS = ["f32", "bf16", "fp8"]
VOCAB, WINDOW, TOPK = 256, 16, 8
F32 = ["--compute", "f32", "--kv-cache-dtype", "f32"]
FIRST = "layers.0.attn."  # of v4-tiny-fp8: a ratio of 4
SPARSE, DENSE = "layers.1.attn.", "layers.2.attn."  # of v4-tiny


@pytest.fixture
def model(tmp_path):
    """v4-tiny, to be changed."""
    return copy_set("v4-tiny", tmp_path / "model")


@pytest.fixture
def quantized(tmp_path):
    return copy_set("v4-tiny-fp8", tmp_path / "model")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Six layers, as the published model's begin: what one layer leaves behind is not the next one's."""
    folder = tmp_path_factory.mktemp("deep")
    copy_set("v4-tiny", folder)
    (folder / "model.safetensors").unlink()
    change_config(folder, num_hidden_layers=6, num_hash_layers=3, compress_ratios=[0, 0, 4, 128, 4, 128, 0])
    succeed("synth", "--config", folder / "config.json", "--quant", "bf16", "-o", folder / "m")
    return folder / "m"


def tokens_of(n):
    return np.random.default_rng(n).integers(2, VOCAB, n).tolist()


def logits(folder, tokens, tmp_path, *flags, env=None):
    ids, out = tmp_path / "ids.json", tmp_path / "out.f32"
    ids.write_text(json.dumps(tokens))
    out.unlink(missing_ok=True)
    succeed("logits", folder, "--ids", ids, "--out", out, "--all", *flags, env=env)
    return read_f32(out, len(tokens), VOCAB)


def changed_rows(a, b):
    return np.flatnonzero((a != b).any(axis=1))


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 64, 300, 1201])
@pytest.mark.parametrize("name", SETS)
def test_long(name, chunk, tmp_path):
    """Nine windows of 128, hundreds of compressed rows, positions far behind YaRN's first ones."""
    case = Case(name, "long")
    got = case.logits(tmp_path, *F32, "--chunk", chunk)
    assert largest(got, case.expected) <= 1e-3


@pytest.mark.parametrize("name", SETS)
def test_every_level(name, tmp_path):
    """Every kernel there is computes the same bits, of which one is compared with the golden logits."""
    case = Case(name, "p200")
    check_levels(case, tmp_path, *F32, "--chunk", 37)
    assert largest(case.logits(tmp_path, *F32, "--chunk", 37), case.expected) <= 1e-3


@pytest.mark.parametrize("kv, bound", [("f32", 0.05), ("bf16", 0.05), ("fp8", 0.25)])
@pytest.mark.parametrize("name", SETS)
def test_fast_is_near(name, kv, bound, tmp_path):
    """As people run it, where all compressed rows are chosen, since what rounds turns near choices: the bars of the other sets."""
    folder = copy_set(name, tmp_path / "model")
    change_config(folder, index_topk=300)
    tokens = Case(name, "p200").tokens
    want = logits(folder, tokens, tmp_path, *F32)
    got = logits(folder, tokens, tmp_path, "--kv-cache-dtype", kv)
    error = np.abs(got - want).mean(axis=1)
    assert 0 < np.median(error) <= bound  # the median: a row may have other experts


@pytest.mark.parametrize("kv, bound", [("bf16", 0.05), ("fp8", 0.25)])
@pytest.mark.parametrize("name", SETS)
def test_rounded_cache_is_near(name, kv, bound, tmp_path):
    """Only the cache is rounded: raw rows, compressed ones, index keys."""
    folder = copy_set(name, tmp_path / "model")
    change_config(folder, index_topk=300)
    case = Case(name, "long")
    want = logits(folder, case.tokens, tmp_path, *F32)
    got = logits(folder, case.tokens, tmp_path, "--compute", "f32", "--kv-cache-dtype", kv)
    error = np.abs(got - want).mean(axis=1)
    assert 0 < np.median(error) <= bound


# --- same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_chunks_in_f32(name, tmp_path):
    tokens = tokens_of(300)
    want = logits(GOLDEN / name, tokens, tmp_path, *F32, "--chunk", 300)
    for more in (["--chunk", 1, "--threads", 1], ["--chunk", 3], ["--chunk", 64], ["--chunk", 130, "--threads", 3]):
        assert np.array_equal(logits(GOLDEN / name, tokens, tmp_path, *F32, *more), want), more


def test_many_layers(deep, tmp_path):
    tokens = tokens_of(420)
    want = logits(deep, tokens, tmp_path, "--chunk", 420)
    assert np.isfinite(want).all() and want.std() > 0
    for chunk in (1, 64, 100):
        assert np.array_equal(logits(deep, tokens, tmp_path, "--chunk", chunk), want), chunk


# --- what a query sees -----------------------------------------------------------------------------------------------


def only_layers(folder, keep, **config):
    """Leaves out the layers behind the first `keep`."""
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)
                                     if name.startswith("layers.") and int(name.split(".")[1]) >= keep])
    change_config(folder, num_hidden_layers=keep, **config)


def other(token):
    return token % 250 + 3


def test_the_window(model, tmp_path):
    """One layer without compressed rows: a token is seen by itself and the 15 that follow."""
    only_layers(model, 1)
    tokens = tokens_of(100)
    want = logits(model, tokens, tmp_path, *F32)
    for at in (0, 50, 63, 64):
        changed = list(tokens)
        changed[at] = other(changed[at])
        rows = changed_rows(logits(model, changed, tmp_path, *F32), want)
        assert rows.tolist() == list(range(at, at + WINDOW)), at


@pytest.mark.parametrize("window", [1, 5, 64, 65, 1000])
def test_other_windows(model, window, tmp_path):
    """Also beyond a page of the cache, and wider than the prompt."""
    only_layers(model, 1, sliding_window=window)
    tokens = tokens_of(150)
    want = logits(model, tokens, tmp_path, *F32)
    tokens[3] = other(tokens[3])
    rows = changed_rows(logits(model, tokens, tmp_path, *F32, "--chunk", 40), want)
    assert rows.tolist() == list(range(3, min(150, 3 + window)))


def drop_far_layers(tensors):
    """What is left of v4-tiny is its layer with the ratio 128, as the only one."""
    for name in [name for name in tensors if name.startswith(("layers.0.", "layers.1."))]:
        del tensors[name]
    for name in [name for name in tensors if name.startswith("layers.2.")]:
        tensors[name.replace("layers.2.", "layers.0.")] = tensors.pop(name)


def test_rows_of_128(model, tmp_path):
    """A window counts from its last token on, and then for ever; nothing between the sliding window and that."""
    rewrite(model, drop_far_layers)
    change_config(model, num_hidden_layers=1, num_hash_layers=0, compress_ratios=[128])
    tokens = tokens_of(400)
    want = logits(model, tokens, tmp_path, *F32)
    for at, window_end in ((0, 128), (100, 128), (127, 128), (128, 256), (300, 384)):
        changed = list(tokens)
        changed[at] = other(changed[at])
        rows = changed_rows(logits(model, changed, tmp_path, *F32), want)
        near, far = range(at, min(at + WINDOW, 400)), range(window_end - 1, 400)
        assert rows.tolist() == sorted({*near, *far}), at


def test_rows_of_4(quantized, tmp_path):
    """Where all are chosen: a token counts in the row of its own window, and in the next one, so from the end of its window on."""
    only_layers(quantized, 1, index_topk=100)
    tokens = tokens_of(90)
    want = logits(quantized, tokens, tmp_path, *F32)
    for at in (0, 5, 7, 40):
        changed = list(tokens)
        changed[at] = other(changed[at])
        rows = changed_rows(logits(quantized, changed, tmp_path, *F32), want)
        assert rows.tolist() == list(range(at, 90)), at


def no_index_weights(tensors):
    for name, (dtype, shape, raw) in tensors.items():
        if ".weights_proj." in name:
            tensors[name] = (dtype, shape, bytes(len(raw)))


def test_equal_scores_go_to_the_lowest_rows(quantized, tmp_path):
    """With weights of 0 all scores are equal, so the first 8 rows are chosen, made of the first 32 tokens: those between them and
    the window change nothing. (Neither DeepSeek's code nor transformers' says which of equal ones it takes.)"""
    rewrite(quantized, no_index_weights)
    only_layers(quantized, 1)
    tokens = tokens_of(150)
    want = logits(quantized, tokens, tmp_path, *F32)
    for at in range(4 * TOPK, 150 - WINDOW):
        tokens[at] = other(tokens[at])
    got = logits(quantized, tokens, tmp_path, *F32)
    assert np.array_equal(got[149], want[149])
    tokens[4 * TOPK - 1] = other(tokens[4 * TOPK - 1])
    assert not np.array_equal(logits(quantized, tokens, tmp_path, *F32)[149], want[149])


@pytest.mark.parametrize("kv", KINDS)
def test_a_limit_that_nothing_reaches(model, kv, tmp_path):
    """160 tokens have 40 compressed rows."""
    tokens, flags = tokens_of(160), ["--compute", "f32", "--kv-cache-dtype", kv]
    change_config(model, index_topk=40)
    want = logits(model, tokens, tmp_path, *flags)
    for topk in (41, 4096, 1 << 26):
        change_config(model, index_topk=topk)
        assert np.array_equal(logits(model, tokens, tmp_path, *flags), want), topk
    change_config(model, index_topk=39)
    last = logits(model, tokens, tmp_path, *flags)
    assert changed_rows(last, want).tolist() == [159]


def test_experts_by_token(model, tmp_path):
    """The first layer's experts are those of the table, whatever the router says; its weights are the router's."""
    tokens, experts = tokens_of(60), tmp_path / "experts"
    logits(model, tokens, tmp_path, *F32, "--experts", experts)
    table = np.frombuffer(st.File(model / "model.safetensors").bytes_of("layers.0.ffn.gate.tid2eid"), "<i8").reshape(VOCAB, 2)
    got = np.fromfile(experts, "<i4").reshape(3, 60, 2)
    assert np.array_equal(np.sort(got[0]), np.sort(table[tokens]))
    assert not np.array_equal(np.sort(got[1]), np.sort(table[tokens]))


def test_narrow_table(model, tmp_path):
    """I32 as well as I64."""
    tokens = tokens_of(40)
    want = logits(model, tokens, tmp_path, *F32)

    def narrow(tensors):
        dtype, shape, raw = tensors["layers.0.ffn.gate.tid2eid"]
        tensors["layers.0.ffn.gate.tid2eid"] = ("I32", shape, np.frombuffer(raw, "<i8").astype("<i4").tobytes())

    rewrite(model, narrow)
    assert np.array_equal(logits(model, tokens, tmp_path, *F32), want)


def test_no_swiglu_limit(model, tmp_path):
    """A limit that no value reaches is none, and the tiny model's is reached."""
    tokens = tokens_of(40)
    limited = logits(model, tokens, tmp_path, *F32)
    change_config(model, swiglu_limit=1e6)
    want = logits(model, tokens, tmp_path, *F32)
    change_config(model, swiglu_limit=DELETE)
    assert np.array_equal(logits(model, tokens, tmp_path, *F32), want)
    assert (limited != want).any(axis=1).all()


# --- other ways in ---------------------------------------------------------------------------------------------------


def test_info():
    got = succeed("info", GOLDEN / "v4-tiny", "--json").json
    assert got["architecture"] == "DeepseekV4ForCausalLM" and got["layers"] == 3 and got["index_topk"] == TOPK
    assert succeed("info", GOLDEN / "v4-tiny-fp8", "--json").json["bytes_left_out"] > 0  # mtp.*


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    ({"compress_ratios": DELETE}, ["compress_ratios", "found none"]),
    ({"compress_ratios": 4}, ["compress_ratios", "found none"]),
    ({"compress_ratios": [0, 4]}, ["compress_ratios", "3 numbers", "shorter"]),
    ({"compress_ratios": [0, 8, 128]}, ["compress_ratios", "0, 4 or 128"]),
    ({"compress_ratios": [0, "4", 128]}, ["compress_ratios", "0, 4 or 128"]),
    ({"compress_ratios": [0, 4.0, 128]}, ["compress_ratios", "0, 4 or 128"]),
    ({"compress_ratios": [0, -4, 128]}, ["compress_ratios", "0, 4 or 128"]),
    ({"compress_ratios": [0, 2**40 + 4, 128]}, ["compress_ratios", "0, 4 or 128"]),
    ({"compress_ratios": [0, 4, 0]}, ["model.safetensors", DENSE + "compressor", "unknown tensor"]),
    ({"compress_ratios": [0, 0, 128]}, ["model.safetensors", SPARSE, "unknown tensor"]),
    ({"compress_ratios": [4, 4, 128]}, ["model.safetensors", "layers.0.attn.compressor.wkv.weight", "missing"]),
    ({"compress_ratios": [0, 128, 128]}, ["model.safetensors", SPARSE + "compressor.wkv.weight", "expected shape [64, 64]"]),
    ({"sliding_window": 0}, ["sliding_window"]),
    ({"sliding_window": DELETE}, ["sliding_window"]),
    ({"sliding_window": "16"}, ["sliding_window"]),
    ({"sliding_window": 2**40}, ["sliding_window"]),
    ({"index_topk": 0}, ["index_topk"]),
    ({"index_topk": DELETE}, ["index_topk"]),
    ({"index_n_heads": 4}, ["model.safetensors", SPARSE + "indexer.wq_b", "expected shape [128, 32]"]),
    ({"index_head_dim": 8}, ["index_head_dim", "qk_rope_head_dim"]),
    ({"head_dim": 63}, ["head_dim", "even"]),
    ({"head_dim": DELETE}, ["head_dim"]),
    ({"head_dim": 32}, ["model.safetensors", "expected shape"]),
    ({"qk_rope_head_dim": 64}, ["qk_rope_head_dim"]),
    ({"qk_rope_head_dim": 15}, ["qk_rope_head_dim", "even"]),
    ({"num_key_value_heads": 4}, ["num_key_value_heads"]),
    ({"q_lora_rank": DELETE}, ["q_lora_rank"]),
    ({"o_groups": 3}, ["o_groups", "num_attention_heads"]),
    ({"o_groups": 0}, ["o_groups"]),
    ({"o_groups": 4}, ["model.safetensors", "layers.0.attn.wo_a", "expected shape [128, 64]"]),
    ({"o_lora_rank": 64}, ["model.safetensors", "layers.0.attn.wo_a", "expected shape [128, 128]"]),
    ({"o_lora_rank": 24}, ["o_lora_rank", "a multiple of 32"]),
    ({"hc_mult": 0}, ["hc_mult"]),
    ({"hc_mult": 1000}, ["hc_mult"]),
    ({"hc_mult": DELETE}, ["hc_mult"]),
    ({"hc_mult": 2}, ["model.safetensors", "hc_", "expected shape"]),
    ({"hc_sinkhorn_iters": 0}, ["hc_sinkhorn_iters"]),
    ({"hc_eps": -1}, ["hc_eps"]),
    ({"num_hash_layers": DELETE}, ["num_hash_layers"]),
    ({"num_hash_layers": -1}, ["num_hash_layers"]),
    ({"num_hash_layers": 2}, ["model.safetensors", "layers.1.ffn.gate.tid2eid", "missing"]),
    ({"num_hash_layers": 0}, ["model.safetensors", "layers.0.ffn.gate.bias", "missing"]),
    ({"n_routed_experts": 5}, ["model.safetensors", "layers.0.ffn", "expected"]),
    ({"num_experts_per_tok": 7}, ["num_experts_per_tok"]),
    ({"num_experts_per_tok": 3}, ["model.safetensors", "tid2eid", "expected shape [256, 3]"]),
    ({"scoring_func": "sigmoid"}, ["scoring_func", "sqrtsoftplus"]),
    ({"topk_method": "greedy"}, ["topk_method", "noaux_tc"]),
    ({"norm_topk_prob": False}, ["norm_topk_prob"]),
    ({"routed_scaling_factor": DELETE}, ["routed_scaling_factor"]),
    ({"swiglu_limit": -1}, ["swiglu_limit"]),
    ({"swiglu_limit": "1"}, ["swiglu_limit"]),
    ({"compress_rope_theta": 0}, ["compress_rope_theta"]),
    ({"rope_scaling": {"type": "linear", "factor": 4}}, ["rope_scaling", "yarn", "linear"]),
    ({"rope_scaling": {"type": "yarn", "factor": 16}}, ["rope_scaling", "original_max_position_embeddings"]),
    ({"rope_parameters": {"main": {}}}, ["rope_parameters"]),
    ({"architectures": ["DeepseekV3ForCausalLM"]}, ["config.json"]),
    ({"architectures": ["DeepseekV5ForCausalLM"]}, ["architectures", "DeepseekV4ForCausalLM"]),
])
def test_wrong_config(model, changes, words):
    change_config(model, **changes)
    refused(moebius("logits", model, "--ids", "1,2"), *words)


def test_fp8_that_is_not_said(quantized):
    change_config(quantized, quantization_config=DELETE)
    refused(moebius("logits", quantized, "--ids", "1,2"), "model.safetensors", "F8_E4M3", "quantization_config")


@pytest.mark.parametrize("name", [
    "embed.weight", "head.weight", "norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale", "layers.0.attn_norm.weight",
    "layers.1.ffn_norm.weight", "layers.0.hc_attn_fn", "layers.0.hc_attn_base", "layers.0.hc_attn_scale", "layers.2.hc_ffn_fn",
    "layers.2.hc_ffn_base", "layers.2.hc_ffn_scale", "layers.0.ffn.gate.weight", "layers.0.ffn.gate.tid2eid", "layers.1.ffn.gate.bias",
    "layers.1.ffn.experts.5.w1.weight", "layers.1.ffn.experts.0.w2.weight", "layers.1.ffn.experts.3.w3.weight",
    "layers.2.ffn.shared_experts.w2.weight", *("layers.0.attn." + part for part in (
        "wq_a.weight", "q_norm.weight", "wq_b.weight", "wkv.weight", "kv_norm.weight", "wo_a.weight", "wo_b.weight", "attn_sink")),
    *(at + part for at in (SPARSE, SPARSE + "indexer.", DENSE) for part in (
        "compressor.wkv.weight", "compressor.wgate.weight", "compressor.ape", "compressor.norm.weight")),
    SPARSE + "indexer.wq_b.weight", SPARSE + "indexer.weights_proj.weight"])
def test_missing_tensor(model, name):
    rewrite(model, lambda tensors: tensors.pop(name))
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", name, "missing")


@pytest.mark.parametrize("name", [FIRST + "wq_b.scale", FIRST + "indexer.wq_b.scale", "layers.0.ffn.experts.2.w1.scale",
                                  "layers.1.ffn.shared_experts.w3.scale"])
def test_missing_scale(quantized, name):
    rewrite(quantized, lambda tensors: tensors.pop(name))
    refused(moebius("logits", quantized, "--ids", "1,2"), "model.safetensors", name, "missing")


@pytest.mark.parametrize("name", [FIRST + "wq_b.scale", FIRST + "wo_a.scale", "layers.0.ffn.experts.2.w1.scale",
                                  "layers.0.ffn.experts.2.w2.weight", "layers.1.attn.attn_sink", FIRST + "compressor.ape",
                                  "layers.0.hc_attn_fn", "layers.0.hc_ffn_base", "layers.1.hc_attn_scale",
                                  "layers.0.ffn.gate.tid2eid", "hc_head_scale"])
def test_wrong_shape(quantized, name):
    """One row too many."""
    expected = []

    def grow(tensors):
        dtype, shape, raw = tensors[name]
        expected.append(shape)
        tensors[name] = (dtype, [shape[0] + 1, *shape[1:]], raw + raw[:len(raw) // shape[0]])

    rewrite(quantized, grow)
    message = refused(moebius("logits", quantized, "--ids", "1,2"), "model.safetensors", name, "expected shape")
    assert str([expected[0][0] + 1, *expected[0][1:]]) in message


@pytest.mark.parametrize("expert", [-1, 6, 2**31, 2**32])
def test_experts_that_are_none(model, expert):
    def spoil(tensors):
        dtype, shape, raw = tensors["layers.0.ffn.gate.tid2eid"]
        values = np.frombuffer(raw, "<i8").copy()
        values[77] = expert
        tensors["layers.0.ffn.gate.tid2eid"] = (dtype, shape, values.tobytes())

    rewrite(model, spoil)
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", "layers.0.ffn.gate.tid2eid", "value 77", expert,
            "from 0 to 5")


def test_a_table_of_fractions(model):
    def spoil(tensors):
        dtype, shape, raw = tensors["layers.0.ffn.gate.tid2eid"]
        tensors["layers.0.ffn.gate.tid2eid"] = ("F32", shape, np.frombuffer(raw, "<i8").astype("<f4").tobytes())

    rewrite(model, spoil)
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", "layers.0.ffn.gate.tid2eid", "I64 or I32", "F32")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [FIRST + "attn_sink", FIRST + "compressor.ape", FIRST + "indexer.compressor.ape",
                                  "layers.1.hc_attn_base", "layers.0.hc_ffn_scale", "hc_head_base", "layers.1.ffn.gate.bias"])
def test_values_that_are_not_finite(quantized, name, value):
    def spoil(tensors):
        dtype, shape, raw = tensors[name]
        assert dtype == "F32"
        values = np.frombuffer(raw, "<f4").copy()
        values[-1] = value
        tensors[name] = (dtype, shape, values.tobytes())

    rewrite(quantized, spoil)
    refused(moebius("logits", quantized, "--ids", "1,2"), "model.safetensors", name, "finite")


@pytest.mark.parametrize("name", [FIRST + "wq_b.scale", "layers.0.ffn.experts.2.w1.scale"])
def test_a_scale_that_is_no_number(quantized, name):
    """255 is E8M0's NaN."""
    def spoil(tensors):
        dtype, shape, raw = tensors[name]
        tensors[name] = (dtype, shape, raw[:-1] + b"\xff")

    rewrite(quantized, spoil)
    refused(moebius("logits", quantized, "--ids", "1,2"), "model.safetensors", name)


@pytest.mark.parametrize("name, words", [("layers.0.hc_attn_fn", "layer 0, stage attn_in "), ("layers.1.hc_attn_fn", "layer 1, stage attn_in "),
                                         ("layers.1.hc_ffn_fn", "layer 1, stage route "), ("layers.1.ffn.gate.weight", "layer 1, stage route "),
                                         ("layers.1.attn.wo_b.weight", "layer 1, stage attention "), ("hc_head_fn", "after the last layer, stage head "),
                                         (SPARSE + "compressor.wgate.weight", "stage attn_in "), (SPARSE + "indexer.weights_proj.weight", "stage attn"),
                                         ("layers.2.attn.wkv.weight", "layer 2, stage attn_in ")])
def test_weights_that_are_not_finite(model, name, words, tmp_path):
    """A NaN in a matrix is found by the step: it fails by name, and nothing is answered from it."""
    def spoil(tensors):
        dtype, shape, raw = tensors[name]
        tensors[name] = (dtype, shape, st.bf16_from(np.full(shape, np.nan)))

    rewrite(model, spoil)
    (tmp_path / "ids.json").write_text(json.dumps(tokens_of(140)))
    refused(moebius("logits", model, "--ids", tmp_path / "ids.json", "--no-self-test"), "NaN or infinity", words)


def test_answers_after_one_another(tmp_path):
    """`experts --generate` begins anew where an answer ends: greedy, so each chooses the experts that the first one chose."""
    model, ids, n, answers = tmp_path / "model", [(7 * i * i + 207) % 200 + 5 for i in range(69)], 6, 4
    copy_set("v4-tiny", model)
    prompt = ",".join(map(str, ids))
    tokens = succeed("logits", model, "--ids", prompt, "--greedy", n + 1).json
    (model / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": tokens[n]}))
    succeed("experts", model, "--ids", prompt, "--generate", n * answers, "--experts", tmp_path / "e.i32", "--chunk", 3)
    config = json.loads((model / "config.json").read_text())
    chosen = np.fromfile(tmp_path / "e.i32", "<i4").reshape(config["num_hidden_layers"], answers, n, config["num_experts_per_tok"])
    assert tokens[n] not in tokens[1:n] and (chosen == chosen[:, :1]).all()


def test_expanded_attention_changes_nothing():
    """And that is said."""
    for name, says in (("v4-tiny", True), ("v41-tiny", True), ("v3-tiny", False)):
        err = succeed("logits", GOLDEN / name, "--ids", "1,2", "--attention", "expanded", "--out", "/dev/null").err
        assert ("--attention expanded changes nothing" in err) == says


def test_unknown_tensor(model):
    def add(tensors):
        tensors["layers.0.attn.compressor.ape"] = tensors[SPARSE + "compressor.ape"]

    rewrite(model, add)
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", "layers.0.attn.compressor.ape", "unknown tensor")


def test_no_guesses():
    """What has been summed up cannot be taken back."""
    refused(moebius("run", GOLDEN / "v4-tiny", "-p", "x", "--draft-max", "4"), "--draft-max 4", "DeepseekV4ForCausalLM")


def test_sanitize_v4(tmp_path):
    """A short selection for the sanitizers: ragged chunks, every cache, three threads."""
    for name in SETS:
        case = Case(name, "p200")
        for kv in KINDS:
            got = case.logits(tmp_path, "--compute", "f32", "--kv-cache-dtype", kv, "--chunk", 67, "--threads", 3)
            assert np.isfinite(got).all() and (kv != "f32" or largest(got, case.expected) <= 1e-3)
        assert np.isfinite(case.logits(tmp_path, "--chunk", 67)).all()
