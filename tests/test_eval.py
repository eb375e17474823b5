"""`moebius eval` on tiny models: every figure is computed again here, from `moebius logits` and numpy."""

import ast
import json
import os
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

import make_tiny_text_model
import tiny_tokenizer
from conftest import GOLDEN, ROOT, change_config, moebius, read_f32, refused, succeed

EXACT = ["--compute", "f32", "--kv", "f32", "--attention", "absorbed"]
NO_ANSWERS = ["--fim", "0", "--parseable", "0"]
BOS = 0  # of tiny_tokenizer
CODE = '''"""A module for these tests. It says: ±€."""
import os


class Basket:
    def __init__(self, items, size=3):
        self.items = list(items)
        self.size = size

    async def empty(self):
        while self.items:
            await self.drop(self.items.pop())

    def lines(
            self, width):
        return [str(item)[:width] for item in self.items]


def weigh(basket, unit="kg"):
    total = 0
    for item in basket.items:
        total += item.weight
    return f"{total} {unit}"


def identity(x): return x
'''
DEFS = ["    def __init__(self, items, size=3):", "    async def empty(self):", 'def weigh(basket, unit="kg"):']


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "tiny"
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two documents, of which one is longer than 2048 tokens, an empty one, and files that are none."""
    folder = tmp_path_factory.mktemp("heldout")
    (folder / "package/inner").mkdir(parents=True)
    (folder / "package/short.py").write_text(CODE)
    (folder / "package/inner/long.py").write_text("".join(f"value_{i} = compute(the, other, {i})\n" for i in range(200)))
    (folder / "package/empty.py").write_text("")
    (folder / "LICENSE").write_text("not a document\n")
    (folder / ".hidden").mkdir()
    (folder / ".hidden/no.py").write_bytes(b"\xff not a document either")
    return folder


@pytest.fixture
def code(tmp_path):
    """A folder with CODE alone."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    return folder


def token_ids(model, text):
    line = json.dumps({"text": text})
    return json.loads(succeed("tokenize", model, stdin=line.encode() + b"\n").text)["ids"]


def token_bytes(model):
    """Bytes of every id, from tokenizer.json."""
    data = json.loads((model / "tokenizer.json").read_text())
    byte_of = {letter: byte for byte, letter in tiny_tokenizer.byte_letters().items()}
    out = {i: bytes(byte_of[c] for c in word) for word, i in data["model"]["vocab"].items() if "<" not in word or len(word) == 1}
    return {**out, **{t["id"]: t["content"].encode() for t in data["added_tokens"]}}


