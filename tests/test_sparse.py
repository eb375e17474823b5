"""DeepSeek-V3.2: an indexer chooses which cached tokens a query attends to. The numbers of v32-tiny (16 of them) are in
test_golden.py with those of all sets; here is what a choice must not change, and what is refused."""

import json

import numpy as np
import pytest

import st
from conftest import DELETE, GOLDEN, change_config, copy_set, moebius, read_f32, refused, succeed
from test_golden import Case, check_levels, largest

V32 = GOLDEN / "v32-tiny"
TOPK, VOCAB = 16, 256
F32 = ["--compute", "f32", "--kv-cache-dtype", "f32"]
INDEXER = "model.layers.1.self_attn.indexer."


@pytest.fixture
def model(tmp_path):
    return copy_set("v32-tiny", tmp_path / "model")


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = st.tensors_of(st.File(path))
    change(tensors)
    path.write_bytes(st.pack(*st.build(tensors)))


def logits(folder, tokens, tmp_path, *flags, env=None):
    ids, out = tmp_path / "ids.json", tmp_path / "out.f32"
    ids.write_text(json.dumps(tokens))
    out.unlink(missing_ok=True)
    succeed("logits", folder, "--ids", ids, "--out", out, "--all", *flags, env=env)
    return read_f32(out, len(tokens), VOCAB)


def tokens_of(n):
    return np.random.default_rng(n).integers(2, VOCAB, n).tolist()


# --- what is attended to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["absorbed", "expanded", "auto"])
def test_a_wide_choice(model, form, tmp_path):
    """2048 of 2301 tokens, as many as the published model takes."""
    manifest = json.loads((V32 / "manifest.json").read_text())
    wide = manifest["wide"]
    change_config(model, index_topk=wide["index_topk"])
    tokens = np.fromfile(V32 / wide["tokens_file"]["file"], "<i4").tolist()
    want = read_f32(V32 / wide["logits"]["file"], *wide["logits"]["shape"])
    got = logits(model, tokens, tmp_path, "--compute", "f32", "--attention", form)
    assert largest(got[wide["logits"]["positions"]], want) <= 2e-3


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("kv", ["f32", "bf16", "fp8"])
def test_what_is_chosen_whole_is_dense_attention(model, kv, form, tmp_path):
    """Up to index_topk tokens: the bits of V3, which has no indexer. Beyond, not."""

    def drop(tensors):
        for name in [name for name in tensors if ".indexer." in name]:
            del tensors[name]

    tokens, flags = tokens_of(TOPK + 8), ["--kv-cache-dtype", kv, "--attention", form, "--chunk", TOPK]
    sparse = logits(model, tokens, tmp_path, *flags)
    change_config(model, architectures=["DeepseekV3ForCausalLM"])
    rewrite(model, drop)
    dense = logits(model, tokens, tmp_path, *flags)
    assert np.array_equal(sparse[:TOPK], dense[:TOPK])
    assert (sparse[TOPK:] != dense[TOPK:]).any(axis=1).all()


def test_a_limit_that_nothing_reaches(model, tmp_path):
    tokens, flags = tokens_of(100), [*F32, "--attention", "absorbed"]
    change_config(model, index_topk=100)
    want = logits(model, tokens, tmp_path, *flags)
    for topk in (101, 163840, 1 << 26):
        change_config(model, index_topk=topk)
        assert np.array_equal(logits(model, tokens, tmp_path, *flags), want), topk
    change_config(model, index_topk=99)
    last = logits(model, tokens, tmp_path, *flags)
    assert np.array_equal(last[:99], want[:99]) and not np.array_equal(last[99], want[99])


@pytest.mark.parametrize("kv, bound", [("bf16", 0.05), ("fp8", 0.25)])
def test_fast_is_near(model, kv, bound, tmp_path):
    """As people run it, where so many are chosen that a near choice changes little: the bars of dense sets."""
    change_config(model, index_topk=190)
    case = Case("v32-tiny", "p200")
    want = logits(model, case.tokens, tmp_path, *F32)[190:]
    got = logits(model, case.tokens, tmp_path, "--kv-cache-dtype", kv)[190:]
    error = np.abs(got - want).mean(axis=1)
    assert 0 < np.median(error) <= bound  # the median: a row may have other experts


