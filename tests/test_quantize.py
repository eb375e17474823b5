"""`moebius quantize` and `synth`: the one file they write, what every command makes of it, and what becomes of runs that end
early. The blocks of INT4 and INT8 are decoded here once more, from the description in model/format.h alone."""

import fcntl
import json
import resource
import shutil
import signal
import subprocess
import time
import zlib

import numpy as np
import pytest
from safetensors import safe_open

import st
import tiny_tokenizer
from conftest import GOLDEN, PROGRAM, ROOT, copy_set, moebius, read_f32, read_i32, refused, succeed

FORMATS = ["int4", "fp4", "int8", "fp8", "bf16"]
# Root mean square of the change over that of the weights: random weights leave about 1 / (steps in their range).
MOST_CHANGED = {"int4": 0.105, "fp4": 0.117, "int8": 0.0066, "fp8": 0.028, "bf16": 0.002}
SOURCES = ["v2lite-tiny", "v2-tiny", "v3-tiny-fp8", "v2lite-tiny-awq"]
SYNTHETIC = "random weights"
TINY = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "hidden_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 344, "moe_intermediate_size": 96, "n_routed_experts": 16,
        "num_experts_per_tok": 4, "n_shared_experts": 1, "vocab_size": 1000, "max_position_embeddings": 512,
        "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}


def quantize(source, out, *flags, **options):
    return succeed("quantize", source, "-o", out, "--json", *flags, **options).json


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps({"architectures": ["DeepseekV2ForCausalLM"], **TINY}))
    return path


def logits(model, out, *flags, ids=range(40), **options):
    succeed("logits", model, "--ids", ",".join(map(str, ids)), "--all", "--out", out, *flags, **options)
    return read_f32(out, len(ids), -1)


# --- an independent reader -------------------------------------------------------------------------------------------


