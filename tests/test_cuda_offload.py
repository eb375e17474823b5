"""Routed experts of some layers on the card, of others on the CPU, without a GPU (tests/shim): the numbers, how many layers `auto`
leaves to the CPU, and what goes with it. Tiny models have two layers of experts, so "some" is one.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import conftest
import gguf_model
from conftest import GOLDEN, moebius, refused, succeed
from test_cuda import GPU, fake, shim  # noqa: F401 (a fixture)
from test_cuda_decode import HOST_CHOOSES, REQUESTS, answers, folder, serve  # noqa: F401 (fixtures)
from test_cuda_gguf import write_model
from test_selftest import on_card
from test_golden import SHORT, Case, with_routing

V2 = GOLDEN / "v2lite-tiny"
ONE = [*GPU, "--n-cpu-moe", 1]
IDS = "5,6,7,8,9"


def bits(tmp_path, model, *flags, n=2, env=None):
    """(logits' bytes, stderr) of an answer."""
    out = tmp_path / "bits.f32"
    result = succeed("logits", model, "--ids", IDS, "--greedy", n, "--out", out, *flags, env=env)
    return out.read_bytes(), result.err


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, case_id", [*(("v2lite-tiny", case_id) for case_id in SHORT), ("v3-tiny-fp8", "p17")])
def test_golden(name, case_id, tmp_path):
    """As with experts all on the card or all on the CPU."""
    case = Case(name, case_id)
    got, agree = with_routing(case, tmp_path, *ONE)
    error = np.abs(got - case.expected)
    assert agree.mean() >= 0.8
    assert error[agree].mean() <= 0.05
    assert error[agree].max() <= 0.25


def test_names(tmp_path):
    """None is the card alone, all and more is the CPU; one is neither. llama.cpp's names are the same."""
    gpu, one, cpu = (bits(tmp_path, V2, *GPU, *flags)[0] for flags in
                     (["--expert-device", "gpu"], ["--n-cpu-moe", 1], ["--expert-device", "cpu"]))
    assert len({gpu, one, cpu}) == 3
    for flags, want in ((["-ncmoe", 0], gpu), ([], gpu), (["-ncmoe", 99], cpu), (["-cmoe"], cpu)):
        assert bits(tmp_path, V2, *GPU, *flags)[0] == want, flags


def test_without_a_card(tmp_path):
    assert bits(tmp_path, V2, "--device", "cpu", "--n-cpu-moe", 1)[0] == bits(tmp_path, V2, "--device", "cpu")[0]


def test_chunks_and_looks_inside(tmp_path):
    """Rows have the same bits in any chunk, also where a look makes a recorded step an eager one; choices come from both."""
    case = Case("v2lite-tiny", "p17")

    def run(chunk, env=None):
        files = [tmp_path / name for name in ("logits", "hidden", "experts")]
        succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens[:6])), "--all", "--out", files[0], "--hidden",
                files[1], "--experts", files[2], "--chunk", chunk, *ONE, env=env)
        return [file.read_bytes() for file in files]

    seen = run(1)
    assert seen == run(6) == run(1, {"MOEBIUS_CUDA_GRAPHS": "0"})
    alone = tmp_path / "alone"  # nothing but the look at choices says then that a replayed step is not one
    succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens[:6])), "--experts", alone, "--chunk", 1, *ONE)
    assert alone.read_bytes() == seen[2]


def test_recorded_behind_the_last_layer_of_the_cpu(tmp_path):
    """The first step of a shape is eager, the second is recorded; the layer of the CPU never is: it adds its sum each time."""
    recorded, said = bits(tmp_path, V2, *ONE, n=6, env=fake(log=1))
    assert "fake cuda: graph 4" in said and "fake cuda: graph 5" not in said
    assert len(re.findall(r"launch \d+.*add_rows|add_rows", said)) == 6
    eager, said = bits(tmp_path, V2, *ONE, n=6, env={"MOEBIUS_CUDA_GRAPHS": "0", **fake(log=1)})
    assert "fake cuda: graph" not in said and eager == recorded
    assert "fake cuda: graph" not in bits(tmp_path, V2, *GPU, "--cpu-moe", env=fake(log=1))[1]


def test_clients_beside_each_other(serve):  # noqa: F811
    assert answers(serve(*ONE[2:]), REQUESTS[:4]) == answers(serve(*ONE[2:], env=HOST_CHOOSES), REQUESTS[:4])


