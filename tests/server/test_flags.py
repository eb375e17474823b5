"""`moebius serve` as a drop-in: the command lines of a well-known hosting guide for vLLM, with the program's name changed,
and flags that cannot be kept refused at once, with the reason."""

import os
import re
import subprocess
import time

import pytest

from serving import GOLDEN, HOST, PROGRAM

import make_tiny_text_model

# The guide's two commands after "python -m vllm.entrypoints.openai.api_server".
FP8 = """--model deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct --quantization fp8 --kv-cache-dtype fp8 --max-model-len 32768
 --max-num-seqs 8 --enable-chunked-prefill --enable-prefix-caching --gpu-memory-utilization 0.92 --trust-remote-code""".split()
AWQ = """--model TheBloke/DeepSeek-Coder-V2-Lite-Instruct-AWQ --quantization awq_marlin --max-model-len 32768 --max-num-seqs 8
 --enable-chunked-prefill --enable-prefix-caching --gpu-memory-utilization 0.92 --trust-remote-code""".split()


def cache(folder, name, golden):
    """A Hugging Face cache that holds a tiny model under a famous name."""
    repo = folder / "hub" / ("models--" + name.replace("/", "--"))
    make_tiny_text_model.make(GOLDEN / golden, repo / "snapshots" / "0123abcd")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abcd")
    return {"HF_HOME": str(folder)}


@pytest.mark.parametrize("flags, golden", [(FP8, "v2lite-tiny-ct-fp8"), (FP8, "v2lite-tiny-fp8-tensor"), (FP8, "v2lite-tiny"),
                                           (AWQ, "v2lite-tiny-awq")])
