"""Several cards in one process, each with some of the layers, without a GPU (tests/shim has as many as it is told): the bits of one
card, who gets which layers, what goes with it, and what a card says that is missing, full or lost. Tiny models have three layers or
four, so three cards are many.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

import gguf_model
from conftest import GOLDEN, moebius, refused, succeed
from test_cuda import GPU, fake, shim  # noqa: F401 (a fixture)
from test_cuda_decode import HOST_REQUESTS, REQUESTS, answers, calls, folder, generate, serve, text_of  # noqa: F401 (fixtures)
from test_golden import Case
from test_selftest import on_card

V2 = GOLDEN / "v2lite-tiny"
IDS = ",".join(str(7 * i % 97 + 3) for i in range(17))
TWO, THREE = [*GPU, "-pp", 2], [*GPU, "-pp", 3]
CARDS = fake(devices=3)


def bits(tmp_path, model, *flags, n=4, env=CARDS):
    """(logits' bytes, stderr) of an answer: its later steps are recorded ones."""
    out = tmp_path / "bits.f32"
    result = succeed("logits", model, "--ids", IDS, "--greedy", n, "--out", out, *flags, env=env)
    return out.read_bytes(), result.err


def parts(said):
    """[(card, first layer, last layer)], as the line at start has it."""
    return [tuple(int(n) for n in (card, first, last or first)) for card, first, last in
            re.findall(r"GPU (\d) has layers? (\d)(?: to (\d))?", said)]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, case_id, chunk", [("v2lite-tiny", "p1", 1), ("v2lite-tiny", "p17", 5), ("v2lite-tiny", "p200", 70),
                                                  ("v3-tiny-fp8", "p17", 17), ("v3-tiny-fp8", "p200", 200)])
def test_the_bits_of_one_card(name, case_id, chunk, tmp_path):
    """Of logits, and of what is seen inside: the residual stream behind each layer, and experts."""
    case = Case(name, case_id)

    def run(*flags):
        files = [tmp_path / file for file in ("logits", "hidden", "experts")]
        succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens)), "--all", "--out", files[0], "--hidden", files[1],
                "--experts", files[2], "--chunk", chunk, *flags, env=CARDS)
        return [file.read_bytes() for file in files]

    one = run(*GPU)
    assert run(*TWO) == run(*THREE) == one


@pytest.mark.parametrize("flags", [[], ["--kv-cache-dtype", "fp8"], ["--quantization", "int4"], ["--n-cpu-moe", 1], ["--cpu-moe"],
                                   ["--attention", "expanded"]])
def test_decoding(flags, tmp_path):
    one = bits(tmp_path, V2, *GPU, *flags)[0]
    for cards in (TWO, THREE, ["--device", "cuda:2,cuda:0"]):
        assert bits(tmp_path, V2, *cards, *flags)[0] == one, cards
    assert bits(tmp_path, V2, *THREE, *flags, env={**CARDS, "MOEBIUS_CUDA_GRAPHS": "0"})[0] == one


def test_each_card_records_its_steps(tmp_path):
    """The first step of a shape is eager, the second recorded: of five, three are replays, on each card. Where the CPU computes the
    experts of the first card's layers, these are not."""
    for flags, cards in ((GPU, 1), (TWO, 2), (THREE, 3), ([*THREE, "--n-cpu-moe", 1], 2)):
        graphs = calls(moebius("logits", V2, "--ids", "5", "--greedy", 5, *flags, env=fake(devices=3, log=1)), "graph")
        assert len(graphs) == 4 * cards, flags


def test_gguf(tmp_path):
    path = gguf_model.convert(V2, tmp_path / "m.gguf", gguf_model.Type.BF16)
    assert bits(tmp_path, path, *TWO)[0] == bits(tmp_path, V2, *GPU)[0]


def test_the_self_test_takes_a_layer_of_each_card():
    """One of each kind is the first card's and the second's; the third has one, too. Nothing but the self-test computes: two short steps,
    and a longer one (in expanded form) through the first layer."""
    for cards, layers in (("1", 2), ("3", 3)):
        opened, said = on_card("-pp", cards, **fake(devices=3, log=1))
        assert opened and said.count("fake cuda: embed") == 3 and said.count("fake cuda: attn_bf16") == 2 * layers


# --- who has which layers ------------------------------------------------------------------------------------------------


def test_names(tmp_path):
    """vLLM's, llama.cpp's and ours; the one line that says what came of it."""
    assert not parts(bits(tmp_path, V2, *GPU)[1])
    assert parts(bits(tmp_path, V2, *TWO)[1]) == parts(bits(tmp_path, V2, "--device", "cuda:0,cuda:1")[1])
    assert parts(bits(tmp_path, V2, *THREE)[1]) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert [card for card, *_ in parts(bits(tmp_path, V2, "--device", "cuda:2,cuda:0", "-ts", "1,1")[1])] == [2, 0]
    assert parts(bits(tmp_path, V2, *GPU, "--tensor-split", "9,1")[1]) == [(0, 0, 1), (1, 2, 2)]
    assert parts(bits(tmp_path, V2, *GPU, "-ts", "1,9")[1]) == [(0, 0, 0), (1, 1, 2)]
    assert not parts(bits(tmp_path, V2, *GPU, "-pp", 1)[1])


