"""DeepSeek-V4 and V4.1 on a card, without a GPU (tests/shim): what must not change a bit, and how near the CPU it is. The kernels by
themselves are in tests/cuda (test_hybrid.c, test_listed.c, test_streams.c); what a query sees, in test_v4.py and test_v41.py."""

import json
import re
import shutil

import numpy as np
import pytest

import gguf_hybrid
import make_tiny_text_model
import st
from conftest import GOLDEN, change_config, copy_set, moebius, refused, succeed
from test_cuda import GPU, ON_CARD, check_near, fake, shim  # noqa: F401 (a fixture)
from test_cuda_decode import HOST_CHOOSES, serve  # noqa: F401 (a fixture)
from test_cuda_sparse import check_beside_each_other, logits
from test_golden import Case
from test_sparse import F32, rewrite
from test_v4 import tokens_of

V4, V41 = GOLDEN / "v4-tiny", GOLDEN / "v41-tiny"
KV = ["bf16", "fp8"]


@pytest.fixture
def model(tmp_path):
    return copy_set("v4-tiny", tmp_path / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """For `serve`."""
    folder = tmp_path_factory.mktemp("hybrid") / "model"
    make_tiny_text_model.make(getattr(request, "param", V4), folder)
    return folder


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--n-cpu-moe", 1], ["--expert-device", "cpu"]])
@pytest.mark.parametrize("name, case_id", [("v4-tiny", "p1"), ("v4-tiny", "p17"), ("v4-tiny-fp8", "p17"),
                                           ("v41-tiny", "p1"), ("v41-tiny", "p17"), ("v41-tiny-fp8", "p17")])
def test_golden(name, case_id, flags, tmp_path):
    """As published: bf16; FP8 and experts in FP4."""
    check_near(Case(name, case_id), tmp_path, *flags)


def test_gguf(tmp_path):
    """The same numbers with experts in MXFP4, what was FP8 in F32."""
    path, case = gguf_hybrid.convert(GOLDEN / "v4-tiny-fp8", tmp_path / "m.gguf"), Case("v4-tiny-fp8", "p17")
    got, want = (logits(model, case.tokens, tmp_path, *GPU) for model in (path, case.folder))
    error = np.abs(got - want).mean(axis=1)
    assert np.median(error) <= 0.05  # the median: a row may have other experts


@pytest.mark.parametrize("kv, bound", [("bf16", 0.05), ("fp8", 0.25)])
def test_near(model, kv, bound, tmp_path):
    """Where all compressed rows are chosen, since what rounds turns near choices: the bars of the other sets."""
    change_config(model, index_topk=300)
    tokens = Case("v4-tiny", "p200").tokens[:140]
    want = logits(model, tokens, tmp_path, "--device", "cpu", *F32)
    error = np.abs(logits(model, tokens, tmp_path, *GPU, "--kv-cache-dtype", kv) - want).mean(axis=1)
    assert 0 < np.median(error) <= bound  # the median: a row may have other experts


@pytest.mark.parametrize("model", [V4, V41], ids=lambda folder: folder.name)
def test_choices_are_the_cpus(model, tmp_path):
    """Only 8 of up to 35 compressed rows are seen, of V4.1's up to 140, of which some layers look at 32; a choice that rounding turns
    changes a row, but few are turned."""
    tokens = Case(model.name, "p200").tokens[:140]
    want = logits(model, tokens, tmp_path, "--device", "cpu", *F32)
    error = np.abs(logits(model, tokens, tmp_path, *GPU) - want).mean(axis=1)
    assert 0 < np.median(error) <= 0.05


@pytest.mark.parametrize("model", [V4, V41], ids=lambda folder: folder.name)
def test_what_is_between_layers(model, tmp_path):
    """Of the streams, what the head would read, also where a look makes a recorded step an eager one."""
    case = Case(model.name, "p17")
    ids, files = ",".join(map(str, case.tokens)), [tmp_path / name for name in ("whole", "single", "cpu")]
    for file, flags in zip(files, ([*GPU, "--chunk", 17], [*GPU, "--chunk", 1], ["--device", "cpu", *F32])):
        succeed("logits", model, "--ids", ids, "--hidden", file, *flags)
    whole, single, cpu = (np.fromfile(file, "<f4") for file in files)
    assert np.array_equal(whole, single)
    assert 0 < np.abs(whole - cpu).mean() <= 0.02 * np.abs(cpu).mean()


# --- same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", KV)
def test_chunks(kv, tmp_path):
    """Cut within windows of 4, of 128, and pages; of more than 64 rows, and few."""
    tokens, flags = tokens_of(140), [*GPU, "--kv-cache-dtype", kv, "--chunk"]
    want = logits(V4, tokens, tmp_path, *flags, 140)
    for chunk, n in ((97, 140), (5, 35)):
        assert np.array_equal(logits(V4, tokens[:n], tmp_path, *flags, chunk), want[:n]), chunk


def test_csa2_chunks(tmp_path):
    """V4.1's caches hold the same numbers; chunks end within windows of 2, pages and n-grams, of rows that see all and that do not."""
    tokens = tokens_of(70)
    want = logits(V41, tokens, tmp_path, *GPU)
    for kv, chunk, n in (("fp8", 37, 70), ("bf16", 3, 15)):
        got = logits(V41, tokens[:n], tmp_path, *GPU, "--kv-cache-dtype", kv, "--chunk", chunk)
        assert np.array_equal(got, want[:n]), (kv, chunk)


@pytest.mark.parametrize("model, n", [(V4, 31), (V4, 125), (V41, 6), (V41, 29)], ids=lambda value: getattr(value, "name", str(value)))
def test_decoding(model, n, tmp_path):
    """Recorded steps, on over the end of a window, a page, a compressed row of 128: the bits of a prompt. V4.1: over the last row that
    sees all, and what a row is narrowed to."""
    tokens = tokens_of(n)
    got, ids = logits(model, tokens, tmp_path, *GPU, n=7)
    assert np.array_equal(logits(model, tokens + ids[:-1], tmp_path, *GPU)[n - 1:], got)
    assert np.array_equal(logits(model, tokens, tmp_path, *GPU, n=7, env={"MOEBIUS_CUDA_GRAPHS": "0"})[0], got)


def test_splits(model, tmp_path):
    """More rows than a split of attention has: a block for each where a row decodes; one that goes over both in the prompt."""
    change_config(model, index_topk=64, sliding_window=208, num_hidden_layers=2)
    rewrite(model, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("layers.2.")])
    tokens, flags = tokens_of(232), [*GPU, "--kv-cache-dtype", "fp8"]
    got, ids = logits(model, tokens, tmp_path, *flags, n=4)
    want = logits(model, tokens + ids[:-1], tmp_path, *flags, "--chunk", 235)
    assert np.array_equal(want[231:], got)