def test_command_lines_of_the_guide(start, tmp_path, flags, golden):
    name = flags[1]
    server = start(None, *flags, env=cache(tmp_path, name, golden))
    assert server.model == name
    entry = server.get("/v1/models").json["data"][0]
    assert entry["max_model_len"] == 32768
    assert server.complete("the", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    notes = [line for line in server.log.splitlines() if "--trust-remote-code" in line]
    assert len(notes) == 1, f"a flag that changes nothing says so in one line:\n{server.log}"
    assert server.stop() == 0


def test_defaults_of_the_context_are_said(start, model):
    """Without --max-model-len the server takes what fits, and says it."""
    server = start(model)
    length = server.get("/v1/models").json["data"][0]["max_model_len"]
    assert length >= 4096
    assert str(length) in server.log, server.log
    assert server.stop() == 0


HARMLESS = ["--enforce-eager", "--disable-log-requests", "--swap-space=4", "--tensor-parallel-size=1", "--dtype=auto",
            "--dtype=bfloat16", "--seed=1", "--enable-chunked-prefill", "--trust-remote-code"]

# As people start them: vLLM's recipe for DeepSeek's models, with its underscores, and llama-server's command lines.
VLLM = """--max-model-len 512 --max_num_batched_tokens 256 --tensor-parallel-size 1 --enable-auto-tool-choice --tool-call-parser deepseek_v31
 --reasoning-parser deepseek_r1 --async-scheduling --safetensors-load-strategy prefetch --tokenizer-mode deepseek_v4 --seed 1024
 --kv_cache_dtype bfloat16 --compilation_config {"cudagraph_mode":"FULL_DECODE_ONLY"} --enable-expert-parallel --no-enable-prefix-caching
 --disable-log-stats --uvicorn_log_level warning --enable-prompt-tokens-details --scheduling-policy fcfs --task generate
 --default-chat-template-kwargs {"thinking":true} --override-generation-config {"temperature":0.6}""".split()
LLAMA = """-c 512 -np 4 -cb -fa on -fit off --cache-reuse 256 -t 2 -tb 2 -b 256 -ub 256 --jinja --no-mmap --mlock --temp 0.6 --top-p 0.95
 --top-k 20 --min-p 0.01 --repeat-penalty 1.1 --keep -1 --metrics --slots --props --no-warmup -ngl 99 -sm layer --numa distribute -a deepseek
 --log-disable -lv 1 --timeout 600 -n 64 -fa --threads-http 4 --cache-ram 0""".split()


def test_harmless_flags(start, model):
    server = start(model, "--max-model-len", 512, *HARMLESS)
    for flag in ("--enforce-eager", "--swap-space", "--disable-log-requests"):
        assert sum(flag in line for line in server.log.splitlines()) == 1, server.log
    assert server.complete("the", max_tokens=1)["choices"]
    assert server.stop() == 0


@pytest.mark.parametrize("flags, name", [(VLLM, "tiny"), (LLAMA, "deepseek")], ids=["vllm", "llama-server"])
def test_command_lines_of_others(start, model, flags, name):
    server = start(model, *flags)
    entry = server.get("/v1/models").json["data"][0]
    assert (entry["id"], entry["max_model_len"]) == (name, 512)
    assert server.complete("the", max_tokens=1)["choices"]
    assert settings(server)["temperature"] == pytest.approx(0.6)
    assert server.stop() == 0


def settings(server):
    return server.get("/props").json["default_generation_settings"]["params"]


def flags_of_help():
    """flag -> (whether it has a value, what is said of it), of the words that change nothing or are refused."""
    text = subprocess.run([PROGRAM, "serve", "--help-all"], capture_output=True, text=True, timeout=20).stdout
    text = re.sub(r"\n {34}(?=\S)", "  ", text[text.index("  --trust-remote-code"):text.index("\nExamples:")])
    found = {}
    for names, value, said in re.findall(r"^  (-[\w-]+(?:, -[\w-]+)*)( X)?(?: \[[a-z|]+\])?  +(\S.*)$", text, re.M):
        found |= {name: (bool(value), said) for name in names.split(", ")}
    return found


def test_every_other_flag(start, model):
    """Each is either said to change nothing, in a line of its own, or refused with the reason that --help-all gives."""
    known = flags_of_help()
    refused = {name: (value, said.removeprefix("refused: ")) for name, (value, said) in known.items() if said.startswith("refused: ")}
    assert len(refused) > 60 and len(known) > len(refused) + 80
    for name, (has_value, said) in refused.items():
        done = subprocess.run([PROGRAM, "serve", model, "--port", "0", name, *["x"][:has_value]], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and done.stderr == f"moebius serve: {name} is refused: {said}\n", done
    harmless = {name: known[name] for name in known if name not in refused}
    server = start(model, "--max-model-len", 512, *[word for name, (value, _) in harmless.items() for word in [name, "x"][:1 + value]])
    for name, (_, said) in harmless.items():
        assert f"moebius: {name}: {said}\n" in server.log, name
    assert server.stop() == 0


def test_context_0(start, model):
    """llama-server's word for as much as there is."""
    server = start(model, "-c", 0)
    assert server.get("/v1/models").json["data"][0]["max_model_len"] >= 4096
    assert server.stop() == 0


REFUSED = [
    (["--tensor-parallel-size", "2"], ["--tensor-parallel-size", "1"]),
    (["--pipeline-parallel-size", "4"], ["--pipeline-parallel-size", "--device cuda"]),
    (["--speculative-config", "{"], ["--speculative-config"]),
    (["--speculative-config", "[]"], ["--speculative-config"]),
    (["--speculative-config", '{"method": "eagle", "num_speculative_tokens": 4}'], ["eagle", "ngram"]),
    (["--speculative-config", '{"method": "ngram"}'], ["num_speculative_tokens"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 400}'], ["num_speculative_tokens", "16", "400"]),
    (["--speculative-config", '{"method": "ngram", "model": "x"}'], ["model"]),
    (["--draft-max", "17"], ["--draft-max", "16"]),
    (["--quantization", "bitsandbytes"], ["--quantization", "bitsandbytes"]),
    (["--quantization", "awq"], ["--quantization"]),  # the checkpoint is BF16
    (["--kv-cache-dtype", "int4"], ["--kv-cache-dtype", "int4"]),
    (["--dtype", "float64"], ["--dtype"]),
    (["--gpu-memory-utilization", "1.5"], ["--gpu-memory-utilization", "1.5"]),
    (["--gpu-memory-utilization", "0"], ["--gpu-memory-utilization"]),
    (["--max-model-len", "0"], ["--max-model-len"]),
    (["--max-model-len", "32k"], ["--max-model-len", "32k"]),
    (["--max-model-len", "200000"], ["--max-model-len", "163840"]),
    (["--max-num-seqs", "0"], ["--max-num-seqs"]),
    (["--max-num-seqs", "-1"], ["--max-num-seqs"]),
    (["--port", "70000"], ["--port"]),
    (["--port", "http"], ["--port"]),
    (["--host", "no such host"], ["--host"]),
    (["--chat-template", "no-such-template"], ["--chat-template", "no-such-template"]),
    (["--api-key", ""], ["--api-key"]),
    (["--api-key-file", "/nonexistent/key"], ["/nonexistent/key"]),
    (["--no-such-flag"], ["--no-such-flag"]),
    (["-ngl", "0", "--device", "cuda"], ["--gpu-layers", "--device cuda", "exclude"]),
    (["-ngl", "2", "--device", "cuda"], ["--gpu-layers 2", "all 3 layers", "--n-cpu-moe"]),
    (["-ngl", "many"], ["--gpu-layers", "many"]),
    (["-sm", "row"], ["-sm", "layer|none", "row"]),
    (["--scheduling-policy", "priority"], ["--scheduling-policy", "fcfs"]),
    (["--task", "embed"], ["--task", "generate"]),
    (["--ssl-cert-reqs", "2"], ["--ssl-cert-reqs", "0"]),
    (["--flash-attn=never"], ["--flash-attn"]),
    (["--max-model-length", "5"], ["--max-model-length", "--max-model-len"]),
    (["--speculative-model", "x"], ["--speculative-model"]),
]


@pytest.mark.parametrize("flags, words", REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_unsupported_values(model, flags, words):
    """Within a second, with a message that names the flag and the reason."""
    start = time.monotonic()
    done = subprocess.run([PROGRAM, "serve", str(model), "--host", HOST, "--port", "0", *flags], capture_output=True, text=True,
                          timeout=20)
    assert done.returncode in (1, 2), done
    assert time.monotonic() - start < 1.0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("moebius"), done.stderr
    for word in words:
        assert word in last, last
    assert len(last) > len(" ".join(flags)) + 20, "no reason is given"


def test_missing_model():
    done = subprocess.run([PROGRAM, "serve", "--port", "0"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "MODEL" in done.stderr


def test_model_is_not_there(tmp_path):
    done = subprocess.run([PROGRAM, "serve", str(tmp_path / "nothing"), "--port", "0"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "nothing" in done.stderr


def test_names_that_are_no_text(start, model, tmp_path):
    """A folder may be called anything, and its name goes into every answer."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9-tiny")
    os.symlink(model, folder)
    server = start(folder, "--max-model-len", 512)
    assert [m["id"] for m in server.get("/v1/models").json["data"]] == ["?-tiny"]
    assert server.ask("/v1/completions", {"prompt": "x", "max_tokens": 1})["model"] == "?-tiny"
    assert server.stop() == 0
    done = subprocess.run([PROGRAM, "serve", str(model), "--port", "0", "--served-model-name", os.fsdecode(b"\xe9")],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "--served-model-name: not valid UTF-8" in done.stderr, done


@pytest.mark.parametrize("flag", ["--served-model-name", "--allowed-origins"])
def test_long_lists_are_not_cut(model, flag):
    done = subprocess.run([PROGRAM, "serve", str(model), "--port", "0", flag, "x" * 1024], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and f"{flag}: expected at most 1023 bytes, found 1024" in done.stderr, done


def test_port_in_use(model, server):
    done = subprocess.run([PROGRAM, "serve", str(model), "--host", HOST, "--port", str(server.port)], capture_output=True,
                          text=True, timeout=20)
    assert done.returncode == 1 and str(server.port) in done.stderr, done


def test_help():
    done = subprocess.run([PROGRAM, "serve", "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stdout.startswith("Usage: moebius serve")
    for flag in ("--host", "--port", "--api-key", "--served-model-name", "--max-model-len", "--max-num-seqs", "--chat-template"):
        assert re.search(rf"(^|[\s,]){flag}([\s,]|$)", done.stdout, re.M), flag
    assert "8000" in done.stdout and "127.0.0.1" in done.stdout, "the defaults are said"


def names_of(*arguments):
    text = subprocess.run([PROGRAM, "serve", *arguments], capture_output=True, text=True, timeout=20).stdout
    return text, {name for names in re.findall(r"^  (-[\w-]+(?:, -[\w-]+)*)", text, re.M) for name in names.split(", ")}


def test_help_leaves_out_what_nothing_listens_to():
    text, short = names_of("--help")
    everything, long = names_of("--help-all")
    assert short < long and set(flags_of_help()) <= long - short
    assert f"`moebius serve --help-all` lists {len(long - short)} more" in text and "--help-all" not in everything
    assert not re.search(r":\n\n", text), "a heading over nothing"