def test_by_free_memory(tmp_path):
    small_first, small_last = fake(devices=2, free_mib=100, free_mib0=40), fake(devices=2, free_mib=100, free_mib1=40)
    flags = [*TWO, "--chunk", 8, "--max-model-len", 640]
    assert parts(bits(tmp_path, V2, *flags, env=small_first)[1]) == [(0, 0, 0), (1, 1, 2)]
    assert parts(bits(tmp_path, V2, *flags, env=small_last)[1]) == [(0, 0, 1), (1, 2, 2)]


WRONG = [
    (["--device", "cuda:0,cuda:0"], "several different cards"),
    (["--device", "cuda:0,"], "several different cards"),
    (["--device", "cuda,cuda:1"], "several different cards"),
    (["--device", "cuda:1", "-pp", 2], "names 1 card, --pipeline-parallel-size asks for 2"),
    (["--device", "cuda:0,cuda:1", "-ts", "1,2,3"], "names 2 cards, --tensor-split asks for 3"),
    ([*GPU, "-ts", "1,2", "-pp", 3], "is for 2 cards"),
    ([*GPU, "-ts", "1,0"], "numbers above 0"),
    ([*GPU, "-ts", "3;1"], "numbers above 0"),
    ([*GPU, "-ts", "1e-308,1"], "numbers above 0"),  # GPU 0 would have got most layers
    ([*GPU, "-ts", ",".join("1" * 17)], "at most 16 cards"),
    ([*GPU, "-ts", "1,1,1,1"], "4 cards are asked for, and the model has 3 layers"),
    (["--device", "cpu", "-pp", 2], "--device cuda takes them"),
    (["-ts", "1,1"], "--device cuda takes them"),
]


@pytest.mark.parametrize("flags, words", WRONG)
def test_contradictions(flags, words):
    result = moebius("logits", V2, "--ids", "1", *flags, env=fake(devices=4))
    assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1, result


def on_small_cards(mib, *flags, devices=3, run=succeed):
    return run("logits", V2, "--ids", IDS, "--greedy", 2, "--chunk", 8, "--max-model-len", 640, *flags,
               env=fake(devices=devices, free_mib=mib))


def test_as_few_cards_as_hold_the_model(tmp_path):
    """The smaller the cards, the more of them; those that are asked for stay alone, and experts go to the CPU only where all cards are
    too small."""
    one = on_small_cards(64, *GPU).out
    found = {}
    for mib in (64, 4, 3, 2):
        result = on_small_cards(mib, *GPU)
        found[mib] = (len(parts(result.err)) or 1, "--n-cpu-moe" in result.err)
        assert ("hold them" in result.err) == (found[mib][0] > 1)
        if not found[mib][1]:
            assert result.out == one
    assert found[64] == (1, False) and sorted(found.values()) == list(found.values()), found
    assert {cards for cards, _ in found.values()} >= {1, 2}, found
    two = next(mib for mib, (cards, _) in found.items() if cards == 2)
    for alone in (["--device", "cuda:0"], [*GPU, "-pp", 1], ["--device", "cuda:1"]):
        assert "--n-cpu-moe" in on_small_cards(two, *alone).err
    assert "--n-cpu-moe" in on_small_cards(two, *GPU, devices=1).err


def test_cards_that_together_are_too_small():
    """One is taken if it holds all but experts, else both: as if they had been asked for."""
    asked, found = (on_small_cards(1, *flags, devices=2) for flags in (TWO, GPU))
    assert len(parts(found.err)) == 2 and "--n-cpu-moe 2" in found.err and "hold them" not in found.err
    assert found.out == asked.out
    one = succeed("logits", V2, "--ids", IDS, "--chunk", 8, "--max-model-len", 640, *GPU, env=fake(devices=2, free_mib=2, free_mib1=0))
    assert not parts(one.err) and "--n-cpu-moe 2" in one.err


# --- what goes with it -----------------------------------------------------------------------------------------------------


def test_clients_beside_each_other(serve):  # noqa: F811
    """Steps begin ahead, with tokens that another card has picked."""
    requests = REQUESTS + HOST_REQUESTS
    expected = answers(serve(), requests)
    for cards in (2, 3):
        server = serve("-pp", cards, env=CARDS)
        assert answers(server, requests) == expected
        assert server.becomes_idle()


def test_a_step_begins_before_the_last_one_is_read(folder):  # noqa: F811
    """Nor by the first card before the last one has picked: also if streams run on as soon as they can, and not as late."""
    flags = ["--temperature", 0]
    late = generate(folder, *flags, "-pp", 2, env=fake(devices=2, log=1))
    kinds = [kind for kind, _ in calls(late, "graph", "event")]
    assert kinds[-6:] == ["graph"] * 2 + ["event"] * 4, kinds[-10:]
    early = generate(folder, *flags, "-pp", 2, env=fake(devices=2, eager=1))
    assert text_of(early) == text_of(late) == text_of(generate(folder, *flags))