def test_the_self_test_takes_a_layer_of_each_kind(tmp_path):
    """Nothing but experts has 4 bits here, and nothing but the self-test computes: the card's layer of them is among the layers."""
    file = tmp_path / "packed"
    succeed("quantize", V2, "--quant", "bf16,routed=int4", "-o", file)
    for flags, seen in ((["--n-cpu-moe", "1"], True), (["--cpu-moe"], False)):
        opened, said = on_card(*flags, path=file, **fake(log=1))
        assert opened and ("linear_int4_skinny" in said) == seen and "add_rows" in said


def test_served(serve, tmp_path):  # noqa: F811
    """Pages on disk are those of as many layers as they were computed with; Ollama's size is what the card has."""
    request = {"prompt": [40 + i * 7 % 150 for i in range(80)], "temperature": 0, "max_tokens": 2}
    cached, on_card = [], []
    for n in (1, 0, 1, 2):
        server = serve("--n-cpu-moe", n, "--prefix-cache-dir", tmp_path / "pages")
        cached.append(server.complete(**request)["usage"]["prompt_tokens_details"]["cached_tokens"])
        on_card.append(server.get("/api/ps").json["models"][0]["size_vram"])
        assert server.stop() == 0
    assert cached == [0, 0, 64, 0]
    some, everything, again, rest = on_card
    assert rest < some == again < everything and abs(some - (rest + everything) / 2) <= 1


# --- long steps ----------------------------------------------------------------------------------------------------------

LONG = ["--op-offload-min-batch", 30]


def long_bits(model, n, *flags, env=None, out):
    """Of all logits of a prompt of n tokens in one step."""
    ids = ",".join(str(3 + i * 7 % 90) for i in range(n))
    succeed("logits", model, "--ids", ids, "--all", "--chunk", n, "--out", out, *GPU, *flags, env=env)
    return out.read_bytes()


@pytest.mark.parametrize("name, turn", [("v2lite-tiny", 3), ("v2lite-tiny-awq", 99), ("v3-tiny-fp8", 5), ("v4-tiny-fp8", 1)])
def test_long_steps_are_the_cards(name, turn, tmp_path):
    """From 30 tokens in a step on the experts come to the card, however many at a time: the bits of a card that has them all.
    Below that the CPU computes them, and so it does in long steps if it is to."""
    model, env = GOLDEN / name, {"MOEBIUS_CUDA_TURN": str(turn)}

    def run(n, *flags):
        return long_bits(model, n, *flags, env=env, out=tmp_path / "bits")

    assert run(30, "--n-cpu-moe", 1, *LONG) == run(30)
    card, cpu = run(70), run(70, "--cpu-moe", "--no-op-offload")
    assert run(70, "--cpu-moe", *LONG) == card != cpu
    assert run(29, "--cpu-moe", *LONG) == run(29, "--cpu-moe", "--no-op-offload")


def test_long_steps_where_all_steps_are_alike(tmp_path):
    flags = ["--cpu-moe", "--batch-invariant"]
    cpu = long_bits(V2, 70, *flags, "--no-op-offload", out=tmp_path / "bits")
    assert long_bits(V2, 70, *flags, out=tmp_path / "bits") == cpu != long_bits(V2, 70, "--cpu-moe", out=tmp_path / "bits")
    for flag in "--batch-invariant", "--no-op-offload":
        refused(moebius("logits", V2, "--ids", "1", *GPU, "--cpu-moe", flag, *LONG), "--op-offload-min-batch 30", flag)


def test_long_steps_of_other_formats(tmp_path):
    """Quantised on the way in; read from disk, one expert at a time and some; on two cards."""
    out = tmp_path / "bits"
    int4 = ["--quantization", "int4"]
    assert long_bits(V2, 40, *int4, "--cpu-moe", *LONG, out=out) == long_bits(V2, 40, *int4, "--n-cpu-moe", 0, out=out)
    file, card = tmp_path / "packed", long_bits(V2, 40, out=out)
    succeed("quantize", V2, "--quant", "bf16", "-o", file)
    for gib in 0.0001, 0.0002:
        assert long_bits(file, 40, "--cpu-moe", "--expert-cache", gib, *LONG, out=out) == card
    cards = fake(devices=2)
    assert long_bits(V2, 40, "-pp", 2, "--n-cpu-moe", 2, *LONG, env=cards, out=out) == card