def log_softmax(rows):
    rows = rows.astype(np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def rows_of(model, ids, tmp_path, *flags):
    """Logits that predict ids, computed from bos: [len(ids)][vocab]."""
    (tmp_path / "ids.json").write_text(json.dumps([BOS, *ids[:-1]]))
    succeed("logits", model, "--ids", tmp_path / "ids.json", "--all", "--out", tmp_path / "rows", *(flags or EXACT))
    return read_f32(tmp_path / "rows", len(ids), -1)


def expected_sums(model, runs, tmp_path):
    """(nats, tokens, right, bytes) over lists of ids."""
    nats = tokens = right = size = 0
    lengths = token_bytes(model)
    for ids in runs:
        rows = rows_of(model, ids, tmp_path)
        nats -= log_softmax(rows)[np.arange(len(ids)), ids].sum()
        right += int((rows.argmax(-1) == ids).sum())
        tokens += len(ids)
        size += sum(len(lengths[i]) for i in ids)
    return nats, tokens, right, size


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def evaluate(model, *flags, **options):
    return succeed("eval", model, *flags, "--json", **options).json


# --- the held-out text -----------------------------------------------------------------------------------------------


def test_bits_per_byte(tiny, texts, tmp_path):
    (row,) = evaluate(tiny, "--heldout", texts, *NO_ANSWERS, *EXACT)
    runs = [token_ids(tiny, (texts / name).read_text())[:2048] for name in ("package/inner/long.py", "package/short.py")]
    assert [len(ids) == 2048 for ids in runs] == [True, False]
    nats, tokens, right, size = expected_sums(tiny, runs, tmp_path)
    assert row["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-8)
    assert row["top1"] == pytest.approx(right / tokens, rel=1e-8)
    assert (row["tokens"], row["bytes"], row["top1_right"], row["documents"]) == (tokens, size, right, 2)
    assert size < sum(len((texts / "package" / name).read_bytes()) for name in ("short.py", "inner/long.py"))
    assert (row["weights"], row["kv"], row["compute"], row["bits_per_byte_change"]) == ("bf16", "f32", "f32", 0)
    assert row["model_hash"] == succeed("info", tiny, "--json").json["hash"]
    assert f"moebius {row['version']}" in succeed("--version").text


def test_without_answers(tiny, code):
    (row,) = evaluate(tiny, "--heldout", code, *NO_ANSWERS)
    assert row["fim_exact_line"] is None and "--fim 0" in row["fim_reason"] and row["fim_tried"] == 0
    assert row["parseable"] is None and "--parseable 0" in row["parseable_reason"] and row["parseable_tried"] == 0


def test_rows_of_caches(tiny, code):
    """A row for each combination, each equal to the same run alone; the change is against the first."""
    rows = evaluate(tiny, "--heldout", code, *NO_ANSWERS, "--kv", "f32,bf16,fp8", "--compute", "fast,f32")
    assert [(r["compute"], r["kv"]) for r in rows] == [(c, k) for c in ("fast", "f32") for k in ("f32", "bf16", "fp8")]
    assert len({r["bits_per_byte"] for r in rows[:3]}) == 3, "a cache's format must show"
    for row in rows:
        assert row["bits_per_byte_change"] == pytest.approx(row["bits_per_byte"] - rows[0]["bits_per_byte"], abs=1e-7)
    (alone,) = evaluate(tiny, "--heldout", code, *NO_ANSWERS, "--kv", "fp8")
    assert alone["bits_per_byte"] == rows[2]["bits_per_byte"]
    assert evaluate(tiny, "--heldout", code, *NO_ANSWERS)[0]["kv"] == "bf16"


def test_same_again(tiny, code, tmp_path):
    """The same on any number of threads, in any batch, and with a smaller memory of pages."""
    def run(name, *flags):
        rows = evaluate(tiny, "--heldout", code, "--fim", "6", "--parseable", "3", "--answers", tmp_path / name, *flags)
        return without_time(rows), (tmp_path / name).read_text()
    first = run("a")
    assert first == run("b", "--threads", "2", "--max-num-batched-tokens", "33")
    assert first == run("c", "--threads", "1", "--max-num-seqs", "1", "--max-num-batched-tokens", "700")
    assert len(first[1].splitlines()) == 9


def test_lines_are_drawn_by_the_rule(tiny, texts, tmp_path):
    (row,) = evaluate(tiny, "--heldout", texts, "--fim", "1000", "--parseable", "1000", "--max-model-len", "300",
                      "--answers", tmp_path / "answers")
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert row["fim_tried"] == sum(a["kind"] == "line" for a in answers) and row["parseable_tried"] == 3
    assert row["fim_exact_line"] == row["fim_right"] / row["fim_tried"] and row["parseable"] == 0
    for name in ("package/short.py", "package/inner/long.py"):
        lines = (texts / name).read_text().split("\n")
        wanted = [i + 1 for i, line in enumerate(lines) if len("".join(line.split())) >= 8 and lines.count(line) == 1]
        found = [a for a in answers if a["kind"] == "line" and a["file"].endswith(name)]
        assert sorted(a["line"] for a in found) == wanted
        assert all(a["asked"] == lines[a["line"] - 1] for a in found)
    assert sorted(a["asked"] for a in answers if a["kind"] == "function") == sorted(DEFS)
    assert all(50 < a["prompt_tokens"] < 300 for a in answers)


def test_seed_chooses(tiny, texts, tmp_path):
    def drawn(name, *flags):
        evaluate(tiny, "--heldout", texts, "--parseable", "0", "--max-model-len", "600", "--answers", tmp_path / name, *flags)
        return [(a["file"], a["line"]) for a in map(json.loads, (tmp_path / name).read_text().splitlines())]
    eight = drawn("a", "--fim", "8")
    assert len(set(eight)) == 8 and drawn("b", "--fim", "5") == eight[:5]
    assert drawn("c", "--fim", "8", "--seed", "2") != eight


def test_prompts_are_those_of_run(tiny, code, tmp_path):
    """The answer to a masked line is what `run` says between prefix and suffix."""
    evaluate(tiny, "--heldout", code, "--fim", "4", "--parseable", "0", "--answers", tmp_path / "answers", *EXACT)
    lines = CODE.split("\n")
    for answer in map(json.loads, (tmp_path / "answers").read_text().splitlines()):
        at = answer["line"] - 1
        (tmp_path / "prefix").write_text("".join(line + "\n" for line in lines[:at]))
        (tmp_path / "suffix").write_text("\n" + "\n".join(lines[at + 1:]))
        most = len(token_ids(tiny, answer["asked"])) + 8
        run = succeed("run", tiny, "--prefix", tmp_path / "prefix", "--suffix", tmp_path / "suffix", "-n", most,
                      "--temperature", "0", *EXACT)
        # run leaves special tokens out of its text; eval shows them
        shown = re.sub("<｜(begin|end)▁of▁sentence｜>", "", answer["answer"])
        assert shown and run.text.split("\n")[0].rstrip("\n").startswith(shown.rstrip("\n"))


def test_right_answer_counts(tiny, tmp_path):
    """A line that the model does write: its own greedy answer, with the token after it made an end token."""
    bytes_of = token_bytes(tiny)
    fim = {t["content"]: t["id"] for t in json.loads((tiny / "tokenizer.json").read_text())["added_tokens"]}
    for start in range(200):
        prefix, suffix = f"a = {start}\n", "\nb = 1\n"
        prompt = [BOS, fim[tiny_tokenizer.FIM_BEGIN], *token_ids(tiny, prefix), fim[tiny_tokenizer.FIM_HOLE],
                  *token_ids(tiny, suffix), fim[tiny_tokenizer.FIM_END]]
        greedy = succeed("logits", tiny, "--ids", ",".join(map(str, prompt)), "--greedy", "12", *EXACT).json
        for n in range(2, 12):
            line = b"".join(bytes_of[i] for i in greedy[:n]).decode(errors="replace")
            plain = line.isascii() and line.isprintable() and "｜" not in line
            if plain and len("".join(line.split())) >= 8 and greedy[n] not in (*greedy[:n], *prompt) and \
                    n < len(token_ids(tiny, line)) + 8:
                break
        else:
            continue
        break
    else:
        pytest.fail("no prompt led to a plain line")
    model, folder = shutil.copytree(tiny, tmp_path / "model"), tmp_path / "texts"
    change_config(model, eos_token_id=[1, greedy[n]])
    folder.mkdir()
    for text, right in ((line, 1), (line + ".", 0), (line[:-1] + "?" + line[-1], 0)):
        (folder / "a.py").write_text(prefix + text + suffix)
        (row,) = evaluate(model, "--heldout", folder, "--fim", "9", "--parseable", "0", *EXACT)
        assert (row["fim_tried"], row["fim_right"], row["fim_exact_line"]) == (1, right, right), (line, text)
    # without the end token the same line is not the whole answer
    (folder / "a.py").write_text(prefix + line + suffix)
    assert evaluate(tiny, "--heldout", folder, "--fim", "9", "--parseable", "0", *EXACT)[0]["fim_right"] == 0


# --- python3 ---------------------------------------------------------------------------------------------------------


def fake_python(folder, script):
    folder.mkdir()
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_without_python(tiny, code, tmp_path):
    (tmp_path / "empty").mkdir()
    (row,) = evaluate(tiny, "--heldout", code, "--fim", "3", env={"PATH": str(tmp_path / "empty")})
    assert row["parseable"] is None and "python3" in row["parseable_reason"] and row["parseable_tried"] == 0
    assert row["fim_tried"] == 3 and row["bits_per_byte"] > 0 and row["python"] is None
    table = succeed("eval", tiny, "--heldout", code, "--fim", "3", env={"PATH": str(tmp_path / "empty")}).text
    assert "functions were not parsed: python3" in table


@pytest.mark.parametrize("script, word", [
    ("exit 127", "version"), ("echo nonsense", "version"), ("echo 3.0; exit 1", "answer"),
    ("echo 3.0; cat > /dev/null; echo '[true]'", "answer"), ("echo 3.0; cat > /dev/null; echo '{'", "answer")])
def test_broken_python(tiny, code, tmp_path, script, word):
    (row,) = evaluate(tiny, "--heldout", code, "--fim", "0", env=fake_python(tmp_path / "bin", script))
    assert row["parseable"] is None and word in row["parseable_reason"] and row["parseable_tried"] == 0


def test_one_python_for_all_functions(tiny, code, tmp_path):
    """Called once, without the user's modules; only answers of two lines or more are sent, as whole functions."""
    script = f'echo call >> {tmp_path}/calls; echo 3.9; cat > {tmp_path}/sent; echo "[]"'
    (row,) = evaluate(tiny, "--heldout", code, "--fim", "0", env=fake_python(tmp_path / "bin", script))
    assert (tmp_path / "calls").read_text() == "call\n" and row["python"] == "3.9"
    assert json.loads((tmp_path / "sent").read_text()) == []  # random weights write no two lines
    assert row["parseable"] == 0 and row["parseable_tried"] == 3


# --- any text --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("The people of the other house are not at home – they have been out all day.\n" * 3)
    return path


@pytest.mark.parametrize("window", [50, 2048])
def test_text(tiny, story, tmp_path, window):
    ids = token_ids(tiny, story.read_text())
    (row,) = evaluate(tiny, "--text", story, "--window", window, *EXACT)
    runs = [ids[at:at + window] for at in range(0, len(ids), window)]
    nats, tokens, right, size = expected_sums(tiny, runs, tmp_path)
    assert (row["tokens"], row["top1_right"], row["bytes"], row["windows"]) == (tokens, right, size, len(runs))
    assert size == len(story.read_bytes()) and tokens == len(ids)
    assert row["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-8)
    assert row["perplexity"] == pytest.approx(np.exp(nats / tokens), rel=1e-7)
    assert row["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-8)
    assert "reference" not in row and "fim_exact_line" not in row


def test_text_from_stdin(tiny, story):
    (row,) = evaluate(tiny, "--text", "-", stdin=story.read_bytes())
    assert row["perplexity"] == evaluate(tiny, "--text", story)[0]["perplexity"]


HEADER = struct.Struct("<8sIIIIiIQQ16x")


def stored(path):
    """(header fields, ids, rows as they lie there)."""
    data = path.read_bytes()
    magic, version, kind, vocab, window, bos, _, n_tokens, n_rows = HEADER.unpack_from(data)
    assert magic == b"moelogit" and version == 1 and HEADER.size == 64
    ids = np.frombuffer(data, "<i4", n_tokens, HEADER.size)
    rows = np.frombuffer(data, ["<f2", "<f4"][kind], offset=HEADER.size + 4 * n_tokens).reshape(n_rows, vocab)
    return (vocab, window, bos), ids, rows


def test_save_logits(tiny, story, tmp_path):
    ids, out = token_ids(tiny, story.read_text()), {}
    for kind in ("f16", "f32"):
        succeed("eval", tiny, "--text", story, "--window", "64", "--save-logits", tmp_path / kind, "--logits-format", kind, *EXACT)
        (vocab, window, bos), found, out[kind] = stored(tmp_path / kind)
        assert (vocab, window, bos, list(found)) == (512, 64, BOS, ids)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f16", "f32"], "nothing else stays"
    wanted = np.concatenate([rows_of(tiny, ids[at:at + 64], tmp_path) for at in range(0, len(ids), 64)])
    assert out["f32"].tobytes() == wanted.tobytes()
    shifted = wanted - wanted.max(-1, keepdims=True)
    assert out["f16"].tobytes() == shifted.astype("<f2").tobytes()


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_reference(tiny, story, tmp_path, kind):
    flags = ["--text", story, "--window", "100"]
    reference, other = tmp_path / "reference", tmp_path / "other"
    (saved,) = evaluate(tiny, *flags, "--kv", "f32", "--save-logits", reference, "--logits-format", kind)
    evaluate(tiny, *flags, "--kv", "fp8", "--save-logits", other, "--logits-format", "f32")
    same, far = evaluate(tiny, *flags, "--kv", "f32,fp8", "--reference", reference)
    p, q = log_softmax(stored(reference)[2]), log_softmax(stored(other)[2])
    kl = np.sort((np.exp(p) * (p - q)).sum(-1))
    assert far["reference"]["kl_mean"] == pytest.approx(kl.mean(), rel=1e-6)
    assert far["reference"]["kl_max"] == pytest.approx(kl[-1], rel=1e-6)
    assert far["reference"]["kl_p99"] == pytest.approx(kl[-(-len(kl) * 99 // 100) - 1], rel=1e-6)
    assert far["reference"]["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert far["reference"]["perplexity"] == pytest.approx(saved["perplexity"], rel=1e-3 if kind == "f16" else 1e-8)
    assert same["reference"]["kl_max"] <= (1e-6 if kind == "f16" else 1e-12) < far["reference"]["kl_mean"]
    assert same["reference"]["top1_agreement"] == 1
    table = succeed("eval", tiny, *flags, "--kv", "fp8", "--reference", reference).text
    assert "KL mean" in table and f"{kl.mean():.3e}" in table


def test_save_logits_to_a_device(tiny, story):
    """A device is written to, never replaced."""
    succeed("eval", tiny, "--text", story, "--save-logits", "/dev/null")
    assert not os.path.isfile("/dev/null")
    if os.path.exists("/dev/full"):
        refused(moebius("eval", tiny, "--text", story, "--save-logits", "/dev/full"), "/dev/full", "logits")


def test_save_logits_keeps_the_old_file_on_failure(tiny, story, tmp_path):
    out = tmp_path / "out"
    out.write_text("precious")
    refused(moebius("eval", tiny, "--text", story, "--save-logits", out, "--reference", tmp_path / "absent"), "absent")
    assert out.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tiny, story, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "logits"
    succeed("eval", tiny, "--text", story, "--window", "100", "--save-logits", path)
    return path.read_bytes()


@pytest.mark.parametrize("change, words", [
    (lambda data: data[:-1], ["promises", "cut short"]),
    (lambda data: data + b"\0", ["promises"]),
    (lambda data: data[:40], ["not a file of logits"]),
    (lambda data: b"", ["not a file of logits"]),
    (lambda data: b"M" + data[1:], ["not a file of logits"]),
    (lambda data: data[:8] + b"\2" + data[9:], ["version 2"]),
    (lambda data: data[:12] + b"\7" + data[13:], ["format 7"]),
    (lambda data: data[:32] + b"\xff" * 16 + data[48:], ["promises"]),
    (lambda data: data[:64] + b"\x11" + data[65:], ["another text or tokenizer", "token 0 is 17"]),
    (lambda data: data[:-1024] + b"\xff" * 1024, ["not a finite number"]),
])
def test_damaged_reference(tiny, story, reference, tmp_path, change, words):
    (tmp_path / "logits").write_bytes(change(reference))
    result = moebius("eval", tiny, "--text", story, "--window", "100", "--reference", tmp_path / "logits")
    refused(result, tmp_path / "logits", *words)


def test_reference_of_something_else(tiny, story, reference, tmp_path):
    path = tmp_path / "logits"
    path.write_bytes(reference)
    n = len(token_ids(tiny, story.read_text()))
    refused(moebius("eval", tiny, "--text", story, "--window", "99", "--reference", path), "--window was 100", "99")
    (tmp_path / "shorter").write_text("The people.\n")
    refused(moebius("eval", tiny, "--text", tmp_path / "shorter", "--window", "100", "--reference", path), str(n), "tokens")
    (tmp_path / "other").write_text(story.read_text().replace("–", "—"))
    refused(moebius("eval", tiny, "--text", tmp_path / "other", "--window", "100", "--reference", path), "another text")
    small = tmp_path / "small"
    make_tiny_text_model.make(GOLDEN / "v2-tiny", small)
    refused(moebius("eval", small, "--text", story, "--window", "100", "--reference", path), "vocabulary has 512", "384")
    refused(moebius("eval", tiny, "--text", story, "--reference", tmp_path), tmp_path, "regular file")


@pytest.mark.parametrize("arguments, words", [
    (["--kv", "int4"], ["--kv-cache-dtype", "int4", "auto, f32, bf16, fp8"]),
    (["--kv", "f32,,fp8"], ["--kv-cache-dtype", "f32,,fp8"]),
    (["--compute", "double"], ["--compute", "double", "fast, f32"]),
    (["--compute", ""], ["--compute"]),
    (["--quant", ","], ["--quantization", "empty"]),
    (["--quant", ",int4"], ["--quantization", "empty"]),
    (["--quant", "int4,head=bf16,"], ["--quantization", "empty"]),
    (["--quant", ",".join(["int4"] * 33)], ["--quantization", "32"]),
    (["--kv", ",".join(["f32"] * 33)], ["--kv-cache-dtype", "32"]),
    (["--kv", ",".join(["f32"] * 20), "--compute", "fast,f32"], ["40 rows"]),
    (["--save-logits", "x"], ["--save-logits", "--text"]),
    (["--reference", "x"], ["--reference", "--text"]),
    (["--window", "9"], ["--window", "--text"]),
    (["--text", "x", "--fim", "3"], ["--fim", "--text"]),
    (["--text", "x", "--answers", "y"], ["--answers", "--text"]),
    (["--text", "x", "--save-logits", "y", "--kv", "f32,fp8"], ["--save-logits", "2"]),
    (["--text", "x", "--logits-format", "f32"], ["--logits-format"]),
])
def test_arguments_that_do_not_go_together(tiny, arguments, words):
    result = moebius("eval", tiny, *arguments)
    assert result.code == 2, str(result)
    refused(result, *words)


def test_texts_that_cannot_be_measured(tiny, code, tmp_path):
    refused(moebius("eval", tiny, "--heldout", tmp_path / "absent"), tmp_path / "absent", "No such file")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/a.txt").write_text("x")
    (tmp_path / "nothing/a.py").write_text("")
    refused(moebius("eval", tiny, "--heldout", tmp_path / "nothing"), tmp_path / "nothing", "no *.py file")
    refused(moebius("eval", tiny, "--heldout", code / "code.py"), code / "code.py", "Not a directory")
    (code / "latin.py").write_bytes(b"x = '\xe4'\n")
    refused(moebius("eval", tiny, "--heldout", code), code / "latin.py", "UTF-8", "byte 5")
    for name, content, word in (("empty", b"", "too short"), ("latin", b"ab\xe4c", "byte 2")):
        (tmp_path / name).write_bytes(content)
        refused(moebius("eval", tiny, "--text", tmp_path / name), tmp_path / name, word)
    refused(moebius("eval", tiny, "--text", tmp_path / "absent"), tmp_path / "absent")
    (tmp_path / "text").write_text("some text")
    refused(moebius("eval", tiny, "--text", tmp_path / "text", "--window", "200", "--max-model-len", "100"), "200", "100")


def test_default_text_is_the_tree_s(tiny, tmp_path):
    """In the tree the folder is found; elsewhere the message says what to do. A model without tokenizer is refused."""
    import conftest
    away = subprocess.run([conftest.PROGRAM, "eval", tiny], cwd=tmp_path, capture_output=True, text=True)
    assert away.returncode == 2 and "--heldout DIR" in away.stderr and "--text FILE" in away.stderr
    refused(moebius("eval", GOLDEN / "v2lite-tiny", "--heldout", ROOT / "tests/data/heldout"), "tokenizer.json")


def test_no_fill_in_the_middle(tiny, code, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    data = json.loads((model / "tokenizer.json").read_text())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != tiny_tokenizer.FIM_HOLE]
    (model / "tokenizer.json").write_text(json.dumps(data))
    (row,) = evaluate(model, "--heldout", code, "--parseable", "0")
    assert row["fim_exact_line"] is None and "tokenizer" in row["fim_reason"] and row["fim_tried"] == 0


def test_help_and_table(tiny, code):
    text = succeed("eval", "--help").text
    assert text.startswith("Usage: moebius eval") and "Examples:" in text and all(len(line) <= 120 for line in text.splitlines())
    for flag in ("--heldout", "--fim", "--parseable", "--seed", "--kv", "--compute", "--json", "--text", "--save-logits"):
        assert re.search(rf"(^|[\s,]){flag}([\s,]|$)", text, re.M), flag
    assert len(re.findall(r"^  --compute ", text, re.M)) == 1, "a flag is listed once"
    table = succeed("eval", tiny, "--heldout", code, "--fim", "2", "--parseable", "2", "--kv", "f32,fp8").text
    rows = [line.split() for line in table.splitlines() if line.startswith("bf16 ")]
    assert [row[1] for row in rows] == ["f32", "fp8"] and "lines filled in" in table and "of 2" in table


def test_heldout_code_is_python():
    """The text in the tree is what the measures need: files that Python parses."""
    files = sorted((ROOT / "tests/data/heldout").rglob("*.py"))
    assert files
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"))