def test_equal_scores_go_to_the_lowest_positions(model, tmp_path):
    """With weights of 0 all scores are equal, so the first 16 tokens are chosen: those behind them but the own token change
    nothing. (DeepSeek's own code does not say which of equal ones it takes.)"""

    def equal(tensors):
        for name, (dtype, shape, raw) in tensors.items():
            if ".weights_proj." in name:
                tensors[name] = (dtype, shape, bytes(len(raw)))

    rewrite(model, equal)
    change_config(model, num_hidden_layers=1, first_k_dense_replace=1)
    rewrite(model, lambda tensors: [tensors.pop(n) for n in list(tensors)
                                    if n.startswith("model.layers.") and not n.startswith("model.layers.0.")])
    tokens = tokens_of(80)
    want = logits(model, tokens, tmp_path, *F32)
    for at in range(TOPK, 79):
        tokens[at] = tokens[at] % 250 + 3
    got = logits(model, tokens, tmp_path, *F32)
    assert np.array_equal(got[79], want[79])
    tokens[TOPK - 1] = tokens[TOPK - 1] % 250 + 3
    assert not np.array_equal(logits(model, tokens, tmp_path, *F32)[79], want[79])


# --- same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "bf16", "fp8"])
def test_chunks_and_threads(kv, tmp_path):
    """Token by token, in any chunks, on any number of threads."""
    tokens, flags = tokens_of(700), ["--kv-cache-dtype", kv, "--attention", "absorbed"]
    want = logits(V32, tokens, tmp_path, *flags, "--chunk", 700)
    for more in (["--chunk", 1, "--threads", 1], ["--chunk", 19], ["--chunk", 300, "--threads", 3]):
        assert np.array_equal(logits(V32, tokens, tmp_path, *flags, *more), want), more


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_levels(kv, tmp_path):
    check_levels(Case("v32-tiny", "p200"), tmp_path, "--kv-cache-dtype", kv, "--chunk", 37)


def test_a_long_context(model, tmp_path):
    """3000 tokens with 2048 chosen: decoding goes on with the bits of the prompt's pass."""
    change_config(model, index_topk=2048)
    tokens, flags = tokens_of(3000), ["--attention", "absorbed"]
    want = logits(model, tokens, tmp_path, *flags, "--chunk", 512)
    assert np.array_equal(logits(model, tokens, tmp_path, *flags, "--chunk", 100, "--threads", 3), want)
    out = tmp_path / "greedy.f32"
    ids = succeed("logits", model, "--ids", tmp_path / "ids.json", "--greedy", 6, "--out", out, *flags).json
    again = logits(model, tokens + ids[:-1], tmp_path, *flags)
    assert np.array_equal(again[2999:], read_f32(out, 6, VOCAB))


# --- other ways in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["int4", "int8", "fp8", "bf16"])
def test_quantize(quant, tmp_path):
    """The file computes what `--quantization` makes in memory; the indexer stays in 8 bits or more."""
    succeed("quantize", V32, "--quant", quant, "-o", tmp_path / "m")
    tokens = tokens_of(60)
    got = logits(tmp_path / "m", tokens, tmp_path)
    if quant != "fp8":  # which on the way in leaves an FP8 checkpoint as it is
        assert np.array_equal(logits(V32, tokens, tmp_path, "--quantization", quant), got)
    header = st.File(tmp_path / "m").header
    want = {"int4": "F8_E4M3", "int8": "U8", "fp8": "F8_E4M3", "bf16": "BF16"}[quant]
    assert header[INDEXER + "wq_b.weight"]["dtype"] == header[INDEXER + "wk.weight"]["dtype"] == want
    assert header[INDEXER + "weights_proj.weight"]["dtype"] == "BF16"
    assert header[INDEXER + "k_norm.bias"]["shape"] == [32]


def test_synth(tmp_path):
    succeed("synth", "--config", V32 / "config.json", "--quant", "int4", "-o", tmp_path / "m")
    assert np.isfinite(logits(tmp_path / "m", tokens_of(50), tmp_path)).all()


def test_info():
    assert succeed("info", V32, "--json").json["index_topk"] == TOPK
    assert "16 tokens a query" in succeed("info", V32).text
    assert succeed("info", GOLDEN / "v3-tiny", "--json").json["index_topk"] is None
    # 3 layers of 64 latent and 16 rope values, and a key of 32 values; fp8: the row of 112 bytes, the key and its scale
    assert succeed("info", V32, "--json").json["kv_bytes_per_token"] == {"f32": 3 * 112 * 4, "bf16": 3 * 112 * 2, "fp8": 3 * 148}


