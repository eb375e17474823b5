"""DeepSeek-V3.2 on a card, without a GPU (tests/shim): the indexer's keys and choices, and attention to what is chosen. The kernels by
themselves are in tests/cuda/test_listed.c; what a choice means, in test_sparse.py."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import make_tiny_text_model
from conftest import GOLDEN, change_config, copy_set, moebius, read_f32, refused, succeed
from test_cuda import GPU, ON_CARD, check_near, fake, shim  # noqa: F401 (a fixture)
from test_cuda_decode import HOST_CHOOSES, serve  # noqa: F401 (a fixture)
from test_golden import Case
from test_sparse import F32, INDEXER, TOPK, V32, VOCAB, rewrite, tokens_of

KV = ["bf16", "fp8"]


@pytest.fixture
def model(tmp_path):
    return copy_set("v32-tiny", tmp_path / "model")


def keep_a_layer(folder):
    """The emulated card is slow."""
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)
                                     if name.startswith("model.layers.") and not name.startswith("model.layers.0.")])
    change_config(folder, num_hidden_layers=1, first_k_dense_replace=1)
    return folder


@pytest.fixture
def layer(model):
    return keep_a_layer(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For `serve`."""
    folder = tmp_path_factory.mktemp("sparse") / "v32"
    make_tiny_text_model.make(V32, folder)
    return folder


def logits(folder, tokens, tmp_path, *flags, env=None, n=None):
    """Of all rows; with `n`, of so many tokens that follow the last one, and these."""
    ids, out = tmp_path / "ids.json", tmp_path / "out.f32"
    ids.write_text(json.dumps(tokens))
    wanted = ["--greedy", n] if n else ["--all"]
    result = succeed("logits", folder, "--ids", ids, "--out", out, *wanted, *flags, env=env)
    got = read_f32(out, n or len(tokens), VOCAB)
    return (got, result.json) if n else got


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--n-cpu-moe", 1], ["--expert-device", "cpu"]])
@pytest.mark.parametrize("case_id", ["p1", "p17"])
def test_golden(case_id, flags, tmp_path):
    check_near(Case("v32-tiny", case_id), tmp_path, *flags)


@pytest.mark.parametrize("kv, bound", [("bf16", 0.05), ("fp8", 0.25)])
def test_near(model, kv, bound, tmp_path):
    """Where so many are chosen that a near choice changes little: the bars of dense sets. All but ten of 200 in the last rows."""
    change_config(model, index_topk=190)
    case = Case("v32-tiny", "p200")
    want = logits(model, case.tokens, tmp_path, "--device", "cpu", *F32)[190:]
    error = np.abs(logits(model, case.tokens, tmp_path, *GPU, "--kv-cache-dtype", kv)[190:] - want).mean(axis=1)
    assert 0 < np.median(error) <= bound  # the median: a row may have other experts


def test_what_is_not_chosen_changes_nothing(layer, tmp_path):
    """With weights of 0 all scores are equal, so the first 16 tokens are chosen: those behind them but the own token change nothing."""

    def equal(tensors):
        for name, (dtype, shape, raw) in tensors.items():
            if ".weights_proj." in name:
                tensors[name] = (dtype, shape, bytes(len(raw)))

    rewrite(layer, equal)
    tokens = tokens_of(80)
    want = logits(layer, tokens, tmp_path, *GPU)
    for at in range(TOPK, 79):
        tokens[at] = tokens[at] % 250 + 3
    assert np.array_equal(logits(layer, tokens, tmp_path, *GPU)[79], want[79])
    tokens[TOPK - 1] = tokens[TOPK - 1] % 250 + 3
    assert not np.array_equal(logits(layer, tokens, tmp_path, *GPU)[79], want[79])


# --- same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("kv", KV)
def test_what_is_chosen_whole_is_dense_attention(model, kv, form, tmp_path):
    """Up to index_topk tokens: the bits of V3, which has no indexer. Beyond, not."""
    tokens, flags = tokens_of(TOPK + 8), [*GPU, "--kv-cache-dtype", kv, "--attention", form, "--chunk", TOPK]
    sparse = logits(model, tokens, tmp_path, *flags)
    change_config(model, architectures=["DeepseekV3ForCausalLM"])
    rewrite(model, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".indexer." in name])
    dense = logits(model, tokens, tmp_path, *flags)
    assert np.array_equal(sparse[:TOPK], dense[:TOPK])
    assert (sparse[TOPK:] != dense[TOPK:]).any(axis=1).all()


@pytest.mark.parametrize("kv", KV)
def test_chunks(layer, kv, tmp_path):
    """More keys than a block scores; prompts of more than a wave of rows; few rows, whose projections do more."""
    tokens, flags = tokens_of(270), [*GPU, "--kv-cache-dtype", kv, "--attention", "absorbed", "--chunk"]
    want = logits(layer, tokens, tmp_path, *flags, 270)
    for chunk, n in ((100, 110), (40, 80), (7, 28)):
        assert np.array_equal(logits(layer, tokens[:n], tmp_path, *flags, chunk), want[:n]), chunk