@pytest.mark.skipif(ON_CARD, reason="the fake driver's words")
@pytest.mark.parametrize("n, scored", [(206, []), (208, ["16"])])
def test_no_blocks_without_work(n, scored, model, tmp_path):
    """Row 206 is the first with two splits: it does not make two blocks of each row before it. Of four waves of rows the indexer looks
    at the one with a row that has a choice, the 208th."""
    change_config(model, index_topk=51, sliding_window=208)
    flags = ["--chunk", n, *GPU, "--no-self-test"]
    result = succeed("logits", model, "--ids", ",".join(map(str, tokens_of(n))), *flags, env=fake(log=1))
    launches = re.findall(r"^fake cuda: (listed|index)_(\w+) (\d+) x", result.err, re.M)
    assert {blocks for kind, _, blocks in launches if kind == "listed"} == {str(n)}
    assert [blocks for _, name, blocks in launches if name == "score"] == scored


@pytest.mark.skipif(ON_CARD, reason="two of the fake driver's cards")
def test_two_cards(tmp_path):
    runs = [logits(V4, tokens_of(40), tmp_path, *GPU, *flags, n=4, env=fake(devices=2))[0] for flags in ([], ["-pp", 2])]
    assert np.array_equal(*runs)


@pytest.mark.skipif(ON_CARD, reason="two of the fake driver's cards")
def test_csa2_goes_on_one_card():
    result = moebius("logits", V41, "--ids", "1,2", *GPU, "-pp", 2, env=fake(devices=2))
    refused(result, "2 cards", "DeepSeek-V4.1", "--device cuda:0", "--n-cpu-moe")


@pytest.mark.skipif(ON_CARD, reason="three of the fake driver's cards")
def test_tables_behind_a_border(folder, tmp_path):
    """Experts by token also on the second card, which then wants to know what the last one picked: the answer of one card, token by
    token, and that of steps that wait for the host's sampler."""
    model = shutil.copytree(folder, tmp_path / "model")
    change_config(model, num_hash_layers=2)

    def add_table(tensors):
        dtype, shape, raw = tensors["layers.0.ffn.gate.tid2eid"]
        table = (np.frombuffer(raw, "<i8").reshape(shape)[::-1] + 1) % 6  # of 6 experts
        tensors["layers.1.ffn.gate.tid2eid"] = (dtype, shape, table.astype("<i8").tobytes())
        del tensors["layers.1.ffn.gate.bias"]

    rewrite(model, add_table)
    flags = [model, "--prompt", "one two three", "--max-tokens", 12, "--ignore-eos", "--temperature", 0, "--json", "--no-self-test"]
    texts = [succeed("run", *flags, *GPU, *cards, env={**fake(devices=3), **env}).json["text"]
             for cards, env in (([], {}), (["-pp", 3], {}), (["-pp", 3], HOST_CHOOSES))]
    assert texts[0] and texts[1:] == texts[:1] * 2