def test_plan():
    """Beside V3: index keys in the cache, the indexer's weights, and less to read far on."""
    flags = ["--quant", "int4", "--gpu", "none", "--ram", "768@400", "--json"]
    v3, v32 = (succeed("plan", name, *flags).json for name in ("deepseek-v3", "deepseek-v3.2"))
    assert v32["kv_bytes_per_token"] - v3["kv_bytes_per_token"] == 61 * 128 * 2
    indexer = 61 * (64 * 128 * 1536 + 128 * 7168 + 64 * 7168 + 2 * 128)
    assert v32["params"]["total"] - v3["params"]["total"] == indexer


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    ({"index_topk": 0}, ["index_topk"]),
    ({"index_topk": -5}, ["index_topk"]),
    ({"index_topk": 2**40}, ["index_topk"]),
    ({"index_topk": "16"}, ["index_topk"]),
    ({"index_topk": DELETE}, ["index_topk"]),
    ({"index_n_heads": 0}, ["index_n_heads"]),
    ({"index_n_heads": 10**6}, ["index_n_heads"]),
    ({"index_n_heads": DELETE}, ["index_n_heads"]),
    ({"index_head_dim": 8}, ["index_head_dim", "qk_rope_head_dim"]),
    ({"index_head_dim": 10**6}, ["index_head_dim"]),
    ({"index_head_dim": 48}, ["model.safetensors", "indexer", "expected shape"]),
    ({"index_n_heads": 4}, ["model.safetensors", "indexer.wq_b", "expected shape [128, 96]"]),
    ({"q_lora_rank": DELETE}, ["q_lora_rank"]),
    ({"architectures": ["DeepseekV3ForCausalLM"]}, ["model.safetensors", "indexer", "unknown tensor"]),
    ({"architectures": ["GlmMoeDsaForCausalLM"]}, ["architectures", "DeepseekV32ForCausalLM"]),
])
def test_wrong_config(model, changes, words):
    change_config(model, **changes)
    refused(moebius("logits", model, "--ids", "1,2"), *words)


@pytest.mark.parametrize("name", ["wq_b.weight", "wk.weight", "wq_b.weight_scale_inv", "wk.weight_scale_inv", "weights_proj.weight",
                                  "k_norm.weight", "k_norm.bias"])
def test_missing_tensor(model, name):
    rewrite(model, lambda tensors: tensors.pop(INDEXER + name))
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", INDEXER + name, "missing")


@pytest.mark.parametrize("name, value", [("k_norm.weight", np.nan), ("k_norm.bias", np.inf)])
def test_values_that_are_not_finite(model, name, value):
    def spoil(tensors):
        dtype, shape, raw = tensors[INDEXER + name]
        values = np.frombuffer(raw, "<f4").copy()
        values[3] = value
        tensors[INDEXER + name] = (dtype, shape, values.tobytes())

    rewrite(model, spoil)
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", INDEXER + name, "finite")


@pytest.mark.parametrize("name, stage", [("wk.weight_scale_inv", "attn_in"), ("wq_b.weight_scale_inv", "attn")])
def test_products_that_are_not_finite(model, name, stage, tmp_path):
    """Weights so large that the indexer's products overflow: the step fails by name, nothing is chosen by chance."""
    def blow_up(tensors):
        dtype, shape, raw = tensors[INDEXER + name]
        tensors[INDEXER + name] = (dtype, shape, np.full(shape, 3e38, "<f4").tobytes())

    rewrite(model, blow_up)
    (tmp_path / "ids.json").write_text(json.dumps(tokens_of(40)))
    message = refused(moebius("logits", model, "--ids", tmp_path / "ids.json", "--no-self-test"), "NaN or infinity")
    assert f"layer 1, stage {stage} " in message


def test_keys_too_small_for_a_scale(model, tmp_path):
    """448 times smaller than the largest one is 0: such keys are all alike, and no NaN."""
    def shrink(tensors):
        for name, (dtype, shape, raw) in tensors.items():
            if ".k_norm." in name:
                values = np.zeros(shape, "<f4")
                values[1::2] = 1e-43 if name.endswith(".bias") else 0
                tensors[name] = (dtype, shape, values.tobytes())

    rewrite(model, shrink)
    tokens = tokens_of(40)
    got = [logits(model, tokens, tmp_path, "--kv-cache-dtype", kv, "--no-self-test") for kv in ("fp8", "bf16")]
    assert np.isfinite(got[0]).all() and np.isfinite(got[1]).all()


def test_sanitize_sparse(tmp_path):
    """A short selection for the sanitizers: ragged chunks, every cache, three threads."""
    case = Case("v32-tiny", "p200")
    for kv in ("f32", "bf16", "fp8"):
        got = case.logits(tmp_path, "--compute", "f32", "--kv-cache-dtype", kv, "--chunk", 67, "--threads", 3)
        assert np.isfinite(got).all() and (kv != "f32" or largest(got, case.expected) <= 1e-3)
