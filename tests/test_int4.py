"""Other people's INT4: AutoGPTQ's and compressed-tensors' checkpoints, and auto-round's, give the bits of AutoAWQ's with the same
integers; what is wrong with one is refused by name."""

import json

import numpy as np
import pytest

import int4
import st
from conftest import GOLDEN, change_config, moebius, read_f32, refused, succeed

IDS = list(range(3, 20))
ROUND = {"quant_method": "auto-round", "data_type": "int", "packing_format": "auto_round:auto_gptq", "autoround_version": "0.6.0"}


def logits(model, out, *flags):
    succeed("logits", model, "--ids", ",".join(map(str, IDS)), "--all", "--out", out, *flags)
    return read_f32(out, len(IDS), -1)


@pytest.fixture(scope="module")
def source():
    return int4.read()


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "out"
    return {flags: logits(GOLDEN / "v2lite-tiny-awq", out, *flags) for flags in ((), ("--compute", "f32"), ("--no-repack",))}


FORMS = {
    "gptq": lambda *at: int4.gptq(*at),
    "gptq without g_idx": lambda *at: int4.gptq(*at, with_order=False),
    "gptq_v2, F32 scales": lambda *at: int4.gptq(*at, "F32", more={"checkpoint_format": "gptq_v2"}),
    "auto-round, gptq": lambda *at: int4.gptq(*at, more=ROUND),
    "packed": lambda *at: int4.packed(*at),
    "packed, F32 scales": lambda *at: int4.packed(*at, "F32", more={"actorder": "weight"}),
}


def test_awq_turned(golden):
    """Words in memory, 16 rows side by side, give the bits of words as they lie."""
    assert np.array_equal(golden[()], golden["--no-repack",])


@pytest.mark.parametrize("form", FORMS)
def test_same_bits(source, golden, tmp_path, form):
    folder = FORMS[form](tmp_path / "m", *source)
    for flags in ((), ("--compute", "f32")):
        assert np.array_equal(logits(folder, tmp_path / "out", *flags), golden[flags])


def test_auto_round_awq(source, golden, tmp_path):
    folder = int4.awq(tmp_path / "m", *source)
    change_config(folder, quantization_config={**ROUND, "bits": 4, "group_size": 32, "sym": False,
                                               "packing_format": "auto_round:auto_awq"})
    assert np.array_equal(logits(folder, tmp_path / "out"), golden[()])


def whole_rows(m):
    return int4.Matrix(m.q, m.zero[:, :1], m.scale[:, :1])


def symmetric(m):
    return int4.Matrix(m.q, np.full_like(m.zero, 8), m.scale)


OTHERS = {  # and what happens to the matrices before
    "packed, symmetric": (symmetric, lambda *at: int4.packed(*at, symmetric=True)),
    "packed, BF16 scales": (symmetric, lambda *at: int4.packed(*at, "BF16", symmetric=True)),
    "packed, whole rows": (whole_rows, lambda *at: int4.packed(*at, strategy="channel")),
    "gptq, whole rows": (whole_rows, lambda *at: int4.gptq(*at, more={"group_size": -1})),
}


@pytest.mark.parametrize("form", OTHERS)
def test_same_values(source, tmp_path, form):
    """As the same numbers in F32, and once more as INT8 that is made of them."""
    change, write = OTHERS[form]
    matrices = {name: change(m) for name, m in source[0].items()}
    if "BF16" in form:
        for m in matrices.values():
            m.scale = st.bf16_to(st.bf16_from(m.scale)).reshape(m.scale.shape)
    folder = write(tmp_path / "m", matrices, source[1])
    plain = int4.as_float(tmp_path / "plain", matrices, source[1])
    got, want = (logits(f, tmp_path / "out", "--compute", "f32") for f in (folder, plain))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    assert np.abs(logits(folder, tmp_path / "out") - want).mean() <= 0.05 * np.abs(want).max()


@pytest.mark.parametrize("form", ["gptq", "packed"])
def test_what_else(source, golden, tmp_path, form):
    """quantize makes of it what it makes of AWQ; info, plan and bench know it; experts from disk are refused with advice."""
    folder = FORMS[form](tmp_path / "m", *source)
    made = []
    for model in folder, GOLDEN / "v2lite-tiny-awq":
        succeed("quantize", model, "--quant", "int8", "-o", tmp_path / "int8.safetensors")
        made.append(logits(tmp_path / "int8.safetensors", tmp_path / "out"))
        quick = logits(model, tmp_path / "out", "--quantization", "int4")
        made.append(quick)
    assert np.array_equal(made[0], made[2]) and np.array_equal(made[1], made[3])
    refused(moebius("logits", folder, "--ids", 1, "--out", tmp_path / "out", "--expert-cache", "0.001"),
            f"int4_{form}", "moebius quantize")
    refused(moebius("logits", folder, "--ids", 1, "--out", tmp_path / "out", "--no-repack"), "--no-repack")
    bench = succeed("bench", folder, "--prompt", 3, "--generate", 2, "--batch", 1, "--depth", 0, "--repeat", 1, "--json",
                    env={"MOEBIUS_MEMORY": "0.2"})
    assert bench.json["repacked_bytes"] > sum(m.q.size for m in source[0].values()) / 2
    plan = succeed("plan", folder, "--json").json
    routed = plan["groups"]["routed"]
    assert routed["format"] == form and routed["bytes"] * 8 == routed["params"] * 5  # turned: a word for each 32 values
    assert succeed("info", folder, "--json").json["int4_packing"] == {"gptq": "GPTQ", "packed": "compressed-tensors"}[form]


