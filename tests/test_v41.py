"""DeepSeek-V4.1: compressed rows that a few layers make for those behind them, choices that several layers share, candidates, mixers one
block ahead, n-gram memory. The numbers of v41-tiny and v41-tiny-fp8 are in test_golden.py with those of all sets; what V4 has as well
is in test_hybrid_bits.py. The prefix cache is in server/test_hybrid.py."""

import json

import numpy as np
import pytest

import st
from conftest import DELETE, GOLDEN, copy_set, moebius, read_f32, refused, succeed
from test_golden import Case, check_levels, largest
from test_sparse import rewrite
from test_v4 import F32, KINDS, VOCAB, changed_rows, logits, other, tokens_of

SETS = ["v41-tiny", "v41-tiny-fp8"]


def text_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())["text_config"]


TINY = text_of("v41-tiny")
SOURCES, CHOOSERS = TINY["kv_source_layer_ids"], TINY["index_source_layer_ids"]
LAST = SOURCES[-1]  # whose rows are of one token each
ENGRAM = TINY["engram_layer_ids"][0]
WINDOW, TOPK = TINY["sliding_window"], TINY["index_topk"]


def change_text(folder, **changes):
    """What concerns text lies in a part of config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config["text_config"].pop(key, None)
        if value is not DELETE:
            config["text_config"][key] = value
    path.write_text(json.dumps(config))


@pytest.fixture
def model(tmp_path):
    """v41-tiny, to be changed."""
    return copy_set("v41-tiny", tmp_path / "model")


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_every_level(name, kv, tmp_path):
    """Every kernel there is computes the same bits, of which one is compared with the golden logits. Rows of the cache are rounded by
    the model, to what bf16 holds, and fp8 is here what they are rounded to."""
    case, flags = Case(name, "p200"), ["--compute", "f32", "--kv-cache-dtype", kv, "--chunk", 37]
    check_levels(case, tmp_path, *flags)
    assert largest(case.logits(tmp_path, *flags), case.expected) <= 1e-3


@pytest.mark.parametrize("name", SETS)
def test_caches_hold_the_same(name, tmp_path):
    tokens = tokens_of(300)
    want = logits(GOLDEN / name, tokens, tmp_path, "--compute", "f32", "--kv-cache-dtype", "f32")
    for kv in ("bf16", "fp8"):
        assert np.array_equal(logits(GOLDEN / name, tokens, tmp_path, "--compute", "f32", "--kv-cache-dtype", kv), want), kv


# --- what a query sees -----------------------------------------------------------------------------------------------


def only_window(folder, **config):
    """The first layer alone, which sees the window and nothing else."""
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)
                                     if name.startswith("layers.") and int(name.split(".")[1]) >= 1])
    change_text(folder, num_hidden_layers=1, compress_ratios=[0], kv_source_layer_ids=[], index_source_layer_ids=[],
                candidate_source_layer_id=DELETE, engram_layer_ids=[], engram_num_embeddings=[], **config)


def test_the_window(model, tmp_path):
    only_window(model)
    tokens = tokens_of(100)
    want = logits(model, tokens, tmp_path, *F32)
    for at in (0, 50, 63, 64):
        changed = list(tokens)
        changed[at] = other(changed[at])
        rows = changed_rows(logits(model, changed, tmp_path, *F32), want)
        assert rows.tolist() == list(range(at, at + WINDOW)), at


def no_tables(folder):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".engram." in name])
    change_text(folder, engram_layer_ids=[], engram_num_embeddings=[])


def test_ngrams_reach_back_three_tokens(model, tmp_path):
    """A window of one token, and no rows of a layer before: what is left to see of a token before is its n-grams."""
    folder = model
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("layers.") and
                                     (int(name.split(".")[1]) > ENGRAM or ".compressor." in name or ".indexer." in name)])
    change_text(folder, num_hidden_layers=ENGRAM + 1, compress_ratios=[0] * (ENGRAM + 1), kv_source_layer_ids=[],
                index_source_layer_ids=[], candidate_source_layer_id=DELETE, engram_layer_ids=[ENGRAM],
                engram_num_embeddings=TINY["engram_num_embeddings"][:1], sliding_window=1)
    tokens = tokens_of(90)
    want = logits(folder, tokens, tmp_path, *F32)
    for at in (0, 40, 63, 86):
        changed = list(tokens)
        changed[at] = other(changed[at])
        rows = changed_rows(logits(folder, changed, tmp_path, *F32, "--chunk", 7), want)
        assert rows.tolist() == [row for row in range(at, at + TINY["engram_max_ngram_size"]) if row < 90], at


def test_tokens_that_fold_alike(model, tmp_path):
    """Folding is of the tokenizer: one that says the same of two ids makes them alike for n-grams, which changes what follows them."""
    tokens = tokens_of(60)
    want = logits(model, tokens, tmp_path, *F32)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    used = [text for text, i in vocab.items() if i in tokens and len(text) == 1 and text.isascii() and text.isalpha()]
    upper = [text for text in used if text.isupper() and text.lower() in vocab]
    assert upper  # both cases are there, and fold alike
    changed = [vocab[upper[0].lower()] if t == vocab[upper[0]] else t for t in tokens]
    assert changed != tokens
    assert not np.array_equal(logits(model, changed, tmp_path, *F32), want)  # the embedding is another one


@pytest.mark.parametrize("kv", KINDS)
def test_a_limit_that_nothing_reaches(model, kv, tmp_path):
    """160 tokens have 160 rows of one token each."""
    tokens, flags = tokens_of(160), ["--compute", "f32", "--kv-cache-dtype", kv]
    change_text(model, index_topk=160, candidate_source_layer_id=DELETE)
    want = logits(model, tokens, tmp_path, *flags)
    for topk in (161, 4096, 1 << 26):
        change_text(model, index_topk=topk)
        assert np.array_equal(logits(model, tokens, tmp_path, *flags), want), topk
    change_text(model, index_topk=159)
    assert changed_rows(logits(model, tokens, tmp_path, *flags), want).tolist() == [159]


def test_candidates(model, tmp_path):
    """As many blocks as there are confine nothing; fewer do, and only rows that see more than so many."""
    size, tokens = TINY["candidate_block_size"], tokens_of(200)
    change_text(model, candidate_topk_blocks=200 // size)
    want = logits(model, tokens, tmp_path, *F32)
    change_text(model, candidate_topk_blocks=(1 << 26) // size)  # more than there will ever be take no memory
    assert np.array_equal(logits(model, tokens, tmp_path, *F32), want)
    change_text(model, candidate_source_layer_id=DELETE)
    assert np.array_equal(logits(model, tokens, tmp_path, *F32), want)
    blocks = TINY["candidate_topk_blocks"]
    change_text(model, candidate_source_layer_id=TINY["candidate_source_layer_id"], candidate_topk_blocks=blocks)
    rows = changed_rows(logits(model, tokens, tmp_path, *F32), want)
    assert len(rows) and rows[0] >= blocks * size


def no_index_weights(tensors):
    for name, (dtype, shape, raw) in tensors.items():
        if ".weights_proj." in name:
            tensors[name] = (dtype, shape, bytes(len(raw)))


def test_equal_scores_go_to_the_lowest_rows(model, tmp_path):
    """With weights of 0 all scores are equal, so the first rows are chosen: those between them and the windows change nothing."""
    rewrite(model, no_index_weights)
    no_tables(model)
    tokens, layers = tokens_of(250), TINY["num_hidden_layers"]
    want = logits(model, tokens, tmp_path, *F32)
    for at in range(2 * TOPK, 250 - layers * WINDOW):
        tokens[at] = other(tokens[at])
    got = logits(model, tokens, tmp_path, *F32)
    assert np.array_equal(got[249], want[249])
    tokens[TOPK - 1] = other(tokens[TOPK - 1])
    assert not np.array_equal(logits(model, tokens, tmp_path, *F32)[249], want[249])


# --- other ways in ---------------------------------------------------------------------------------------------------


def test_info_counts():
    assert "in 1 layer also rows of two tokens each" in succeed("info", GOLDEN / "v41-tiny").text


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    ({"compress_ratios": [4] * 9}, ["compress_ratios", "0, 1 or 2"]),
    ({"kv_source_layer_ids": DELETE}, ["kv_source_layer_ids", "a list of layers"]),
    ({"kv_source_layer_ids": SOURCES[::-1]}, ["kv_source_layer_ids", "ascending"]),
    ({"kv_source_layer_ids": [0, *SOURCES]}, ["kv_source_layer_ids", "a ratio"]),
    ({"kv_source_layer_ids": SOURCES[1:]}, ["kv_source_layer_ids", "same ratio"]),
    ({"kv_source_layer_ids": [*SOURCES, 99]}, ["kv_source_layer_ids", "num_hidden_layers"]),
    ({"kv_source_layer_ids": ["2"]}, ["kv_source_layer_ids"]),
    ({"index_source_layer_ids": CHOOSERS[1:]}, ["index_source_layer_ids", "kv_source_layer_ids"]),
    ({"index_source_layer_ids": DELETE}, ["index_source_layer_ids"]),
    ({"candidate_source_layer_id": 0}, ["candidate_source_layer_id", "index_source_layer_ids"]),
    ({"candidate_source_layer_id": SOURCES[0]}, ["kv_source_layer_ids", "candidate_source_layer_id"]),
    ({"candidate_topk_blocks": DELETE}, ["candidate_topk_blocks"]),
    ({"candidate_topk_blocks": 1}, ["candidate_topk_blocks", "index_topk"]),
    ({"candidate_block_size": 0}, ["candidate_block_size"]),
    ({"engram_layer_ids": [ENGRAM]}, ["engram"]),
    ({"engram_layer_ids": "1"}, ["engram_layer_ids"]),
    ({"engram_num_embeddings": DELETE}, ["engram_num_embeddings"]),
    ({"engram_num_embeddings": [0, 0]}, ["engram_num_embeddings"]),
    ({"engram_num_embeddings": [7, 7]}, ["7"]),
    ({"engram_max_ngram_size": 1}, ["engram_max_ngram_size"]),
    ({"engram_n_heads": 300}, ["engram_n_heads"]),
    ({"engram_head_dim": DELETE}, ["engram_head_dim"]),
    ({"engram_vocab_size": 1 << 29}, ["engram"]),
    ({"engram_compressed_vocab_size": TINY["engram_compressed_vocab_size"] + 1},
     [TINY["engram_compressed_vocab_size"], TINY["engram_compressed_vocab_size"] + 1]),
    ({"engram_pad_token_id": -1}, ["engram_pad_token_id"]),
    ({"engram_pad_token_id": DELETE}, ["engram_pad_token_id", "missing"]),
    ({"index_topk": 0}, ["index_topk"]),
    ({"o_lora_rank": 24}, ["o_lora_rank", "a multiple of 32"]),
    ({"scoring_func": "sigmoid"}, ["scoring_func", "sqrtsoftplus"]),
    ({"rms_norm_eps": -1}, ["rms_norm_eps"]),
])
def test_wrong_config(model, changes, words):
    change_text(model, **changes)
    refused(moebius("logits", model, "--ids", "1,2"), *words)


def test_text_config_that_is_none(model):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_config": 7}))
    refused(moebius("logits", model, "--ids", "1,2"), "text_config", "object")


def test_flat_config(model, tmp_path):
    """As a model of text alone may have it."""
    tokens = tokens_of(30)
    want = logits(model, tokens, tmp_path, *F32)
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config.pop("text_config"), **config, "architectures": ["DeepseekV41ForCausalLM"]}))
    assert np.array_equal(logits(model, tokens, tmp_path, *F32), want)


def test_formats_said_inside(tmp_path):
    """Some write quantization_config into the part that it is about."""
    folder = copy_set("v41-tiny-fp8", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    tokens = tokens_of(30)
    want = logits(GOLDEN / "v41-tiny-fp8", tokens, tmp_path)
    assert np.array_equal(logits(folder, tokens, tmp_path), want)
    succeed("quantize", folder, "--quant", "int8", "-o", tmp_path / "q")  # says its own formats outside
    assert np.isfinite(logits(tmp_path / "q", tokens, tmp_path)).all()


@pytest.mark.parametrize("name", [
    f"layers.{SOURCES[0]}.attn.compressor.wgate.weight", f"layers.{LAST}.attn.compressor.wkv.weight",
    f"layers.{LAST}.attn.compressor.norm.weight", f"layers.{LAST}.attn.indexer.wk.weight", f"layers.{LAST}.attn.indexer.k_norm.weight",
    f"layers.{CHOOSERS[-1]}.attn.indexer.wq_b.weight", f"layers.{CHOOSERS[-1]}.attn.indexer.weights_proj.weight",
    f"layers.{ENGRAM}.engram.embed.weight", f"layers.{ENGRAM}.engram.wkv.weight", f"layers.{ENGRAM}.engram.q_weight",
    f"layers.{ENGRAM}.engram.k_weight", "layers.0.ffn.gate.bias", "layers.0.hc_attn_fn"])
def test_missing_tensor(model, name):
    rewrite(model, lambda tensors: tensors.pop(name))
    refused(moebius("logits", model, "--ids", "1,2"), "model.safetensors", name, "missing")


@pytest.mark.parametrize("name", [f"layers.{text_of('v41-tiny-fp8')['engram_layer_ids'][0]}.engram.embed.scale",
                                  "layers.0.attn.wq_b.scale"])
def test_missing_scale(name, tmp_path):
    folder = copy_set("v41-tiny-fp8", tmp_path / "m")
    rewrite(folder, lambda tensors: tensors.pop(name))
    refused(moebius("logits", folder, "--ids", "1,2"), "model.safetensors", name, "missing")


def test_a_table_of_odd_rows(tmp_path):
    """In FP8 a row has whole groups of 32, each with its scale."""
    folder = copy_set("v41-tiny-fp8", tmp_path / "m")
    name = f"layers.{text_of('v41-tiny-fp8')['engram_layer_ids'][0]}.engram.embed.weight"

    def widen(tensors):
        dtype, (rows, cols), raw = tensors[name]
        tensors[name] = dtype, [rows, cols + 16], bytes(rows * (cols + 16))

    rewrite(folder, widen)
    change_text(folder, engram_head_dim=text_of("v41-tiny-fp8")["engram_head_dim"] + 16)
    refused(moebius("logits", folder, "--ids", "1,2"), name, "a multiple of 32", 48)


def test_missing_tokenizer(model):
    """Hashes are of what tokens say: without a tokenizer nobody knows."""
    (model / "tokenizer.json").unlink()
    refused(moebius("logits", model, "--ids", "1,2"), "tokenizer")


@pytest.mark.parametrize("name", [f"layers.{LAST}.attn.compressor.wkv.weight", f"layers.{LAST}.attn.indexer.wk.weight",
                                  f"layers.{ENGRAM}.engram.wkv.weight", f"layers.{ENGRAM}.engram.embed.weight",
                                  "layers.0.hc_ffn_fn"])
def test_weights_that_are_not_finite(model, name, tmp_path):
    """A NaN in a matrix is found by the step: it fails by name, and nothing is answered from it."""
    def spoil(tensors):
        dtype, shape, raw = tensors[name]
        values = np.full(shape, np.nan)
        tensors[name] = (dtype, shape, values.astype("<f4").tobytes() if dtype == "F32" else st.bf16_from(values))

    rewrite(model, spoil)
    (tmp_path / "ids.json").write_text(json.dumps(tokens_of(140)))
    where = {"layers.0.hc_ffn_fn": "layer 0, stage route ", f"layers.{ENGRAM}.engram.embed.weight": "stage engram "}
    refused(moebius("logits", model, "--ids", tmp_path / "ids.json", "--no-self-test"), "NaN or infinity", where.get(name, "in layer "))


def test_no_guesses():
    refused(moebius("run", GOLDEN / "v41-tiny", "-p", "x", "--draft-max", "4"), "--draft-max 4", "DeepseekV41ForCausalLM")


def test_sanitize_v41(tmp_path):
    """A short selection for the sanitizers: ragged chunks, every cache, three threads."""
    for name in SETS:
        case = Case(name, "p200")
        for kv in KINDS:
            got = case.logits(tmp_path, "--compute", "f32", "--kv-cache-dtype", kv, "--chunk", 67, "--threads", 3)
            assert np.isfinite(got).all() and largest(got, case.expected) <= 1e-3
        assert np.isfinite(case.logits(tmp_path, "--chunk", 67)).all()