def decode_blocks(raw, panels, blocks, block_bytes, rows, cols):
    """[rows][cols] of INT4 or INT8, and the scale of each value."""
    is_int4 = block_bytes < 4096
    values = 2048 if is_int4 else 4096
    groups = (block_bytes - values) // 64
    data = np.frombuffer(raw, np.uint8).reshape(panels, blocks, block_bytes)
    scales = np.ascontiguousarray(data[:, :, values:]).view("<f2").reshape(panels, blocks, groups, 32).astype(np.float32)
    lines = data[:, :, :values].reshape(panels, blocks, 2, 2, -1, 16, 4)  # half, tile, line, row, byte
    if is_int4:
        lines = np.concatenate([lines & 15, lines >> 4], axis=4).astype(np.int16) - 8
    else:
        lines = lines.astype(np.int16) - 128
    # panel, half, row | block, tile, line, byte
    q = lines.transpose(0, 2, 5, 1, 3, 4, 6).reshape(panels * 32, blocks * 128)
    s = np.repeat(scales.transpose(0, 3, 1, 2).reshape(panels * 32, blocks * groups), 128 // groups, axis=1)
    assert not q[rows:].any() and not q[:, cols:].any(), "past the matrix there is nothing"
    return (q * s)[:rows, :cols], s[:rows, :cols]


def e4m3(raw):
    code = np.frombuffer(raw, np.uint8).astype(np.int32)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where(code & 128, -value, value).astype(np.float32)


def fp4(raw, scale, rows, cols):
    code = np.frombuffer(raw, np.uint8).reshape(rows, cols // 2)
    code = np.stack([code & 15, code >> 4], axis=2).reshape(rows, cols)
    value = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[code & 7] * np.where(code & 8, -1, 1).astype(np.float32)
    return value * np.repeat(powers(scale).reshape(rows, cols // 32), 32, axis=1)


def powers(raw):
    return np.ldexp(np.float32(1), np.frombuffer(raw, np.uint8).astype(np.int32) - 127)


def by_blocks(scale, rows, cols):
    return np.kron(scale.reshape(-(-rows // 128), -(-cols // 128)), np.ones((128, 128), np.float32))[:rows, :cols]


def decode(file, name, rows, cols):
    """The matrix `name` as float32, from a golden set or from a file of ours."""
    weight = file.header.get(name + ".weight")
    if weight is None:
        return None
    raw = file.bytes_of(name + ".weight")
    if weight["dtype"] == "U8":
        return decode_blocks(raw, *weight["shape"], rows, cols)[0]
    if weight["dtype"] in ("I8", "F4"):
        assert weight["shape"] == [rows, cols // 2 if weight["dtype"] == "I8" else cols]
        scale = name + ".scale" if name + ".scale" in file.header else name + ".weight_scale_inv"
        assert file.header[scale]["shape"] == [rows, cols // 32]
        return fp4(raw, file.bytes_of(scale), rows, cols)
    assert weight["shape"] == [rows, cols]
    if weight["dtype"] == "BF16":
        return st.bf16_to(raw).reshape(rows, cols)
    if weight["dtype"] == "F32":
        return np.frombuffer(raw, "<f4").reshape(rows, cols)
    assert weight["dtype"] == "F8_E4M3"
    if name + ".scale" in file.header:
        return e4m3(raw).reshape(rows, cols) * by_blocks(powers(file.bytes_of(name + ".scale")), rows, cols)
    scale = np.frombuffer(file.bytes_of(name + ".weight_scale_inv"), "<f4")
    return e4m3(raw).reshape(rows, cols) * by_blocks(scale, rows, cols)


def matrices(file):
    """name -> (rows, cols) of every matrix of an unquantised set."""
    return {name.removesuffix(".weight"): entry["shape"] for name, entry in file.tensors().items()
            if name.endswith(".weight") and len(entry["shape"]) == 2}


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("quant", FORMATS)
def test_every_weight_is_near_its_source(quant, group, tmp_path):
    """Each value of an integer format within half a step, but for the few that are clipped; FP8 within a sixteenth."""
    source, out = GOLDEN / "v2lite-tiny", tmp_path / "m"
    report = quantize(source, out, "--quant", quant, "--group", group)
    before, after = st.File(source / "model.safetensors"), st.File(out)
    for name, (rows, cols) in matrices(before).items():
        w, got = decode(before, name, rows, cols), decode(after, name, rows, cols)
        assert np.isfinite(got).all()
        changed = np.sqrt(((w - got) ** 2).mean() / (w**2).mean())
        assert changed <= max(MOST_CHANGED.values()), name
        if after.header[name + ".weight"]["dtype"] == "U8":
            entry = after.header[name + ".weight"]
            scale = decode_blocks(after.bytes_of(name + ".weight"), *entry["shape"], rows, cols)[1]
            assert (np.abs(w - got) <= 0.501 * np.abs(scale)).mean() > 0.98, name
            values = 2048 if quant == "int4" and name != "lm_head" else 4096
            assert entry["shape"][2] == values + 64 * 128 // group, name
    for group_name, value in report["relative_error"].items():
        assert value <= MOST_CHANGED[report["formats"][group_name]], group_name
    assert report["bytes"] == out.stat().st_size


@pytest.mark.parametrize("quant", FORMATS)
@pytest.mark.parametrize("name", ["v2lite-tiny", "v2-tiny"])
def test_computes_what_its_weights_say(name, quant, tmp_path):
    """The file gives the logits of a plain F32 checkpoint that holds the same weights, decoded here."""
    folder, out, plain = GOLDEN / name, tmp_path / "m", tmp_path / "plain"
    quantize(folder, out, "--quant", quant, "--group", 64)
    copy_set(name, plain)
    after = st.File(out)
    for path in plain.glob("*.safetensors"):
        before, tensors = st.File(path), {}
        for tensor, (dtype, shape, raw) in st.tensors_of(before).items():
            if len(shape) == 2:
                got = decode(after, tensor.removesuffix(".weight"), *shape)
                tensors[tensor] = ("F32", shape, got.astype("<f4").tobytes())
            else:
                tensors[tensor] = (dtype, shape, raw)
        path.write_bytes(st.pack(*st.build(tensors)))
    want = logits(plain, tmp_path / "1", "--compute", "f32")
    got = logits(out, tmp_path / "2", "--compute", "f32")
    assert np.abs(want - got).max() <= 2e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", SOURCES)
def test_logits_near_the_source(name, tmp_path):
    """Fewer bits move the logits further; of tiny random models a few routings flip, so the bounds are wide."""
    want, far = logits(GOLDEN / name, tmp_path / "1"), []
    for quant in ["bf16", "int8", "int4"]:
        quantize(GOLDEN / name, tmp_path / "m", "--quant", quant)
        far.append(np.sqrt(((logits(tmp_path / "m", tmp_path / "2") - want) ** 2).mean()) / want.std())
    assert far[0] <= 0.12 and far[1] <= 0.25 and far[2] <= 0.9
    assert far[0] < far[2] and far[1] < far[2]


@pytest.mark.parametrize("name", ["v2lite-tiny", "v2-tiny"])
def test_bf16_of_bf16_loses_nothing(name, tmp_path):
    quantize(GOLDEN / name, tmp_path / "m", "--quant", "bf16")
    for flags in ([], ["--compute", "f32"]):
        a, b = logits(GOLDEN / name, tmp_path / "1", *flags), logits(tmp_path / "m", tmp_path / "2", *flags)
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name, quant", [(name, quant) for name in SOURCES for quant in ("int4", "fp4", "fp8", "int8,head=bf16")
                                         if (name, quant) != ("v3-tiny-fp8", "fp8")])
def test_on_the_way_in_is_the_same(name, quant, tmp_path):
    quantize(GOLDEN / name, tmp_path / "m", "--quant", quant)
    a = logits(tmp_path / "m", tmp_path / "1")
    b = logits(GOLDEN / name, tmp_path / "2", "--quantization", quant)
    assert a.tobytes() == b.tobytes()


def test_fp8_of_fp8_is_the_checkpoint_itself(tmp_path):
    """`--quantization fp8` names what it is already, as vLLM means it: nothing is changed, the head stays BF16."""
    a = logits(GOLDEN / "v3-tiny-fp8", tmp_path / "1")
    b = logits(GOLDEN / "v3-tiny-fp8", tmp_path / "2", "--quantization", "fp8")
    assert a.tobytes() == b.tobytes()


def as_f4(folder):
    """FP4 by safetensors' own name for it, which counts values instead of bytes."""
    path = folder / "model.safetensors"
    tensors = st.tensors_of(st.File(path))
    for name, (dtype, shape, raw) in tensors.items():
        if dtype == "I8":
            tensors[name] = ("F4", [shape[0], shape[1] * 2], raw)
    path.write_bytes(st.pack(*st.build(tensors)))


@pytest.mark.parametrize("form", ["I8", "F4"])
def test_reads_fp4_as_published(form, tmp_path):
    """Two values a byte, scales that are powers of two: BF16 holds them all, fp4 takes them as they lie, int4 comes near."""
    folder, routed = copy_set("v4-tiny-fp8", tmp_path / "m"), 0
    if form == "F4":
        as_f4(folder)
    before = st.File(folder / "model.safetensors")
    for quant in ("bf16", "fp4", "int4"):
        quantize(folder, tmp_path / quant, "--quant", quant)
        after = st.File(tmp_path / quant)
        succeed("info", "--verify", tmp_path / quant)
        for name, entry in before.tensors().items():
            if not name.endswith(".weight") or name.startswith("mtp.") or entry["dtype"] not in ("I8", "F4", "F8_E4M3"):
                continue
            rows, cols = entry["shape"]
            cols *= 2 if entry["dtype"] == "I8" else 1
            name = name.removesuffix(".weight")
            w, got = decode(before, name, rows, cols), decode(after, name, rows, cols)
            routed += entry["dtype"] == form and ".experts." in name
            if quant == "int4":
                assert np.sqrt(((w - got) ** 2).mean() / (w**2).mean()) < 0.14, name
            elif quant == "bf16" or ".experts." in name:
                assert (w == got).all(), name
            if quant == "fp4" and ".experts." in name:
                assert after.header[name + ".weight"]["dtype"] == "I8"
                assert after.bytes_of(name + ".weight") == before.bytes_of(name + ".weight")
                assert after.bytes_of(name + ".weight_scale_inv") == before.bytes_of(name + ".scale")
    assert routed == 3 * 3 * 6 * 2  # formats, matrices of an expert, experts, layers


def test_on_the_way_in_refuses_what_it_cannot(tmp_path):
    refused(moebius("logits", GOLDEN / "v2lite-tiny", "--ids", "1", "--out", tmp_path / "o", "--quantization", "awq"),
            "--quantization awq", "int4")


def test_same_bytes_on_any_machine_and_threads(tmp_path):
    flags = ["--quant", "int4,head=int8", "--group", 64]
    quantize(GOLDEN / "v3-tiny-fp8", tmp_path / "a", *flags, "-t", 1)
    quantize(GOLDEN / "v3-tiny-fp8", tmp_path / "b", *flags, "-t", 3)
    quantize(GOLDEN / "v3-tiny-fp8", tmp_path / "c", *flags, env={"MOEBIUS_CPU": "ref"})
    a = (tmp_path / "a").read_bytes()
    assert a == (tmp_path / "b").read_bytes() and a == (tmp_path / "c").read_bytes()


def test_formats_by_group(tmp_path):
    quantize(GOLDEN / "v2lite-tiny", tmp_path / "m", "--quant", "int4", "--experts", "int8", "--attention", "bf16",
             "--head", "int4", "--kv-b", "int8", "--embedding", "fp8", "--router", "fp8", "--dense", "fp8")
    header = st.File(tmp_path / "m").header

    def stored(name):
        entry = header[name + ".weight"]
        return {2112: "int4", 4160: "int8"}[entry["shape"][2]] if entry["dtype"] == "U8" else entry["dtype"]

    layer = "model.layers.1."
    assert stored(layer + "mlp.experts.3.down_proj") == "int8"
    assert stored(layer + "mlp.shared_experts.up_proj") == "int4"
    assert stored(layer + "self_attn.o_proj") == "BF16"
    assert stored(layer + "self_attn.kv_b_proj") == "int8"
    assert stored(layer + "mlp.gate") == "F8_E4M3"
    assert stored("model.layers.0.mlp.up_proj") == "F8_E4M3"
    assert stored("lm_head") == "int4" and stored("model.embed_tokens") == "F8_E4M3"
    assert np.isfinite(logits(tmp_path / "m", tmp_path / "o")).all()


def test_again_from_its_own_file(tmp_path):
    """A file of ours is a source too, and what is stored as wanted already is taken as it is."""
    quantize(GOLDEN / "v2lite-tiny", tmp_path / "a", "--quant", "int8")
    quantize(tmp_path / "a", tmp_path / "b", "--quant", "int8")
    a, b = st.File(tmp_path / "a"), st.File(tmp_path / "b")
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    assert a.bytes_of(name) == b.bytes_of(name)
    quantize(tmp_path / "a", tmp_path / "b", "--quant", "int4")  # over what is there
    assert succeed("info", "--verify", tmp_path / "b", "--json").json["bytes_by_format"].keys() >= {"INT4"}


# --- the file and its readers ----------------------------------------------------------------------------------------


def test_layout_and_metadata(tmp_path):
    """Safetensors' own rules, 4 KiB for every tensor, and the model's description inside."""
    out = tmp_path / "m"
    quantize(GOLDEN / "v2-tiny", out, "--quant", "int4")
    file = st.File(out)
    at = 0
    for name, entry in sorted(file.tensors().items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        assert begin == at, f"{name}: no holes"
        assert name.startswith("moebius.pad.") or (file.header_bytes + begin) % 4096 == 0, name
        at = end
    assert at == len(file.data) and (file.header_bytes + at) % 4096 == 0
    meta = file.header["__metadata__"]
    assert all(isinstance(value, str) for value in meta.values())
    assert meta["moebius.format"] == "1"
    config = json.loads(meta["moebius.config.json"])
    source = json.loads((GOLDEN / "v2-tiny" / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "moebius" and config == source
    info = succeed("info", GOLDEN / "v2-tiny", "--json").json
    assert meta["moebius.source_hash"] == info["hash"] and meta["moebius.source"] == "v2-tiny"
    assert "int4" in meta["moebius.options"] and meta["moebius.version"]
    packed = succeed("info", out, "--json").json
    assert packed["params"] == info["params"] and packed["synthetic"] is False
    assert packed["packed"]["source_hash"] == info["hash"]
    assert {"INT4", "BF16", "F8_E4M3"} <= packed["bytes_by_format"].keys()
    used = sum(packed["bytes_by_format"].values()) + packed["packed"]["other_bytes"]
    assert used == len(file.data)


def test_python_reads_it(tmp_path):
    quantize(GOLDEN / "v2lite-tiny", tmp_path / "m", "--quant", "int8")
    file = st.File(tmp_path / "m")
    with safe_open(tmp_path / "m", framework="np") as opened:
        assert opened.metadata() == file.header["__metadata__"]
        assert set(opened.keys()) == set(file.tensors())
        name = "model.layers.1.mlp.experts.0.up_proj.weight"
        assert opened.get_tensor(name).tobytes() == file.bytes_of(name)
        assert opened.get_tensor("model.norm.weight").dtype == np.float32


@pytest.mark.parametrize("module, text, said", [
    ("encoding_dsv4.py", "｜DSML｜tool_calls> <tool_result> Beyond maximum", "Beyond maximum"),
    ("encoding.py", "｜DSML｜ calls> <tool_result> range 1-100", "Reasoning Effort: 100 ")], ids=["v4", "v4.1"])
def test_text_and_small_files_travel_along(tmp_path, module, text, said):
    folder, out = copy_set("v2lite-tiny", tmp_path / "folder"), tmp_path / "m"
    tiny_tokenizer.write(folder)
    (folder / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": [1, 5]}')
    (folder / "LICENSE").write_text("THE LICENCE OF A TEST\n")
    (folder / "encoding").mkdir()
    (folder / "encoding" / module).write_text(text, encoding="utf-8")
    quantize(folder, out, "--quant", "bf16")
    shutil.move(folder, tmp_path / "away")
    folder = tmp_path / "away"
    text = ["The first line", "def f(a, b):\n    return a", "\u00e4\u4f60\U0001f600"]
    lines = "".join(json.dumps({"text": t}) + "\n" for t in text).encode()
    assert succeed("tokenize", out, stdin=lines).out == succeed("tokenize", folder, stdin=lines).out
    run = ["-p", "def f(", "-n", 12, "--json", "--temperature", 0]
    a, b = succeed("run", out, *run).json, succeed("run", folder, *run).json
    assert a["text"] == b["text"]
    assert succeed("info", out, "--json").json["licence"] == "THE LICENCE OF A TEST"
    quantize(out, tmp_path / "n", "--quant", "bf16")
    asked = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"thinking": True, "reasoning_effort": "max"}}
    for model in (folder, out, tmp_path / "n"):
        assert said.encode() in succeed("render", model, "--messages", "-", stdin=json.dumps(asked).encode()).out
    assert succeed("tokenize", tmp_path / "n", stdin=lines).out == succeed("tokenize", folder, stdin=lines).out


def test_without_a_tokenizer(tmp_path):
    quantize(GOLDEN / "v2lite-tiny", tmp_path / "m", "--quant", "bf16")
    refused(moebius("run", tmp_path / "m", "-p", "x"), "tokenizer.json")
    refused(moebius("tokenize", tmp_path / "m"), "tokenizer.json")


def damaged(path, out, change):
    raw = bytearray(path.read_bytes())
    change(raw)
    out.write_bytes(raw)
    return out


def test_damage(tmp_path):
    """A changed header is found at once, a changed weight by --verify, a cut by the sizes."""
    good, bad = tmp_path / "m", tmp_path / "bad"
    quantize(GOLDEN / "v2lite-tiny", good, "--quant", "int4")
    file, size = st.File(good), good.stat().st_size
    assert succeed("info", "--verify", good, "--json").json["hash"]

    def flip(at):
        def change(raw):
            raw[at] ^= 4
        return change

    digit = good.read_bytes().index(b'"rope_theta') if b'"rope_theta' in good.read_bytes() else \
        good.read_bytes().index(b"rope_theta")
    refused(moebius("info", damaged(good, bad, flip(digit))), bad)
    name = "model.layers.2.mlp.experts.7.gate_proj.weight"
    at = file.header_bytes + file.header[name]["data_offsets"][0] + 5
    damaged(good, bad, flip(at))
    succeed("info", bad)
    refused(moebius("info", "--verify", bad), bad, name, "checksum")
    for cut in (0, 7, 8, 100, file.header_bytes - 1, file.header_bytes, size // 2, size - 1):
        refused(moebius("info", damaged(good, bad, lambda raw: raw.__delitem__(slice(cut, None)))), bad)
    refused(moebius("info", damaged(good, bad, lambda raw: raw.extend(b"more"))), bad)
    refused(moebius("info", "--verify", GOLDEN / "v2lite-tiny"), "checksums")


def test_other_files_are_no_models(tmp_path):
    refused(moebius("info", GOLDEN / "v2lite-tiny" / "model.safetensors"), "moebius quantize", "model.safetensors")
    (tmp_path / "text").write_text("hello, this is no model")
    refused(moebius("info", tmp_path / "text"), tmp_path / "text")
    refused(moebius("info", tmp_path / "none"), tmp_path / "none")


# --- runs that end early ---------------------------------------------------------------------------------------------


def test_wrong_usage(tmp_path):
    source, out = GOLDEN / "v2lite-tiny", tmp_path / "m"
    refused(moebius("quantize", source, "-o", out), "--quant")
    refused(moebius("quantize", source, "--quant", "int4"), "-o")
    refused(moebius("quantize", "--quant", "int4", "-o", out), "MODEL")
    refused(moebius("quantize", source, "--quant", "int5", "-o", out), "--quant", "int5")
    refused(moebius("quantize", source, "--quant", "int4,tail=int8", "-o", out), "--quant", "tail=int8")
    refused(moebius("quantize", source, "--quant", "int4", "-o", ""), "name of a file")
    refused(moebius("quantize", source, "--quant", "int4", "--group", 48, "-o", out), "48")
    refused(moebius("quantize", source, "--quant", "int4", "--head", "q6", "-o", out), "head", "q6")
    refused(moebius("quantize", source, "--quant", "int4", "-o", tmp_path), "folder")
    refused(moebius("quantize", source, "--quant", "int4", "-o", tmp_path / "no" / "m"), "no")
    refused(moebius("synth", "--quant", "int4", "-o", out), "--like")
    refused(moebius("synth", "--like", "gpt-2", "--quant", "int4", "-o", out), "gpt-2", "deepseek-v3")
    assert not list(tmp_path.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "link", "hard link", "../model/model.safetensors"])
@pytest.mark.parametrize("flags", [[], ["--calibrate", "text"]])
def test_its_source_is_not_written_over(name, flags, tmp_path):
    model = tmp_path / "model"
    copy_set("v2lite-tiny", model)
    (model / "link").symlink_to("model.safetensors")
    (model / "hard link").hardlink_to(model / "model.safetensors")
    before = contents(model)
    refused(moebius("quantize", model, "--quant", "int4", "-o", model / name, *flags), name, "expected a new file", "that is read")
    assert contents(model) == before


def test_a_packed_file_is_not_written_over(tmp_path):
    packed = tmp_path / "packed"
    succeed("quantize", GOLDEN / "v2lite-tiny", "--quant", "int8", "-o", packed)
    before = contents(tmp_path)
    refused(moebius("quantize", packed, "--quant", "int4", "-o", packed), packed, "expected a new file")
    assert contents(tmp_path) == before


def test_what_a_new_file_begins_as_is_not_written_over(tmp_path):
    """FILE is FILE.partial until it is whole; that may be the name of the model that is read."""
    packed = tmp_path / "packed.partial"
    succeed("quantize", GOLDEN / "v2lite-tiny", "--quant", "int8", "-o", packed)
    before = contents(tmp_path)
    refused(moebius("quantize", packed, "--quant", "int4", "-o", tmp_path / "packed"), packed, "that is being read")
    assert contents(tmp_path) == before


def test_shards_are_not_written_over(tmp_path):
    copy_set("v3-tiny-fp8", tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    before = contents(tmp_path / "model")
    for shard in shards:
        refused(moebius("quantize", tmp_path / "model", "--quant", "int4", "-o", shard), shard, "expected a new file")
        refused(moebius("logits", tmp_path / "model", "--ids", "1,2", "--out", shard), shard, "that is being read")
    assert contents(tmp_path / "model") == before


def test_other_sources_are_not_written_over(config, tmp_path):
    own = tmp_path / "config.json"
    shutil.copy(config, own)
    (tmp_path / "link").symlink_to(own)
    refused(moebius("synth", "--config", own, "-o", tmp_path / "link"), "found the shapes of --config")
    assert own.read_bytes() == config.read_bytes()
    text = tmp_path / "text"
    text.write_text("some text")
    refused(moebius("quantize", GOLDEN / "v2lite-tiny", "--quant", "int4", "--calibrate", text, "-o", text), "the text of --calibrate")
    assert text.read_text() == "some text"


def test_a_weight_that_is_not_finite(tmp_path, model):
    path = model / "model.safetensors"
    file = st.File(path)
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    raw = bytearray(file.bytes_of(name))
    raw[2 * 128 * 3:2 * 128 * 3 + 2] = b"\xc0\x7f"
    file.put(name, raw)
    file.write(path)
    refused(moebius("quantize", model, "--quant", "int4", "-o", tmp_path / "m"), name, "row 3", "not finite")
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.partial").exists()


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for it: the run says so and leaves the old file alone."""
    out = tmp_path / "m"
    out.write_text("what was here before")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run([PROGRAM, "quantize", GOLDEN / "v2lite-tiny", "--quant", "int4", "-o", out], preexec_fn=limit,
                          capture_output=True, timeout=60)
    assert done.returncode == 1 and b"cannot write" in done.stderr and str(out).encode() in done.stderr
    assert out.read_text() == "what was here before" and not (tmp_path / "m.partial").exists()


class Writing:
    """A synth of some size that is stopped in the middle."""

    def __init__(self, out, before=None):
        self.partial = out.with_name(out.name + ".partial")
        for _ in range(20):  # a busy machine may look away until it has ended
            self.begin(out, before)
            if self.is_locked():
                return
            self.end(signal.SIGKILL)
            out.unlink(missing_ok=True)
            self.partial.unlink(missing_ok=True)
        raise AssertionError("it was never stopped in the middle")

    def begin(self, out, before):
        self.process = subprocess.Popen([PROGRAM, "synth", "--like", "deepseek-coder-v2-lite", "--layers", "1", "--quant",
                                         "int4", "-o", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before)
        deadline = time.monotonic() + 60
        while not self.is_locked() and self.process.poll() is None:
            assert time.monotonic() < deadline, "it writes nothing"
            time.sleep(0.001)
        self.process.send_signal(signal.SIGSTOP)

    def is_locked(self):
        try:
            with open(self.partial) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def end(self, *signals):
        for number in signals:
            self.process.send_signal(number)
        self.process.wait(60)
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number, tmp_path):
    """Whatever was ignored where the tests were started, as a shell does for what runs in the background."""
    writing = Writing(tmp_path / "m", lambda: signal.signal(number, signal.SIG_DFL))
    assert writing.end(number, signal.SIGCONT) == -number
    assert not list(tmp_path.iterdir())


def test_nohup(tmp_path):
    """What whoever started it wants ignored stays ignored: the file is finished after the terminal has gone."""
    writing = Writing(tmp_path / "m", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert writing.end(signal.SIGHUP, signal.SIGCONT) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_killed(tmp_path):
    """Nothing that looks finished, nothing that opens, and the next run takes over."""
    writing = Writing(tmp_path / "m")
    assert writing.end(signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    refused(moebius("info", writing.partial), writing.partial)
    quantize(GOLDEN / "v2lite-tiny", tmp_path / "m", "--quant", "int4")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    succeed("info", "--verify", tmp_path / "m")


def test_two_at_once(tmp_path):
    writing = Writing(tmp_path / "m")
    result = moebius("quantize", GOLDEN / "v2lite-tiny", "--quant", "int4", "-o", tmp_path / "m")
    assert writing.partial.exists(), "it belongs to the first"
    writing.end(signal.SIGKILL, signal.SIGCONT)
    refused(result, "another process")


# --- synth -----------------------------------------------------------------------------------------------------------


def synth(config, out, *flags):
    return succeed("synth", "--config", config, "-o", out, "--json", *flags).json


@pytest.mark.parametrize("quant", FORMATS)
def test_synth(quant, config, tmp_path):
    """Sane numbers from the first layer to the logits, every expert in use, and it says what it is."""
    out = tmp_path / "m"
    synth(config, out, "--quant", quant)
    ids = list(range(3, 995, 4))
    result = succeed("logits", out, "--ids", ",".join(map(str, ids)), "--all", "--out", tmp_path / "o", "--hidden",
                     tmp_path / "h", "--experts", tmp_path / "e")
    assert SYNTHETIC in result.err
    got, hidden = read_f32(tmp_path / "o", len(ids), 1000), read_f32(tmp_path / "h", 4, len(ids), 256)
    assert np.isfinite(got).all() and 1 <= got.std() <= 3.5
    assert np.isfinite(hidden).all() and 0.3 <= hidden[-1].std() <= 30
    used = np.bincount(read_i32(tmp_path / "e", -1), minlength=16)
    assert used.min() > 0.2 * used.mean() and used.max() < 3 * used.mean()
    info = succeed("info", "--verify", out, "--json").json
    assert info["synthetic"] is True and "SYNTHETIC" in succeed("info", out).text


@pytest.mark.parametrize("quant", FORMATS)
def test_synth_is_incompressible(quant, config, tmp_path):
    """No two tensors are alike, no block is empty; what has 8 bits or fewer a value does not compress."""
    synth(config, tmp_path / "m", "--quant", quant)
    file = st.File(tmp_path / "m")
    blobs = [file.bytes_of(name) for name in file.tensors() if not name.startswith("moebius.")]
    assert len({zlib.crc32(blob) for blob in blobs}) == len(blobs)
    for name, entry in file.tensors().items():
        blob = file.bytes_of(name)
        if len(blob) < 8192 or name.startswith("moebius.") or entry["dtype"] in ("BF16", "F32"):
            continue
        ragged = ("down_proj", "kv_a_proj", "layers.0.mlp")  # 96 of 128 columns leave a quarter of their blocks empty
        whole = entry["dtype"] != "U8" or not any(part in name for part in ragged)
        assert len(zlib.compress(blob, 6)) > (0.97 if whole else 0.7) * len(blob), name


def test_synth_seeds(config, tmp_path):
    for name, flags in (("a", []), ("b", ["--seed", 1, "-t", 1]), ("c", ["--seed", 2])):
        synth(config, tmp_path / name, "--quant", "int4", *flags)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c


def test_synth_layers(config, tmp_path):
    synth(config, tmp_path / "m", "--quant", "fp8", "--layers", 1)
    info = succeed("info", tmp_path / "m", "--json").json
    assert info["layers"] == 1 and info["params"]["routed"] == 0


def test_synth_of_every_family(tmp_path):
    """V2's and V3's routing, from the golden models' own descriptions."""
    for name in ("v2-tiny", "v3-tiny"):
        synth(GOLDEN / name / "config.json", tmp_path / "m", "--quant", "int4")
        assert np.isfinite(logits(tmp_path / "m", tmp_path / "o")).all()
        quantize(tmp_path / "m", tmp_path / "n", "--quant", "int8")
        assert succeed("info", tmp_path / "n", "--json").json["synthetic"] is True, "it stays synthetic"


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """v2lite-tiny with a tokenizer, and norms that blow up every eighth channel; and a text."""
    folder = copy_set("v2lite-tiny", tmp_path_factory.mktemp("talking") / "folder")
    tiny_tokenizer.write(folder)
    path = folder / "model.safetensors"
    file = st.File(path)
    for name in file.tensors():
        if name.endswith("put_layernorm.weight") or name.endswith("attention_layernorm.weight"):
            w = st.bf16_to(file.bytes_of(name)) * np.float32(0.3)
            w[::8] *= 20
            file.put(name, st.bf16_from(w))
    file.write(path)
    text = folder.parent / "text"
    text.write_text("def area(width, height):\n    return width * height  # of a rectangle\n" * 40)
    return folder, text


def test_calibration_helps_where_inputs_differ(talking, tmp_path):
    """Knowing which channels are large brings the residual nearer in every layer; what hangs together, nearer still."""
    folder, text = talking

    def hidden(model):
        logits(model, tmp_path / "o", "--hidden", tmp_path / "h", "--compute", "f32", ids=range(20, 120))
        return read_f32(tmp_path / "h", 4, 100, 128)

    def far(*flags):
        quantize(folder, tmp_path / "m", "--quant", "int4", "--group", 32, *flags)
        return np.sqrt(((hidden(tmp_path / "m") - want) ** 2).mean(axis=(1, 2)))[1:]

    def options():
        return succeed("info", tmp_path / "m", "--json").json["packed"]["options"]

    want = hidden(folder)
    plain, scales = far(), far("--calibrate", text, "--calibration-method", "scales")
    assert options().endswith("--calibrate --calibration-method scales")
    gptq = far("--calibrate", text)
    assert options().endswith("--calibrate")
    assert (scales < 0.93 * plain).all(), f"{plain} {scales}"
    assert (gptq < 0.93 * plain).all(), f"{plain} {gptq}"


@pytest.mark.parametrize("group, most", [("attention", 0.6), ("kv_b", 0.8)])
def test_feedback_costs_less_on_text_it_has_not_seen(group, most, tmp_path):
    """The trained model, part of it in INT4: how far its answers are from the stored model's on held-out text."""
    demo, heldout, text = ROOT / "models/demo", tmp_path / "heldout", tmp_path / "text"
    heldout.write_bytes((ROOT / "tests/data/heldout/schedule-1.2.2").rglob("*.py").__next__().read_bytes()[:5000])
    text.write_bytes(b"".join(path.read_bytes() for path in sorted((ROOT / "tests").glob("test_*.py")))[:60000])
    evaluate = ["--text", heldout, "--compute", "f32", "--json"]
    succeed("eval", demo, *evaluate, "--save-logits", tmp_path / "logits")

    def divergence(*flags):
        quantize(demo, tmp_path / "m", "--quant", f"bf16,{group}=int4", *flags)
        (row,) = succeed("eval", tmp_path / "m", *evaluate, "--reference", tmp_path / "logits").json
        return row["reference"]["kl_mean"]

    calibrate = ["--calibrate", text, "--calibration-tokens", 6144]
    scales = divergence(*calibrate, "--calibration-method", "scales")
    gptq = divergence(*calibrate)
    assert 0 < gptq < most * scales, f"{scales} {gptq}"


def test_feedback_gives_the_same_file_everywhere(talking, tmp_path):
    """On any number of threads, at any level of instructions, and however many layers' moments fit at a time."""
    folder, text = talking
    files = set()
    for threads, level, *flags in [(1, ""), (2, ""), (2, "ref"), (2, "avx2"), (2, "avx512"),
                                   (2, "", "--calibration-memory", 0.002)]:
        out = tmp_path / "m"
        result = moebius("quantize", folder, "--quant", "int4", "--calibrate", text, "--calibration-tokens", 600,
                         "-o", out, "--threads", threads, *flags,
                         env={"MOEBIUS_CPU": level})
        if level and "this machine lacks" in result.err:
            print(f"{level} is left out: this machine lacks it")
            continue
        assert result.code == 0, str(result)
        passes = int(result.err.split("passes: ")[1].split(";")[0])
        assert (passes > 1) == bool(flags), result.err
        files.add(out.read_bytes())
    assert len(files) == 1


def test_calibration_flags_that_do_not_fit(talking, tmp_path):
    folder, text = talking
    base = ["quantize", folder, "--quant", "int4", "-o", tmp_path / "m"]
    for flag, value in [("--calibration-method", "gptq"), ("--calibration-tokens", "5"), ("--calibration-memory", "1")]:
        refused(moebius(*base, flag, value), flag, "--calibrate")
    refused(moebius(*base, "--calibrate", text, "--calibration-method", "scales", "--calibration-memory", "1"), "scales")
    refused(moebius(*base, "--calibrate", text, "--calibration-method", "awq"), "gptq")
    refused(moebius(*base, "--calibrate", text, "--calibration-memory", "0.001"), "--calibration-memory", "of layer")
    assert not (tmp_path / "m").exists()


def test_a_few_tokens_do_no_harm(talking, tmp_path):
    """With three tokens most experts see nothing, and correlations mean nothing: no farther from the weights than is usual."""
    folder, text = talking
    report = quantize(folder, tmp_path / "m", "--quant", "int4", "--calibrate", text, "--calibration-tokens", 3)
    plain = quantize(folder, tmp_path / "n", "--quant", "int4")
    for group, value in report["relative_error"].items():
        assert value <= 1.1 * plain["relative_error"][group], group


def test_feedback_refuses_inputs_beyond_fp32(talking, tmp_path):
    """Activations whose squares overflow are named, with the tensor that they go into."""
    folder = copy_set("v2lite-tiny", tmp_path / "folder")
    tiny_tokenizer.write(folder)
    path = folder / "model.safetensors"
    file = st.File(path)
    for part, factor in (("up", 1e25), ("down", 1e-25)):
        name = f"model.layers.1.mlp.shared_experts.{part}_proj.weight"
        file.put(name, st.bf16_from(st.bf16_to(file.bytes_of(name)) * np.float32(factor)))
    file.write(path)
    result = moebius("quantize", folder, "--quant", "int4", "-o", tmp_path / "m", "--calibrate", talking[1])
    assert result.code == 1, str(result)
    assert "layers.1.mlp.shared_experts.down_proj" in result.err and "not finite" in result.err, str(result)
    assert not (tmp_path / "m").exists()


def test_calibration_reaches_kv_b(talking, tmp_path):
    """Its input is no linear stage's: it is shown by itself."""
    folder, text = talking
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    for quant in ("int4", "int8"):
        blobs = set()
        for flags in ([], ["--calibrate", text, "--calibration-method", "scales"], ["--calibrate", text]):
            quantize(folder, tmp_path / "m", "--quant", f"bf16,kv_b={quant}", *flags)
            blobs.add(st.File(tmp_path / "m").bytes_of(name))
        assert len(blobs) == 3, quant


def test_calibration_needs_text(talking, tmp_path):
    (tmp_path / "empty").write_text("")
    for method in ("gptq", "scales"):
        refused(moebius("quantize", talking[0], "--quant", "int4", "-o", tmp_path / "m", "--calibrate", tmp_path / "empty",
                        "--calibration-method", method), "the text is empty")
    (tmp_path / "bytes").write_bytes(b"good\xff\xfe")
    refused(moebius("quantize", talking[0], "--quant", "int4", "-o", tmp_path / "m", "--calibrate", tmp_path / "bytes"),
            "--calibrate: the text is not valid UTF-8 at byte 4")
    assert not list(tmp_path.glob("m*"))


def test_calibration_needs_a_tokenizer(tmp_path):
    (tmp_path / "empty").write_text("")
    refused(moebius("quantize", GOLDEN / "v2lite-tiny", "--quant", "int4", "-o", tmp_path / "m", "--calibrate",
                    tmp_path / "empty"), "tokenizer.json")
    refused(moebius("quantize", GOLDEN / "v2lite-tiny", "--quant", "int4", "-o", tmp_path / "m", "--calibrate",
                    tmp_path / "none"), tmp_path / "none")
    assert not (tmp_path / "m").exists()