@pytest.mark.parametrize("kv", KV)
def test_decoding(model, kv, tmp_path):
    """Recorded steps, from dense attention over to sparse: the bits of a prompt."""
    tokens, flags = tokens_of(14), [*GPU, "--kv-cache-dtype", kv, "--attention", "absorbed"]
    got, ids = logits(model, tokens, tmp_path, *flags, n=7)
    assert np.array_equal(logits(model, tokens + ids[:-1], tmp_path, *flags)[13:], got)
    assert np.array_equal(logits(model, tokens, tmp_path, *flags, n=7, env={"MOEBIUS_CUDA_GRAPHS": "0"})[0], got)


@pytest.mark.parametrize("kv", KV)
def test_splits(layer, kv, tmp_path):
    """More chosen tokens than a split has: a block for each where a row decodes; one that goes over both in the prompt, where there is no
    room for all results."""
    change_config(layer, index_topk=266)
    tokens, flags = tokens_of(270), [*GPU, "--kv-cache-dtype", kv, "--attention", "absorbed"]
    got, ids = logits(layer, tokens[:262], tmp_path, *flags, n=8)
    want = logits(layer, tokens[:262] + ids[:-1], tmp_path, *flags, "--chunk", 269)
    assert np.array_equal(want[261:], got)


@pytest.mark.skipif(ON_CARD, reason="two of the fake driver's cards")
def test_two_cards(tmp_path):
    runs = [logits(V32, tokens_of(40), tmp_path, *GPU, *flags, n=4, env=fake(devices=2))[0] for flags in ([], ["-pp", 2])]
    assert np.array_equal(*runs)


# --- served ----------------------------------------------------------------------------------------------------------


def answers(server, prompts):
    def ask(prompt):
        reply = server.complete(prompt, temperature=0, max_tokens=5, ignore_eos=True)
        return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


def check_beside_each_other(serve, tmp_path, *flags, longest=140):  # noqa: F811
    """Each answer is that of its request alone, kernel by kernel; the last request begins with pages that are found."""
    prompts, found = [[40 + (i * 7 + n) % 150 for i in range(n)] for n in (5, 30, longest)], longest // 64 * 64
    flags = [*flags, "--kv-cache-dtype", "fp8", "--prefix-cache-dir", tmp_path / "pages"]
    server = serve(*flags, env=HOST_CHOOSES)
    alone = [answers(server, [prompt])[0][0] for prompt in prompts]
    assert server.stop() == 0
    server = serve(*flags)
    assert answers(server, prompts) == [(alone[0], 0), (alone[1], 0), (alone[2], found)]
    assert answers(server, prompts[2:]) == [(alone[2], found)]
    assert server.stop() == 0


def test_beside_each_other_and_from_disk(serve, tmp_path):  # noqa: F811
    """Sequences that are sparse and some that are not, in one step; and pages of rows and keys, found in memory and on disk."""
    check_beside_each_other(serve, tmp_path, "--batch-invariant")


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, stage", [("wk.weight_scale_inv", "attn_in"), ("wq_b.weight_scale_inv", "attention")])
def test_products_that_are_not_finite(model, name, stage, tmp_path):
    """As on the CPU: the step fails by name, nothing is chosen by chance."""

    def blow_up(tensors):
        dtype, shape, raw = tensors[INDEXER + name]
        tensors[INDEXER + name] = (dtype, shape, np.full(shape, 3e38, "<f4").tobytes())

    rewrite(model, blow_up)
    (tmp_path / "ids.json").write_text(json.dumps(tokens_of(40)))
    message = refused(moebius("logits", model, "--ids", tmp_path / "ids.json", *GPU, "--no-self-test"), "NaN or infinity")
    assert f"layer 1, stage {stage} " in message


def test_keys_too_small_for_a_scale(model, tmp_path):
    """448 times smaller than the largest one is 0: such keys are all alike, and no NaN."""

    def shrink(tensors):
        for name, (dtype, shape, _) in list(tensors.items()):
            if ".k_norm." in name:
                values = np.zeros(shape, "<f4")
                values[1::2] = 1e-43 if name.endswith(".bias") else 0
                tensors[name] = (dtype, shape, values.tobytes())

    rewrite(model, shrink)
    assert np.isfinite(logits(model, tokens_of(30), tmp_path, *GPU, "--kv-cache-dtype", "fp8", "--no-self-test")).all()


@pytest.mark.parametrize("changes, words", [({"index_n_heads": 65}, ["index_n_heads of at most 64", "65"]),
                                            ({"index_head_dim": 40}, ["index_head_dim", "divisible by 16", "40"]),
                                            ({"index_head_dim": 144}, ["index_head_dim of at most 128", "144"])])
def test_refused_sizes(changes, words, tmp_path):
    config = {**json.loads((GOLDEN / "v32-tiny/config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    succeed("synth", "--config", tmp_path / "config.json", "--quant", "bf16", "-o", tmp_path / "m")
    result = moebius("logits", tmp_path / "m", "--ids", "1,2", *GPU)
    assert result.code == 1 and all(word in result.err.splitlines()[-1] for word in [*words, "--device cpu"]), str(result)


def test_a_limit_that_nothing_reaches(model, tmp_path):
    """Takes no memory for choices."""
    change_config(model, index_topk=1 << 26)
    tokens = tokens_of(40)
    want = logits(model, tokens, tmp_path, *GPU)
    change_config(model, index_topk=40)
    assert np.array_equal(logits(model, tokens, tmp_path, *GPU), want)