def test_long_steps_fail_as_others_do(tmp_path):
    """A copy that the card refuses in the middle of a layer, and no pinned memory for the way."""
    flags = [*GPU, "--cpu-moe", *LONG, "--chunk", 40]
    ids = ",".join(map(str, range(3, 43)))
    log = moebius("logits", V2, "--ids", ids, *flags, env=fake(log=1)).err
    copies = len(re.findall(r"fake cuda: copy", log))
    without = len(re.findall(r"fake cuda: copy", moebius("logits", V2, "--ids", ids, *flags, "--no-op-offload", env=fake(log=1)).err))
    assert copies > without + 40  # two layers of experts, three matrices each
    refused(moebius("logits", V2, "--ids", ids, *flags, env=fake(copy=copies - 10)), "GPU 0", "sending weights")
    pinned = len(re.findall(r"fake cuda: pinned", log))
    refused(moebius("logits", V2, "--ids", ids, *flags, env=fake(pinned=pinned, leaks=1)), "pinned memory", "over the link")


def test_long_prompts_served(serve):  # noqa: F811
    """Beside others that decode, in chunks of both kinds."""
    prompt = {"prompt": [3 + i * 7 % 90 for i in range(150)], "temperature": 0, "max_tokens": 4}
    flags = ["--cpu-moe", *LONG, "--max-num-batched-tokens", 64]
    server = serve(*flags)
    with ThreadPoolExecutor(4) as pool:
        long = pool.map(lambda _: server.complete(**prompt)["choices"][0]["text"], range(2))
        short = pool.map(lambda i: server.complete("one two three", **REQUESTS[i])["choices"][0]["text"], range(2))
        assert len({*long}) == 1 and all(short)
    assert server.stop() == 0


def test_pages_of_long_steps(serve, tmp_path):  # noqa: F811
    """Found again whatever the number of tokens is from which a step is long: by itself it goes by the processor's clock."""
    request = {"prompt": [40 + i * 7 % 150 for i in range(80)], "temperature": 0, "max_tokens": 2}

    def cached(*flags):
        server = serve("--cpu-moe", *flags, "--prefix-cache-dir", tmp_path / "pages")
        tokens = server.complete(**request)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert server.stop() == 0
        return tokens

    assert [cached(*LONG), cached(LONG[0], 31), cached("--no-op-offload")] == [0, 64, 0]


def test_blocks_that_go_both_ways(tmp_path):
    """Experts of a GGUF file go to the card as they lie: where there is no room for these beside those in the CPU's order, they stay
    as they lie for the CPU, too."""
    model = write_model(tmp_path / "m.gguf", lambda name: "Q8_0")

    def stay(mib, *flags):
        result = moebius("logits", model, "--ids", IDS, "--chunk", 40, "--max-model-len", 64, *GPU, "--cpu-moe", *flags,
                         env={"MOEBIUS_MEMORY": str(mib / 1024)})
        return result.code != 0 or "stay as they lie" in result.err

    low, high = 1, 128
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if stay(middle, "--no-op-offload") else (low, middle)
    assert stay(high, *LONG) and not stay(4 * high, *LONG) and not stay(high, "--op-offload-min-batch", 4000)


# --- auto ----------------------------------------------------------------------------------------------------------------


def on_small_card(share, *flags, run=succeed):
    return run("logits", V2, "--ids", IDS, "--greedy", 2, *GPU, "--chunk", 8, "--max-model-len", 640,
               "--gpu-memory-utilization", share, *flags, env=fake(free_mib=10))


def test_auto_leaves_as_few_layers_as_must(tmp_path):
    """The less of the card may be taken, the more layers the CPU gets, until not even all of them help."""
    found, shares = {}, [0.32, 0.25, 0.24, 0.18, 0.1]
    for share in shares:
        result = on_small_card(share, run=moebius)
        n = re.search(r"routed experts of (\d) of 2 layers.*--n-cpu-moe (\d).*plan's estimate", result.err)
        found[share] = None if result.code else int(n[1]) if n else 0
        assert result.code or not n or n[1] == n[2]
        assert len(result.err.splitlines()) == (result.code == 1 or n is not None), result.err
    order = [found[share] for share in shares]
    assert order[0] == 0 and order[-1] is None and set(order) == {0, 1, 2, None}
    assert order[:-1] == sorted(order[:-1])
    one = next(share for share in shares if found[share] == 1)
    by_itself, said = on_small_card(one, "--out", tmp_path / "auto"), on_small_card(one, *ONE[2:], "--out", tmp_path / "one")
    assert by_itself.out == said.out and (tmp_path / "auto").read_bytes() == (tmp_path / "one").read_bytes()
    assert not said.err  # what was asked for needs no explanation
    for insists in (["--expert-device", "gpu"], ["--n-cpu-moe", 0]):
        refused(on_small_card(one, *insists, run=moebius), "--max-model-len 640", "--n-cpu-moe N")


