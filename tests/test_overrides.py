"""--hf-overrides and --override-kv: a model computes what it would with that config.json, says so, and has another hash."""

import json
import shutil

import gguf_model
import pytest
from conftest import GOLDEN, moebius, refused, succeed
from gguf import GGUFValueType as Value

TINY = GOLDEN / "v2lite-tiny"
FEWER = '{"num_experts_per_tok": 2}'


def edited(name, folder, **changes):
    """A copy whose config.json says it."""
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    part = config.get("text_config", config)
    part.update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits(model, out, *flags):
    result = succeed("logits", model, "--ids", "1,2,3,4,5,6,7,8", "--out", out, *flags)
    return out.read_bytes(), result.err


def info(model, *flags):
    return succeed("info", model, "--json", *flags).json


@pytest.mark.parametrize("name, changes", [
    ("v2lite-tiny", {"num_experts_per_tok": 2}),
    ("v3-tiny", {"num_experts_per_tok": 1}),
    ("v32-tiny", {"num_experts_per_tok": 3}),
    ("v41-tiny", {"num_experts_per_tok": 1}),
    ("v2lite-tiny", {"rope_theta": 50000.5}),
    ("v4-tiny", {"compress_rope_theta": 40000, "rope_theta": 20000}),
    ("v2lite-tiny", {"rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 64}}),
    ("v2lite-tiny", {"rope_scaling": None}),
], ids=str)
def test_the_same_bits_as_with_that_config(tmp_path, name, changes):
    plain, _ = logits(GOLDEN / name, tmp_path / "plain")
    there, _ = logits(edited(name, tmp_path / "model", **changes), tmp_path / "there")
    said, err = logits(GOLDEN / name, tmp_path / "said", "--hf-overrides", json.dumps(changes))
    assert said == there != plain
    for key in changes:
        assert f"moebius: {key} " in err and ", by --hf-overrides" in err


def test_what_is_said_of_it():
    changes = info(TINY, "--hf-overrides", FEWER)["overrides"]
    assert changes == [{"key": "num_experts_per_tok", "value": 2, "instead_of": 6, "by": "--hf-overrides"}]
    assert "num_experts_per_tok: 2 instead of 6, by --hf-overrides\n" in succeed("info", TINY, "--hf-overrides", FEWER).text
    report = succeed("bench", TINY, "--json", "--prompt", "5", "--generate", "1", "--repeat", "1", "--batch", "1", "--depth", "0", "--hf-overrides", FEWER).json
    assert report["overrides"] == changes and report["model_hash"] == info(TINY, "--hf-overrides", FEWER)["hash"]
    assert info(TINY)["overrides"] == info(TINY, "--hf-overrides", '{"num_experts_per_tok": 6, "rope_theta": 10000.0}')["overrides"] == []
    assert info(TINY, "--hf-overrides", '{"max_position_embeddings": 4096}')["context"] == 4096


def test_the_hash_is_another_one():
    """It names pages on disk and answers of run-batch, and processes of one mpirun compare it."""
    plain, fewer = info(TINY)["hash"], info(TINY, "--hf-overrides", FEWER)["hash"]
    assert plain != fewer != info(TINY, "--hf-overrides", '{"num_experts_per_tok": 3}')["hash"]
    assert fewer == info(TINY, "--override-kv", "deepseek2.expert_used_count=int:2")["hash"]
    assert plain == info(TINY, "--hf-overrides", '{"num_experts_per_tok": 6}')["hash"] == info(TINY, "--hf-overrides", "{}")["hash"]


@pytest.mark.parametrize("flags", [
    ['{"rope_theta": 50000, "num_experts_per_tok": 2}', '{ "num_experts_per_tok":2, "rope_theta":5e4}', '{"num_experts_per_tok": 2, "rope_theta": 50000.0}'],
    ['{"rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 64}}',
     '{"rope_scaling": {"original_max_position_embeddings": 64, "factor": 8.0, "type": "yarn"}}'],
], ids=["numbers", "object"])
def test_however_it_is_written(flags):
    assert len({info(TINY, "--hf-overrides", flag)["hash"] for flag in flags}) == 1
    there = json.loads((TINY / "config.json").read_text())["rope_scaling"]
    turned = {key: float(value) if isinstance(value, int) else value for key, value in reversed(there.items())}
    assert info(TINY, "--hf-overrides", json.dumps({"rope_scaling": turned}))["overrides"] == []


def test_by_the_names_of_gguf(tmp_path):
    file = tmp_path / "tiny.gguf"
    gguf_model.convert(TINY, file)
    flags = ("--override-kv", "deepseek2.expert_used_count=int:2,deepseek2.rope.freq_base=float:20000",
             "--override-kv", "deepseek2.rope.scaling.factor=float:20", "--override-kv", "deepseek2.rope.scaling.original_context_length=int:2048")
    found = {change["key"]: change["value"] for change in info(file, *flags)["overrides"]}
    assert found == {"num_experts_per_tok": 2, "rope_theta": 20000, "rope_scaling.factor": 20, "rope_scaling.original_max_position_embeddings": 2048}
    changed = {"expert_used_count": (2, Value.UINT32), "rope.freq_base": (20000.0, Value.FLOAT32), "rope.scaling.factor": (20.0, Value.FLOAT32),
               "rope.scaling.original_context_length": (2048, Value.UINT32)}
    gguf_model.convert(TINY, tmp_path / "changed.gguf", keys={f"deepseek2.{key}": value for key, value in changed.items()})
    assert logits(file, tmp_path / "a", *flags)[0] == logits(tmp_path / "changed.gguf", tmp_path / "b")[0] != logits(file, tmp_path / "c")[0]


def test_a_packed_file(tmp_path):
    packed = tmp_path / "int8.safetensors"
    succeed("quantize", TINY, "--quant", "int8", "-o", packed)
    assert logits(packed, tmp_path / "a", "--hf-overrides", FEWER)[0] != logits(packed, tmp_path / "b")[0]
    plan = ("plan", packed, "--ram", "8@10", "--device", "cpu", "--json")
    assert succeed(*plan, "--hf-overrides", FEWER).json["decode"] != succeed(*plan).json["decode"]


@pytest.mark.parametrize("flags, words", [
    (["--hf-overrides", '{"num_experts_per_tok": 17}'], ["overridden", "num_experts_per_tok", "1 to 16", "17"]),
    (["--hf-overrides", '{"num_experts_per_tok": 0}'], ["num_experts_per_tok", "1 to 16"]),
    (["--hf-overrides", '{"num_experts_per_tok": 2.5}'], ["num_experts_per_tok", "a whole number", "a real number"]),
    (["--hf-overrides", '{"num_experts_per_tok": "2"}'], ["num_experts_per_tok", "a whole number", "a string"]),
    (["--hf-overrides", '{"hidden_size": 64}'], ["hidden_size", "cannot be changed", "num_experts_per_tok"]),
    (["--hf-overrides", '{"rope_scaling": {"type": "linear", "factor": 2}}'], ["rope_scaling.type", "yarn", "linear"]),
    (["--hf-overrides", '{"rope_theta": null}'], ["rope_theta", "a number"]),
    (["--hf-overrides", "[6]"], ["--hf-overrides", "a JSON object", "an array"]),
    (["--hf-overrides", "{"], ["--hf-overrides", "not valid JSON"]),
    (["--override-kv", "deepseek2.expert_used_count"], ["KEY=TYPE:VALUE"]),
    (["--override-kv", "deepseek2.block_count=int:2"], ["deepseek2.block_count", "cannot be changed"]),
    (["--override-kv", "llama.expert_used_count=int:2"], ["llama.expert_used_count", "cannot be changed"]),
    (["--override-kv", "deepseek4.expert_used_count=int:2"], ["deepseek4.expert_used_count", "keys of deepseek2"]),
    (["--override-kv", "deepseek2.expert_used_count=float:2"], ["deepseek2.expert_used_count", "int:N", "float:2"]),
    (["--override-kv", "deepseek2.expert_used_count=int:2x"], ["int:N", "int:2x"]),
    (["--override-kv", "deepseek2.expert_used_count=int:"], ["int:N"]),
    (["--override-kv", "deepseek2.rope.freq_base=float:inf"], ["float:X"]),
    (["--override-kv", "deepseek2.expert_used_count=int:2,"], ["KEY=TYPE:VALUE"]),
    (["--hf-overrides", FEWER, "--override-kv", "deepseek2.expert_used_count=int:2"], ["num_experts_per_tok", "twice"]),
    (["--hf-overrides", '{"rope_scaling": null}', "--override-kv", "deepseek2.rope.scaling.factor=float:2"], ["rope_scaling", "twice"]),
], ids=lambda value: " ".join(value)[-40:])
def test_what_is_refused(flags, words):
    refused(moebius("info", TINY, *flags), *words)


def test_what_a_model_cannot_have(tmp_path):
    refused(moebius("info", GOLDEN / "v4-tiny", "--hf-overrides", '{"num_experts_per_tok": 1}'), "num_experts_per_tok", "the first 1 layers", "table")
    plain = edited("v2lite-tiny", tmp_path / "plain", rope_scaling=None)
    refused(moebius("info", plain, "--override-kv", "deepseek2.rope.scaling.factor=float:2"), "deepseek2.rope.scaling.factor", "rope_scaling")
    refused(moebius("info", TINY, "--hf-overrides", '{"compress_rope_theta": 5}'), "compress_rope_theta", "no compressed rows")
    refused(moebius("info", TINY, "--override-kv", "deepseek2.attention.compress_rope_freq_base=float:5"), "compress_rope_theta", "--override-kv")
    refused(moebius("plan", "deepseek-v3", "--ram", "8@10", "--hf-overrides", FEWER), "--hf-overrides", "deepseek-v3", "built in")
    refused(moebius("bench", "--like", "deepseek-v2-lite", "--hf-overrides", FEWER), "--hf-overrides", "--like")
    refused(moebius("serve", TINY, "--port", "0", "--hf-overrides", '{"x": 1}'), "--hf-overrides", '"x"')
