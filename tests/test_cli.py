"""The command line as people meet it: help, mistakes, `info`, where models are found, and `run` on a tiny model."""

import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import time

import pytest

import st
import tiny_tokenizer
from conftest import GOLDEN, PROGRAM, ROOT, SETS, change_config, copy_set, moebius, refused, succeed

COMMANDS = ["run", "info", "logits", "tokenize", "detokenize", "render"]
LITE = GOLDEN / "v2lite-tiny"
DEMO = ROOT / "models" / "demo"


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """v3-tiny-fp8 with a tokenizer of its own size: a model that `run` can run."""
    folder = copy_set("v3-tiny-fp8", tmp_path_factory.mktemp("talker") / "m")
    tiny_tokenizer.write(folder)
    return folder


# --- help and mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_the_commands(flag):
    text = succeed(flag).text
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\b.*\w", text, re.M), f"{command} is not explained:\n{text}"


def test_version():
    assert re.search(r"\d+\.\d+\.\d+", succeed("--version").text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    """Usage, every flag with words, an example; on stdout, without a model."""
    text = succeed(command, "--help").text
    assert text.startswith(f"Usage: moebius {command}")
    assert "Examples:" in text and f"moebius {command}" in text.split("Examples:")[1]
    for line in text.splitlines():
        assert len(line) <= 120, line


@pytest.mark.parametrize("command, flags", [
    ("run", ["--prompt", "-p", "--chat", "--prefix", "--suffix", "-n", "--temperature", "--top-p", "--top-k", "--min-p",
             "--seed", "--threads", "-t", "--max-model-len", "--context", "-c", "--kv-cache-dtype", "--kv", "--compute",
             "--attention", "--revision", "--chat-template", "--generation-config", "--repetition-penalty",
             "--presence-penalty", "--frequency-penalty", "--stop"]),
    ("logits", ["--ids", "--out", "--all", "--hidden", "--experts", "--expert-weights", "--greedy", "--chunk",
                "--compute", "--attention", "--kv-cache-dtype", "--threads"]),
    ("info", ["--json", "--full-hash", "--revision"]),
    ("render", ["--messages", "--chat-template"]),
])
def test_help_lists_the_flags(command, flags):
    text = succeed(command, "--help").text
    missing = [flag for flag in flags if not re.search(rf"(^|[\s,]){flag}([\s,]|$)", text, re.M)]
    assert not missing, text


@pytest.mark.parametrize("command", re.findall(r"^  (\w+)  ", moebius("--help").text, re.M))
def test_help_says_each_name_once(command):
    """What a command has of its own is not also said to be the engine's: logits --experts is a file."""
    names = [name for line in re.findall(r"^  ((?:-[^ ,]+(?:, )?)+)", moebius(command, "--help").text, re.M) for name in line.split(", ")]
    assert names and len(set(names)) == len(names), sorted(names)


def test_names_that_llama_cpp_has(talker):
    result = moebius("run", "-m", talker, "-p", "Hello", "--predict", 3, "--ctx-size", 64, "-b", 16, "-np", 1, "--json")
    assert result.json["completion_tokens"] <= 3, str(result)


def test_no_command():
    result = moebius()
    assert result.code == 2 and "Usage: moebius COMMAND" in result.err


@pytest.mark.parametrize("word", ["rum", "--verbose", "-x", ""])
def test_unknown_command(word):
    result = moebius(word, LITE)
    assert result.code == 2
    refused(result, word, "moebius --help")


@pytest.mark.parametrize("flag, near", [("--atention", "--attention"), ("--thread", "--threads"), ("--alll", "--all")])
def test_unknown_flag_suggests(flag, near):
    result = moebius("logits", LITE, flag, "1")
    assert result.code == 2
    refused(result, flag, near)


def test_unknown_flag_without_a_neighbour():
    refused(moebius("logits", LITE, "--frobnicate"), "--frobnicate", "--help")


@pytest.mark.parametrize("arguments, words", [
    (["--threads"], ["--threads", "value"]),
    (["--threads", "x"], ["--threads", "x"]),
    (["--threads", "0"], ["--threads", "0"]),
    (["--threads", "100000"], ["--threads", "100000"]),
    (["--chunk", "0"], ["--chunk", "0"]),
    (["--greedy", "-1"], ["--greedy", "-1"]),
    (["--compute", "double"], ["--compute", "fast|f32", "double"]),
    (["--attention", "flash"], ["--attention", "auto|absorbed|expanded", "flash"]),
    (["--kv-cache-dtype", "int4"], ["--kv-cache-dtype", "int4"]),
    (["--all=yes"], ["--all"]),
    (["another", "argument"], ["argument"]),
])
def test_wrong_values(arguments, words):
    result = moebius("logits", LITE, "--ids", "1", *arguments)
    assert result.code == 2, str(result)
    refused(result, *words)


@pytest.mark.parametrize("arguments, word", [
    (["--ids", "1"], "MODEL"), ([LITE], "--ids")])
def test_logits_lacks_something(arguments, word):
    result = moebius("logits", *arguments)
    assert result.code == 2
    refused(result, word)


def test_unknown_cpu_level():
    result = moebius("logits", LITE, "--ids", "1", env={"MOEBIUS_CPU": "sse9"})
    refused(result, "MOEBIUS_CPU", "sse9")


def test_model_as_a_flag():
    by_flag, by_position = succeed("info", "--model", LITE, "--json"), succeed("info", LITE, "--json")
    assert by_flag.json == by_position.json


@pytest.mark.parametrize("arguments", [["serve"], ["run-batch", "-i", "in", "-o", "out"]])
def test_model_given_twice(arguments):
    refused(moebius(*arguments, "one", "--model", "two"), "MODEL is given twice", '"one"', "--model two")


def test_flag_with_equals_sign(tmp_path):
    succeed("logits", LITE, "--ids=1,2", f"--out={tmp_path / 'x'}", "--threads=1")
    assert (tmp_path / "x").stat().st_size == 512 * 4


def test_output_to_a_pipe_leaves_it_there(tmp_path):
    """Files are replaced in one step; pipes and devices (/dev/null, /dev/stdout) are written to, never replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        succeed("logits", LITE, "--ids", "1,2", "--out", pipe)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert len(os.read(reader, 65536)) == 512 * 4
    finally:
        os.close(reader)


def test_a_pipe_is_no_model(tmp_path):
    """And nobody waits for one who writes to it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(moebius("info", pipe, timeout=20), pipe, "not a regular file")


def test_without_proc():
    """A root without /proc: how much memory there is, the system says without it."""
    hidden = ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("no right to take /proc away")
    done = subprocess.run([*hidden, PROGRAM, "bench", str(LITE), "--prompt", "2", "--generate", "2", "--batch", "1", "--depth", "0",
                           "--repeat", "1", "--json"], capture_output=True, env={**os.environ, "MOEBIUS_MEMORY": "0.25"})
    assert done.returncode == 0, done.stderr


def test_output_through_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    succeed("logits", LITE, "--ids", "1,2", "--out", link)
    assert link.is_symlink() and target.stat().st_size == 512 * 4


# --- info ------------------------------------------------------------------------------------------------------------


def info(folder, *flags):
    return succeed("info", folder, "--json", *flags).json


ROLES = {  # the first part of a tensor's name that is found says what it is
    "engram.embed.": "tables", "norm": "norm", "embed_tokens": "embedding", "lm_head": "head", "self_attn": "attention", "shared_experts": "shared",
    ".experts.": "routed", "mlp.gate.": "router", "mlp.": "dense",
    **dict.fromkeys(("hc_", "ffn.gate."), "router"), ".attn.": "attention", ".engram.": "attention", "embed.": "embedding", "head.": "head"}  # V4


def text_config(name):
    """Where a config.json says what concerns text."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    return config.get("text_config", config)


def is_left_out(tensor, config):
    """Of multi-token prediction, or of what sees images."""
    layer = re.match(r"model\.layers\.(\d+)\.", tensor)
    eyes = re.match(r"mtp\.|vision\.|aligner\.|image_", tensor) or tensor.endswith(".gate.bias_vl")
    return bool(eyes) or bool(layer) and int(layer.group(1)) >= config["num_hidden_layers"]


def parameters_by_role(name):
    """Counted here from the headers: every weight once, by its name; scales, zeros and tables of experts are none."""
    config = text_config(name)
    counts = dict.fromkeys(["attention", "dense", "shared", "routed", "router", "embedding", "norm", "head", "tables"], 0)
    for path in sorted((GOLDEN / name).glob("*.safetensors")):
        for tensor, entry in st.File(path).tensors().items():
            if is_left_out(tensor, config) or re.search(r"(scale|scale_inv|scales|qzeros|tid2eid)$", tensor) and "hc_" not in tensor:
                continue
            n = math.prod(entry["shape"]) * (8 if tensor.endswith("qweight") else 2 if entry["dtype"] == "I8" else 1)
            counts[next(role for part, role in ROLES.items() if part in tensor)] += n
    counts["total"] = sum(counts.values())
    used = counts["routed"] * config["num_experts_per_tok"] // config["n_routed_experts"]
    counts["active"] = counts["total"] - counts["embedding"] - counts["tables"] - counts["routed"] + used
    return counts


@pytest.mark.parametrize("name", SETS)
def test_info_counts_parameters(name):
    assert info(GOLDEN / name)["params"] == parameters_by_role(name)


def test_info_exact_values():
    got = info(LITE)
    assert got["architecture"] == "DeepseekV2ForCausalLM"
    assert got["context"] == 163840
    # 3 layers of a row of 64 latent and 16 rope values; fp8: 64 bytes, one fp32 scale, 32 bytes of rope, padded to 16
    assert got["kv_bytes_per_token"] == {"f32": 3 * 80 * 4, "bf16": 3 * 80 * 2, "fp8": 3 * 112}
    assert "licence" in got
    assert re.fullmatch(r"[0-9a-f]{64}", got["hash"])


@pytest.mark.parametrize("name", SETS)
def test_info_bytes_by_format(name):
    """Every byte of tensor data is some format's, but what is left out."""
    by_format = info(GOLDEN / name)["bytes_by_format"]
    config = text_config(name)
    total = 0
    for path in sorted((GOLDEN / name).glob("*.safetensors")):
        for tensor, entry in st.File(path).tensors().items():
            if not is_left_out(tensor, config):
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    assert all(isinstance(n, int) and n > 0 for n in by_format.values())
    everything = sum(path.stat().st_size for path in (GOLDEN / name).glob("*.safetensors"))
    assert total <= sum(by_format.values()) <= everything


def test_info_for_people():
    text = succeed("info", LITE).text
    assert "DeepseekV2ForCausalLM" in text and "163840" in text.replace(",", "")


def test_hash_is_stable_and_of_the_content(tmp_path):
    copy = copy_set("v2lite-tiny", tmp_path / "elsewhere")
    assert info(copy)["hash"] == info(LITE)["hash"]
    assert info(copy, "--full-hash")["hash"] == info(LITE, "--full-hash")["hash"]
    assert info(copy)["hash"] != info(copy, "--full-hash")["hash"]


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_hash_changes_with_a_sampled_byte(model, where):
    before = info(model)["hash"]
    file = st.File(model / "model.safetensors")
    begin, end = file.header["model.embed_tokens.weight"]["data_offsets"]  # 131072 bytes: samples do not meet
    file.data[{"start": begin, "middle": (begin + end) // 2 + 100, "end": end - 1}[where]] ^= 1
    raw = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(raw[:file.header_bytes] + bytes(file.data))
    assert info(model)["hash"] != before


def test_hash_changes_with_any_byte_when_full(model):
    sampled, full = info(model)["hash"], info(model, "--full-hash")["hash"]
    file = st.File(model / "model.safetensors")
    begin, end = file.header["model.embed_tokens.weight"]["data_offsets"]
    raw = bytearray((model / "model.safetensors").read_bytes())
    raw[file.header_bytes + begin + (end - begin) // 4] ^= 1
    (model / "model.safetensors").write_bytes(raw)
    assert info(model)["hash"] == sampled, "only samples are read"
    assert info(model, "--full-hash")["hash"] != full


def test_hash_changes_with_config(model):
    before = info(model)["hash"]
    change_config(model, bos_token_id=3)
    assert info(model)["hash"] != before


# --- the Hugging Face cache ------------------------------------------------------------------------------------------

COMMITS = ["0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"]


@pytest.fixture
def cache(tmp_path):
    """HF_HOME with org/name at two commits: main is the first, v3 names the second."""
    repository = tmp_path / "hf" / "hub" / "models--org--name"
    for commit, name in zip(COMMITS, ("v2lite-tiny", "v3-tiny")):
        copy_set(name, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    (repository / "refs" / "v3").write_text(COMMITS[1])
    return {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": "", "HOME": str(tmp_path)}


@pytest.mark.parametrize("flags, architecture", [
    ([], "DeepseekV2ForCausalLM"), (["--revision", "main"], "DeepseekV2ForCausalLM"),
    (["--revision", "v3"], "DeepseekV3ForCausalLM"), (["--revision", COMMITS[1]], "DeepseekV3ForCausalLM")])
def test_model_in_the_cache(cache, flags, architecture):
    assert succeed("info", "org/name", "--json", *flags, env=cache).json["architecture"] == architecture


def test_cache_below_home(cache, tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / "hf").rename(tmp_path / ".cache" / "huggingface")
    assert succeed("info", "org/name", "--json", env={**cache, "HF_HOME": ""}).json["context"] == 163840


def test_cache_through_links(cache, tmp_path):
    """The real cache links files to ../../blobs."""
    snapshot = tmp_path / "hf" / "hub" / "models--org--name" / "snapshots" / COMMITS[0]
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"blob{number}")
        path.symlink_to(f"../../blobs/blob{number}")
    assert succeed("info", "org/name", "--json", env=cache).json["context"] == 163840


@pytest.mark.parametrize("name, flags", [("org/other", []), ("org/name", ["--revision", "nothing"])])
def test_absent_model_says_how_to_get_it(cache, name, flags):
    message = refused(moebius("info", name, *flags, env=cache), name, "download")
    assert not flags or "nothing" in message


@pytest.mark.parametrize("revision", ["../../etc", "/etc"])
def test_revision_stays_in_the_cache(cache, revision):
    refused(moebius("info", "org/name", "--revision", revision, env=cache), revision)


# --- run -------------------------------------------------------------------------------------------------------------


def run(folder, *flags, **options):
    return succeed("run", folder, *flags, **options)


def test_run_streams_and_tells_timings(talker):
    result = run(talker, "-p", "Hello there", "-n", 8, "--temperature", 0)
    assert result.out
    timings = result.err.strip().splitlines()[-1]
    assert re.search(r"\b\d+ (prompt )?tokens?\b|\bprompt\b.*\b\d+\b", timings), timings
    assert timings.count("t/s") == 2 and "first token" in timings, timings


def test_run_reads_the_prompt_from_a_file_or_stdin(talker, tmp_path):
    flags = ["-n", 8, "--temperature", 0]
    (tmp_path / "prompt").write_bytes(b"Hello there")
    expected = run(talker, "-p", "Hello there", *flags).out
    assert run(talker, "-f", tmp_path / "prompt", *flags).out == expected
    assert run(talker, "-f", "-", *flags, stdin=b"Hello there").out == expected


@pytest.mark.parametrize("arguments", [[], ["-p", "x", "-f", "y"], ["--chat", "-f", "y"]])
def test_run_wants_one_prompt(talker, arguments):
    result = moebius("run", talker, *arguments)
    assert result.code == 2
    refused(result, "-f" if "--chat" not in arguments else "--chat")


def test_run_empty_prompt_file(talker, tmp_path):
    """BOS alone is a prompt."""
    (tmp_path / "empty").touch()
    run(talker, "-f", tmp_path / "empty", "-n", 2, "--temperature", 0)


def test_run_json(talker):
    flags = ["-p", "Hello there", "-n", 8, "--temperature", 0]
    got = run(talker, *flags, "--json").json
    assert got["text"].rstrip("\n") == run(talker, *flags).out.decode().rstrip("\n")
    assert got["prompt_tokens"] == 1 + len(succeed("tokenize", talker, stdin=b'{"text": "Hello there"}\n').json["ids"])
    assert got["completion_tokens"] <= 8 and got["finish_reason"] in ("length", "stop")


def test_run_without_tokens(talker):
    assert run(talker, "-p", "Hello", "-n", 0).out.strip() == b""


def test_run_is_the_argmax_of_logits(talker):
    """`run --temperature 0` and `logits --greedy` choose the same tokens."""
    ids = succeed("tokenize", talker, stdin=b'{"text": "Hello there"}\n').json["ids"]
    greedy = succeed("logits", talker, "--ids", ",".join(map(str, [0, *ids])), "--greedy", 12).json
    end = greedy.index(1) if 1 in greedy else len(greedy)
    text = succeed("detokenize", talker, stdin=json.dumps({"ids": greedy[:end]}).encode() + b"\n").json["text"]
    assert run(talker, "-p", "Hello there", "-n", 12, "--temperature", 0).out.decode().rstrip("\n") == text.rstrip("\n")


def test_run_with_a_seed_repeats(talker):
    flags = ["-p", "Once upon", "-n", 24, "--temperature", 1]
    first = run(talker, *flags, "--seed", 7).out
    assert run(talker, *flags, "--seed", 7).out == first
    assert run(talker, *flags, "--seed", 7, "--threads", 1).out == first
    others = {run(talker, *flags, "--seed", seed).out for seed in (8, 9, 10)}
    assert others != {first}


def test_run_length(talker):
    """-n bounds the tokens."""
    flags = ["-p", "The", "--temperature", 0, "-n"]
    short, long = run(talker, *flags, 2).out, run(talker, *flags, 16).out
    assert len(long) > len(short)
    assert long.startswith(short.rstrip(b"\n").rstrip(b"\xef\xbf\xbd"))


def test_run_temperature_zero_ignores_the_seed(talker):
    flags = ["-p", "The", "--temperature", 0, "-n", 8, "--seed"]
    assert run(talker, *flags, 1).out == run(talker, *flags, 2).out


def test_run_top_k_one_is_greedy(talker):
    flags = ["-p", "The", "-n", 8]
    assert run(talker, *flags, "--temperature", 1.5, "--top-k", 1).out == run(talker, *flags, "--temperature", 0).out


def test_run_stop_string(talker):
    flags = ["-p", "The", "-n", 16, "--temperature", 0]
    text = run(talker, *flags).out.decode()
    letters = re.findall(r"[!-~]", text[1:])
    assert letters, text
    stopped = run(talker, *flags, "--stop", letters[0]).out.decode().rstrip("\n")
    assert letters[0] not in stopped and text.startswith(stopped) and len(stopped) < len(text)


def test_run_fills_in_the_middle(talker, tmp_path):
    """--prefix and --suffix build the model's own fill-in-the-middle prompt, by token id."""
    prefix, suffix = tmp_path / "prefix", tmp_path / "suffix"
    prefix.write_text("def f(a):\n")
    suffix.write_text("    return a\n")
    got = run(talker, "--prefix", prefix, "--suffix", suffix, "-n", 8, "--temperature", 0).out

    def ids(text):
        line = json.dumps({"text": text, "special": False}).encode() + b"\n"
        return succeed("tokenize", talker, stdin=line).json["ids"]

    vocab = {t["content"]: t["id"] for t in tiny_tokenizer.tokenizer()["added_tokens"]}
    begin, hole, end = (vocab[t] for t in (tiny_tokenizer.FIM_BEGIN, tiny_tokenizer.FIM_HOLE, tiny_tokenizer.FIM_END))
    prompt = [0, begin, *ids(prefix.read_text()), hole, *ids(suffix.read_text()), end]
    greedy = succeed("logits", talker, "--ids", ",".join(map(str, prompt)), "--greedy", 8).json
    stop = greedy.index(1) if 1 in greedy else len(greedy)
    line = json.dumps({"ids": greedy[:stop]}).encode() + b"\n"
    assert got.decode().rstrip("\n") == succeed("detokenize", talker, stdin=line).json["text"].rstrip("\n")


@pytest.mark.parametrize("flags, word", [
    (["--temperature", "-1"], "--temperature"), (["--top-p", "0"], "--top-p"), (["--top-p", "1.5"], "--top-p"),
    (["--min-p", "2"], "--min-p"), (["--top-k", "-2"], "--top-k"), (["--max-tokens", "-1"], "--max-tokens"), (["--seed", "-1"], "--seed"),
    (["--temperature", "nan"], "--temperature"), (["--repetition-penalty", "0"], "--repetition-penalty")])
def test_run_sampling_ranges(talker, flags, word):
    result = moebius("run", talker, "-p", "x", *flags)
    assert result.code == 2, str(result)
    message = refused(result)
    assert word in message or word[2:].replace("-", "_") in message, message  # as a flag, or as the API calls it


def test_run_prefix_without_suffix(talker, tmp_path):
    """The same as an empty suffix."""
    (tmp_path / "prefix").write_text("x = ")
    (tmp_path / "empty").touch()
    flags = ["--prefix", tmp_path / "prefix", "-n", 8, "--temperature", 0]
    assert run(talker, *flags).out == run(talker, *flags, "--suffix", tmp_path / "empty").out


def test_run_prefix_is_absent(talker, tmp_path):
    refused(moebius("run", talker, "--prefix", tmp_path / "nothing", "--suffix", tmp_path / "nothing"), "nothing")


def test_run_unknown_chat_template(talker):
    """A checkpoint without a chat template completes, and says which flag chat needs."""
    refused(moebius("run", talker, "--chat", stdin=b"hello\n"), "--chat-template")


def test_run_warns_of_look_alikes(talker):
    """Special tokens as a keyboard has them are plain text, which is seldom meant."""
    result = run(talker, "-p", "<|fim_begin|> hi", "-n", 2, "--temperature", 0)
    assert "warning" in result.err and "fim" in result.err
    assert "warning" not in run(talker, "-p", "<|nothing|> hi", "-n", 2, "--temperature", 0).err


def test_run_generation_config(tmp_path):
    """The model's sampling defaults are taken, unless told otherwise."""
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    tiny_tokenizer.write(folder)
    flags = ["-p", "The", "-n", 12]
    greedy = run(folder, *flags, "--temperature", 0).out
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 1.0, "top_k": 1}))
    assert run(folder, *flags, "--seed", 5).out == greedy
    assert run(folder, *flags, "--seed", 5, "--generation-config", "none").out != greedy
    assert run(folder, *flags, "--seed", 5, "--top-k", 0).out != greedy
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    refused(moebius("run", folder, *flags), "generation_config.json", "temperature")


def test_run_stops_at_every_end(tmp_path):
    """eos ids are the union of config.json, generation_config.json and the tokenizer."""
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    tiny_tokenizer.write(folder)
    flags = ["-p", "The", "-n", 12, "--temperature", 0, "--json"]
    before = run(folder, *flags).json
    ids = succeed("tokenize", folder, stdin=json.dumps({"text": "The"}).encode() + b"\n").json["ids"]
    greedy = succeed("logits", folder, "--ids", ",".join(map(str, [0, *ids])), "--greedy", 12).json
    end = next(token for token in greedy[2:] if token not in greedy[:2])
    n = greedy.index(end)
    assert before["completion_tokens"] > n
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    after = run(folder, *flags).json
    assert after["finish_reason"] == "stop" and after["completion_tokens"] <= n + 1
    assert before["text"].startswith(after["text"].rstrip("\ufffd"))


def test_demo_tokenizer_is_what_its_script_writes(tmp_path):
    tiny_tokenizer.write(tmp_path)
    for path in sorted((GOLDEN.parent / "tokenizer").iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_run_interrupted_by_ctrl_c(talker):
    """Ctrl-C in a completion ends it at once, without a crash."""
    process = subprocess.Popen([PROGRAM, "run", str(talker), "-p", "Hello", "-n", "100000", "--temperature", "1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_run_ends_when_nobody_reads(talker):
    """`run ... | head`: the rest would be computed for nobody."""
    process = subprocess.Popen([PROGRAM, "run", str(talker), "-p", "Hello", "-n", "100000", "--ignore-eos", "--temperature", "1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == 1 and "cannot write to standard output" in said, said
    assert int(re.search(r"(\d+) tokens", said.split("first token")[1]).group(1)) < 10000, said


# --- names that are not UTF-8 ----------------------------------------------------------------------------------------


def test_json_of_a_model_with_an_odd_name(tmp_path):
    """The end of a long measurement is no time to stumble over a byte in a name."""
    odd = os.fsdecode(bytes(tmp_path) + b"/mod\xffel")
    shutil.copytree(DEMO, odd)
    card = "--gpu", "none", "--ram", "64@50"
    assert succeed("plan", odd, *card, "--json").json["model"].endswith("mod?el")
    few = "--prompt", 16, "--generate", 2, "--batch", 1, "--depth", 0, "--repeat", 1
    assert succeed("bench", odd, *few, "--json").json["model"].endswith("mod\ufffdel")
    made = succeed("quantize", DEMO, "--quant", "int4", "-o", odd + ".safetensors", "--json").json
    assert made["file"].endswith("mod\ufffdel.safetensors")


@pytest.mark.parametrize("title", [b"Lizenz f\xfcr alle", "é".encode() * 200, b"Licence \x1b[31mof nobody"], ids=["latin", "long", "red"])
def test_info_with_an_odd_licence(tmp_path, title):
    folder = tmp_path / "m"
    shutil.copytree(LITE, folder)
    (folder / "LICENSE").write_bytes(title + b"\nText\n")
    licence = info(folder)["licence"]
    assert len(licence) > 10 and "\x1b" not in licence and licence in succeed("info", folder).text


def test_chat_refuses_a_system_message_that_is_no_text():
    refused(moebius("run", DEMO, "--chat", "--system", os.fsdecode(b"\xff"), stdin=b"hello\n"), "--system", "UTF-8")