def test_no_context_was_asked_for(tmp_path):
    """Then a usable one counts, and what is left is taken; what does not help is one message, with the numbers."""
    flags = ["logits", V2, "--ids", IDS, "--chunk", 8, *GPU]
    assert "a context of 8192 tokens" in succeed(*flags, env=fake(free_mib=6)).err
    assert not succeed(*flags, env=fake(free_mib=16)).err
    refused(moebius(*flags, env=fake(free_mib=1)), "GPU 0", "0.00 GiB free", "--max-model-len")


def test_no_memory_when_it_is_taken():
    """Another program was quicker: the numbers, and nothing is left behind."""
    for k in (1, 2, 3):
        result = moebius("logits", V2, "--ids", "1", *ONE, env=fake(alloc=k, leaks=1))
        refused(result, "GPU 0", "GiB")
        assert "not given back" not in result.err


# --- what goes with it ---------------------------------------------------------------------------------------------------


def test_experts_from_disk(tmp_path):
    """Of the CPU's layers alone, and only where it has some."""
    file = tmp_path / "packed"
    succeed("quantize", GOLDEN / "v3-tiny", "--quant", "int4", "-o", file)
    there = bits(tmp_path, file, *ONE)[0]
    read, said = bits(tmp_path, file, *ONE, "--expert-cache", 0.0001)
    assert read == there and re.search(r"\d of 16 experts fit into", said)
    assert bits(tmp_path, GOLDEN / "v3-tiny", *ONE, "--quantization", "int4")[0] == there  # made while it is loaded
    refused(moebius("logits", file, "--ids", "1", *GPU, "--expert-cache", 1), "--expert-cache", "--n-cpu-moe N")


def test_gguf(tmp_path):
    path = gguf_model.convert(V2, tmp_path / "m.gguf", gguf_model.Type.BF16)
    assert bits(tmp_path, path, *ONE)[0] == bits(tmp_path, V2, *ONE)[0]


def test_bench_like():
    """Of V4.1: what its n-grams take tokens for is not forgotten with the weights that are made anew for the CPU."""
    result = succeed("bench", "--config", GOLDEN / "v41-tiny" / "config.json", "--layers", 2, "--quant", "int8", *ONE,
                     "--prompt", 8, "--generate", 2, "--depth", 0, "--batch", 1, "--json")
    report = json.loads(result.out)
    assert report["decode"][0]["tokens_per_s"] > 0 and report["n_cpu_moe"] == 1


@pytest.mark.parametrize("share, flags, steps", [(0.2, [], 2048), (0.025, [], 512), (0.025, ["--expert-device", "gpu"], 512)])
def test_steps_are_as_long_as_the_card_allows(share, flags, steps):
    """2048 tokens unless somebody says how many; where their scratch is what does not fit, fewer rather than an error."""
    report = succeed("bench", V2, *GPU, "--prompt", 1, "--generate", 1, "--depth", 0, "--batch", 1, "--repeat", 1, "--json",
                     "--max-model-len", 640, "--gpu-memory-utilization", share, *flags, env=fake(free_mib=400)).json
    assert report["max_num_batched_tokens"] == steps and report["n_cpu_moe"] == 0


@pytest.mark.parametrize("flags", [["-ncmoe", 1, "-cmoe"], ["-cmoe", "--expert-device", "gpu"], ["-ncmoe", 1, "--expert-device", "cpu"],
                                   ["-ncmoe", 0, "--expert-device", "gpu"]])
def test_contradictions(flags):
    result = moebius("logits", V2, "--ids", "1", *GPU, *flags)
    assert result.code == 2 and "one of them" in result.err
    result = moebius("plan", "deepseek-v3", *flags)
    assert result.code == 2 and "one of them" in result.err
    assert "expected 0 to" in moebius("logits", V2, "--ids", "1", "-ncmoe", -1).err