def test_pages_on_disk(serve, tmp_path):  # noqa: F811
    """Each card has its layers of a page: written by two, read by one and by three."""
    request = {"prompt": [40 + i * 7 % 150 for i in range(150)], "temperature": 0, "max_tokens": 4, "ignore_eos": True}
    texts, cached = [], []
    for cards in (2, 1, 3):
        server = serve("-pp", cards, "--batch-invariant", "--prefix-cache-dir", tmp_path / "pages", env=CARDS)
        reply = server.complete(**request)
        texts.append(reply["choices"][0]["text"])
        cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert server.stop() == 0
    assert cached == [0, 128, 128] and len(set(texts)) == 1


def test_bench():
    report = succeed("bench", V2, *TWO, "--prompt", 8, "--generate", 2, "--depth", 0, "--batch", "1,2", "--repeat", 1, "--json", env=CARDS).json
    assert report["gpus"] == [{"index": 0, "first_layer": 0, "layers": 2}, {"index": 1, "first_layer": 2, "layers": 1}]
    assert report["decode"][0]["tokens_per_s"] > 0 and report["gpu"]["load"]["bytes"] > 0
    alone = succeed("bench", V2, *GPU, "--prompt", 8, "--generate", 2, "--depth", 0, "--batch", "1", "--repeat", 1, "--json", env=CARDS).json
    assert report["gpu"]["load"]["bytes"] == alone["gpu"]["load"]["bytes"]


def test_made_up_weights():
    result = succeed("bench", "--config", V2 / "config.json", "--quant", "int8", *TWO, "--prompt", 8, "--generate", 2, "--depth", 0,
                     "--batch", 1, "--repeat", 1, "--json", env=CARDS)
    assert json.loads(result.out)["decode"][0]["tokens_per_s"] > 0


# --- what fails --------------------------------------------------------------------------------------------------------------


def test_a_card_that_is_not_there():
    """The second of two is an error; without the first there are none, as ever."""
    for flags in (TWO, ["--device", "cuda:0,cuda:1"], [*GPU, "-ts", "1,1"]):
        refused(moebius("logits", V2, "--ids", "1", *flags, env=fake(devices=1)), "there is no GPU 1")
    assert "computing on the CPU" in succeed("logits", V2, "--ids", "1", *TWO, env=fake(devices=0)).err


def test_a_card_that_is_full():
    """By the numbers; and where another program was quicker. Nothing is left behind."""
    result = moebius("logits", V2, "--ids", "1", *TWO, "--max-model-len", 640, env=fake(devices=2, free_mib1=0))
    refused(result, "--max-model-len 640", "GiB")
    named = set()
    for k in range(1, 11):
        result = moebius("logits", V2, "--ids", "1", *TWO, env=fake(devices=2, alloc=k, leaks=1))
        refused(result, "GPU", "memory" if "weights in" in result.err else "GiB")
        named.add(re.search(r"moebius logits: GPU (\d)", result.err)[1])
        assert "not given back" not in result.err
    assert named == {"0", "1"}


def failing(folder, **failure):  # noqa: F811
    return generate(folder, "-pp", 2, env=fake(devices=2, leaks=1, **failure), run=moebius)


def test_a_card_that_is_lost(folder):  # noqa: F811
    """Launches, copies, replays and waits of either card, early and late: one message, with the card's number."""
    good = calls(generate(folder, "-pp", 2, env=fake(devices=2, log=1)), "launch", "copy", "graph", "event", "wait")
    named = set()
    for kind in ("launch", "copy", "graph", "event"):
        numbers = [number for k, number in good if k == kind]
        for number in {numbers[0], *numbers[-2:], *numbers[len(numbers) // 2:len(numbers) // 2 + 2]}:
            result = failing(folder, **{kind: number})
            found = re.findall(r"GPU (\d) \(fibres on a CPU \d\), stage|GPU (\d): ", result.err)
            assert result.code == 1 and "unspecified launch failure" in result.err and len(found) == 1, f"{kind} {number} {result}"
            assert "not given back" not in result.err, f"{kind} {number} {result}"
            named.add((kind, "".join(found[0])))
    assert named == {(kind, card) for kind in ("launch", "copy", "graph", "event") for card in "01"}


def test_server_says_503(folder, serve):  # noqa: F811
    events = [number for _, number in calls(generate(folder, "-pp", 2, env=fake(devices=2, log=1)), "event")]
    server = serve("-pp", 2, env=fake(devices=2, event=events[-6]))
    with ThreadPoolExecutor(3) as pool:
        body = {"model": server.model, "prompt": "one two", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        for answer in pool.map(lambda _: server.post("/v1/completions", body), range(6)):
            assert answer.status == 503 and b"unspecified launch failure" in answer.body and b"GPU " in answer.body, answer
    assert server.becomes_idle()