@pytest.mark.skipif(ON_CARD, reason="cards of the fake driver's sizes")
def test_layers_that_keep_unlike_much(folder, tmp_path):
    """The middle layer has nearly all rows: as many tokens as its card holds, whatever is free on the others. And of near parts only
    those are counted that there will be: 100,000 tokens leave the experts of all layers on the card."""
    model = shutil.copytree(folder, tmp_path / "model")
    rope = json.loads((model / "config.json").read_text())["rope_scaling"]
    change_config(model, max_position_embeddings=1 << 20, rope_scaling={**rope, "factor": 4096}, index_topk=1 << 18)
    flags = ["run", model, *GPU, "--prompt", "one two three", "--max-tokens", 4, "--ignore-eos", "--temperature", 0, "--json",
             "--no-self-test", "--max-num-batched-tokens", 256]
    results = [succeed(*flags, *more, env=fake(devices=3, free_mib=mib, log=1))
               for more, mib in ((["-pp", 3], 40), (["--device", "cuda:0", "--max-model-len", 100000], 18))]
    assert results[0].json["text"] == results[1].json["text"]
    assert "add_rows" not in results[1].err  # what the CPU had computed


@pytest.mark.skipif(ON_CARD, reason="a card without memory")
def test_what_plan_counts(tmp_path):
    """Flash's rows: what a step takes beside weights and cache is what `plan` says, within a few percent."""
    config = {**json.loads((V4 / "config.json").read_text()), "hidden_size": 4096, "num_attention_heads": 64, "head_dim": 512,
              "qk_rope_head_dim": 64, "q_lora_rank": 64, "o_groups": 8, "o_lora_rank": 32, "num_hidden_layers": 1, "index_n_heads": 64,
              "index_head_dim": 128, "index_topk": 512, "moe_intermediate_size": 64, "num_experts_per_tok": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = tmp_path / "m"
    succeed("synth", "--config", tmp_path / "config.json", "--quant", "int4", "-o", model)
    flags = ["--ids", "1,2", "--chunk", 2048, "--max-model-len", 4096, "--expert-device", "gpu"]
    result = moebius("logits", model, *GPU, *flags, env=fake(alloc=1))
    scratch = float(re.search(r"scratch ([\d.]+);", result.err)[1]) * 2**30
    planned = succeed("plan", model, "--gpu", "rtx-4090", "--ram", "8@10", "--max-num-batched-tokens", 2048, "--context", 4096, "--json")
    assert planned.json["scratch_bytes"] == pytest.approx(scratch, rel=0.05)


@pytest.mark.skipif(ON_CARD, reason="the shim's order")
def test_the_order_of_blocks_does_not_matter(tmp_path):
    plain, other = (logits(V4, tokens_of(30), tmp_path, *GPU, env={"MOEBIUS_SHIM_SEED": seed}) for seed in ("1", "2"))
    assert np.array_equal(plain, other)


# --- served ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder, longest", [(V4, 140), (GOLDEN / "v41-tiny-fp8", 70)], indirect=["folder"],
                         ids=lambda value: getattr(value, "name", ""))
def test_beside_each_other_and_from_disk(longest, serve, tmp_path):  # noqa: F811
    """Sequences of all lengths in one step; pages and what was being summed up in them, found in memory and on disk."""
    check_beside_each_other(serve, tmp_path, longest=longest)


@pytest.mark.skipif(ON_CARD, reason="the fake driver's words")
def test_csa2_launches():
    """As many kernels as `plan` counts, for a token that sees all that there is."""
    said = succeed("logits", V41, "--ids", "5", *GPU, "--no-self-test", env=fake(log=1)).err
    kernels = [name for name in re.findall(r"^fake cuda: (\w+) \d+ x", said, re.M) if not name.startswith("repack")]
    plan = succeed("plan", V41, "--gpu", "rtx-4090", "--ram", "8@10", "--context", 4096, "--explain").text
    assert re.search(r"between kernels +(\d+) x", plan)[1] == str(len(kernels) - 4)  # embedding, streams, what the head reads, head