def test_turning_wants_memory(source, tmp_path):
    """What must be turned is refused where there is no room for that; AWQ's words stay as they lie."""
    bench = ["--prompt", 3, "--generate", 2, "--batch", 1, "--depth", 0, "--repeat", 1, "--json"]
    folder, refusals = int4.gptq(tmp_path / "m", *source), []
    for mib in range(8, 40):
        env = {"MOEBIUS_MEMORY": str(mib / 1024)}
        result, awq = moebius("bench", folder, *bench, env=env), moebius("bench", GOLDEN / "v2lite-tiny-awq", *bench, env=env)
        if result.code == 0:
            break
        refusals.append(refused(result))
        if "another order" in refusals[-1]:
            assert "moebius quantize" in refusals[-1]
            assert awq.code == 0 and "stay as they lie" in awq.err and awq.json["repacked_bytes"] == 0
    assert result.code == 0 and awq.json["repacked_bytes"] > 0, refusals
    assert any("another order" in line for line in refusals), refusals


LAYER = "model.layers.1.mlp.experts.3.up_proj"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = st.tensors_of(st.File(path))
    change(tensors)
    path.write_bytes(st.pack(*st.build(tensors)))
    return moebius("logits", folder, "--ids", 1, "--out", folder / "out")


def replace(suffix, dtype, array):
    return lambda tensors: tensors.update({LAYER + suffix: int4.tensor(dtype, np.asarray(array))})


def drop(suffix):
    return lambda tensors: tensors.pop(LAYER + suffix)


SORTED = np.arange(128)[::-1] // 32
BAD = [
    ("gptq", drop(".qzeros"), [LAYER + ".qzeros", "missing", "[4, 8]"]),
    ("gptq", drop(".scales"), [LAYER + ".scales", "missing", "[4, 64]"]),
    ("gptq", replace(".qweight", "I32", np.zeros((64, 16))), [LAYER + ".qweight", "[16, 64]", "[64, 16]"]),
    ("gptq", replace(".qweight", "F32", np.zeros((16, 64))), [LAYER + ".qweight", "I32", "F32"]),
    ("gptq", replace(".scales", "I32", np.zeros((4, 64))), [LAYER + ".scales", "F16", "I32"]),
    ("gptq", replace(".scales", "F16", np.full((4, 64), np.inf)), [LAYER + ".scales", "finite"]),
    ("gptq", replace(".g_idx", "I32", SORTED), [LAYER + ".g_idx", "column 0", "group 3", "desc_act"]),
    ("gptq", replace(".g_idx", "I32", np.zeros(64)), [LAYER + ".g_idx", "[128]", "[64]"]),
    ("packed", drop(".weight_scale"), [LAYER + ".weight_scale", "missing", "[64, 4]"]),
    ("packed", drop(".weight_zero_point"), [LAYER + ".weight_zero_point", "missing", "[8, 4]"]),
    ("packed", drop(".weight_shape"), [LAYER + ".weight_shape", "missing"]),
    ("packed", replace(".weight_shape", "I64", [64, 120]), [LAYER + ".weight_shape", "64, 128", "64, 120"]),
    ("packed", replace(".weight_packed", "I32", np.zeros((64, 15))), [LAYER + ".weight_packed", "[64, 16]", "[64, 15]"]),
    ("packed", replace(".weight_scale", "BF16", np.full((64, 4), np.nan)), [LAYER + ".weight_scale", "finite"]),
    ("packed", replace(".weight_g_idx", "I32", SORTED), [LAYER + ".weight_g_idx", "actorder"]),
]


@pytest.mark.parametrize("form, change, words", BAD)
def test_bad_tensors(source, tmp_path, form, change, words):
    refused(rewrite(FORMS[form](tmp_path / "m", *source), change), "model.safetensors", *words)


GROUPS = {"format": "pack-quantized"}
BAD_CONFIGS = [
    ("gptq", {"desc_act": True}, ["desc_act"]),
    ("gptq", {"bits": 8}, ["bits", "4"]),
    ("gptq", {"group_size": 48}, ["group_size", "32, 64, 128 or -1"]),
    ("gptq", {"checkpoint_format": "marlin"}, ["checkpoint_format", "gptq_v2", "marlin"]),
    ("gptq", {"is_marlin_format": True}, ["is_marlin_format"]),
    ("gptq", {"pack_dtype": "int8"}, ["pack_dtype", "int8"]),
    ("gptq", {**ROUND, "packing_format": "auto_round"}, ["packing_format", "auto_round:auto_gptq"]),
    ("gptq", {"quant_method": "awq"}, ["qweight", "[128, 32]", "[16, 256]"]),
    ("packed", {"num_bits": 8}, ["num_bits", "4"]),
    ("packed", {"type": "float"}, ["type", "int"]),
    ("packed", {"strategy": "block"}, ["strategy", "group or channel"]),
    ("packed", {"actorder": "group"}, ["actorder"]),
    ("packed", {"group_size": 256}, ["group_size"]),
]


@pytest.mark.parametrize("form, change, words", BAD_CONFIGS)
def test_bad_configs(source, tmp_path, form, change, words):
    folder = FORMS[form](tmp_path / "m", *source)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (config if form == "gptq" else config["config_groups"]["group_0"]["weights"]).update(change)
    change_config(folder, quantization_config=config)
    refused(moebius("logits", folder, "--ids", 1, "--out", folder / "out"), *words)