@pytest.mark.skipif(ON_CARD, reason="how long what takes, in minutes")
def test_bench(tmp_path):
    """Positions in order, none twice; each kernel of a step is counted, those of layers with a ratio apart."""
    ids = ["--prompt", 9, "--generate", 3, "--repeat", 1, "--batch", 1, "--depth", 5]
    report = succeed("bench", V4, *GPU, *ids, "--json").json
    profile = report["gpu"]["profile"]
    launches = [(line["stage"], line["kernel"], line["layers"]) for line in profile["launches"]]
    assert sum(layers for _, _, layers in launches) == profile["step_kernels"]
    assert launches.count(("attn_in", "compress_sums", 1)) == 2 and launches.count(("attn_in", "hybrid_rows", 1)) == 3
    assert profile["layer_kernels"] > profile["step_kernels"] // 4 and profile["dense_layer_kernels"] == 0
    of_layers = profile["step_kernels"] - 6  # embedding, streams, head, pick
    plan = succeed("plan", V4, "--gpu", "rtx-4090", "--ram", "8@10", "--context", 4096, "--explain").text
    assert re.search(r"between kernels +(\d+) x", plan)[1] == str(of_layers)


@pytest.mark.skipif(ON_CARD, reason="the fake driver's words")
def test_csa2_the_self_test_chooses_first(tmp_path):
    """A layer that takes over the choice of one before it: that one is among the layers, too, or any rows would be looked for."""
    model = tmp_path / "m"
    copy_set(V41.name, model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["index_source_layer_ids"] = [1, 2, 3]  # was 4
    (model / "config.json").write_text(json.dumps(config))
    file = model / "model.safetensors"
    tensors = {name.replace("layers.4.attn.indexer", "layers.3.attn.indexer"): tensor
               for name, tensor in st.tensors_of(st.File(file)).items()}
    file.write_bytes(st.pack(*st.build(tensors)))
    bench = ["bench", model, *GPU, "--prompt", 1, "--generate", 1, "--repeat", 1, "--batch", 1, "--depth", 0,
             "--max-num-batched-tokens", 128]
    chosen = [succeed(*bench, *flags, env=fake(log=1)).err.count("fake cuda: index_choose ") for flags in ([], ["--no-self-test"])]
    assert chosen[0] - chosen[1] == 3


@pytest.mark.skipif(ON_CARD, reason="how long what takes, in minutes")
def test_csa2_bench():
    """Not all layers with one ratio launch the same kernels: each kernel of a step is there, by its layer's kind."""
    ids = ["--prompt", 3, "--generate", 2, "--repeat", 1, "--batch", 1, "--depth", 5]
    profile = succeed("bench", V41, *GPU, *ids, "--json").json["gpu"]["profile"]
    launches = [(line["stage"], line["kernel"], line["layers"]) for line in profile["launches"]]
    assert sum(layers for _, _, layers in launches) == profile["step_kernels"]
    assert launches.count(("attn_in", "compress_sums", 1)) == 1 and sum(n for _, kernel, n in launches if kernel == "engram_add") == 2


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [({"head_dim": 72}, ["head_dim of at most 512", "divisible by 16", "72"]),
                                            ({"qk_rope_head_dim": 8}, ["qk_rope_head_dim", "divisible by 16", "8"]),
                                            ({"hc_mult": 16}, ["hc_mult of at most 8", "16"]),
                                            ({"engram_head_dim": 6}, ["engram_head_dim", "divisible by 4", "6"])])
def test_refused_sizes(changes, words, tmp_path):
    """By the names that its config.json has."""
    config = json.loads(((V41 if "engram_head_dim" in changes else V4) / "config.json").read_text())
    config.get("text_config", config).update(changes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    succeed("synth", "--config", tmp_path / "config.json", "--quant", "bf16", "-o", tmp_path / "m")
    result = moebius("logits", tmp_path / "m", "--ids", "1,2", *GPU)
    assert result.code == 1 and all(word in result.err.splitlines()[-1] for word in [*words, "--device cpu"]), str(result)


@pytest.mark.parametrize("golden, name, words", [
    ("v4-tiny", "layers.1.attn.compressor.wkv.weight", "layer 1, stage attn_in "),
    ("v4-tiny", "layers.0.attn.wkv.weight", "layer 0, stage attn_in "), ("v4-tiny", "layers.0.attn.wo_b.weight", "layer 0, stage attention "),
    ("v41-tiny", "layers.2.attn.indexer.wk.weight", "layer 2, stage attn_in "),
    ("v41-tiny", "layers.1.engram.wkv.weight", "layer 1, stage engram ")])
def test_products_that_are_not_finite(golden, name, words, tmp_path):
    """The step fails by name, as on the CPU."""
    model = copy_set(golden, tmp_path / "model")

    def blow_up(tensors):
        dtype, shape, _ = tensors[name]
        tensors[name] = (dtype, shape, np.full(shape, 0x7F00, "<u2").tobytes())

    rewrite(model, blow_up)
    for device in (GPU, ["--device", "cpu"]):
        message = refused(moebius("logits", model, "--ids", "5,6,7,8,9", *device, "--no-self-test"), "NaN or infinity")
        assert words in message
