"""Other people's INT8: compressed-tensors' int-quantized and SGLang's blockwise_int8 and w8a8_int8 give the logits of the same numbers in
F32; what is wrong with one is refused by name."""

import json

import numpy as np
import pytest

import int4
import st
from conftest import GOLDEN, change_config, copy_set, moebius, read_f32, refused, succeed

SET, IDS = "v3-tiny", list(range(3, 20))
LAYER = "model.layers.2.mlp.experts.3.up_proj"


def compressed(strategy, **more):
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": False, **more}
    return {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


FORMS = {  # how scales lie, and what config.json says
    "channel": ("BF16", None, compressed("channel")),
    "tensor": ("BF16", None, compressed("tensor")),
    "w8a8_int8": ("F32", None, {"quant_method": "w8a8_int8", "activation_scheme": "dynamic"}),
    "block": ("F32", 128, {"quant_method": "blockwise_int8", "weight_block_size": [128, 128]}),
}


def write(folder, form):
    """The checkpoint, and beside it the same numbers in F32."""
    dtype, block, quantization = FORMS[form]
    tensors = st.tensors_of(st.File(GOLDEN / SET / "model.safetensors"))
    plain = {}
    for name in [n for n in tensors if n.endswith("_proj.weight") or n.endswith("_with_mqa.weight")]:
        kind, shape, raw = tensors[name]
        w = (st.bf16_to(raw) if kind == "BF16" else np.frombuffer(raw, "<f4")).reshape(shape)
        rows, cols = (block, block) if block else (w.shape if form == "tensor" else (1, w.shape[1]))
        scale = np.array([[np.abs(w[r:r + rows, c:c + cols]).max() / 127.5 for c in range(0, shape[1], cols)]
                          for r in range(0, shape[0], rows)], np.float32)
        if dtype == "BF16":
            scale = st.bf16_to(st.bf16_from(scale)).reshape(scale.shape)
        each = np.repeat(np.repeat(scale, rows, 0), cols, 1)[:shape[0], :shape[1]]
        q = np.clip(np.rint(w / each), -128, 127)  # -128 is there, too
        half = each.astype(np.float16).astype(np.float32)  # what is kept of a scale: all of bf16
        plain[name] = ("F32", shape, (q * half).astype("<f4").tobytes())
        tensors[name] = ("I8", shape, q.astype(np.int8).tobytes())
        suffix = "_scale_inv" if block else "_scale"
        tensors[name + suffix] = int4.tensor(dtype, scale[0] if form == "tensor" else scale)
    for to, all_tensors, config in ((folder, tensors, quantization), (folder.parent / "plain", {**tensors, **plain}, None)):
        copy_set(SET, to)
        kept = {n: t for n, t in all_tensors.items() if config or "_scale" not in n}
        (to / "model.safetensors").write_bytes(st.pack(*st.build(kept)))
        if config:
            change_config(to, quantization_config=config)
    return folder


def logits(model, out, *flags):
    succeed("logits", model, "--ids", ",".join(map(str, IDS)), "--all", "--out", out, *flags)
    return read_f32(out, len(IDS), -1)


@pytest.mark.parametrize("form", FORMS)
def test_same_values(tmp_path, form):
    """As the same numbers in F32, with scales rounded to fp16; a file of `quantize` has the same bits."""
    folder = write(tmp_path / "m", form)
    got, want = (logits(f, tmp_path / "out", "--compute", "f32") for f in (folder, tmp_path / "plain"))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    succeed("quantize", folder, "--quant", "int8,head=bf16", "-o", tmp_path / "int8.safetensors")
    assert np.array_equal(logits(tmp_path / "int8.safetensors", tmp_path / "out"), logits(folder, tmp_path / "out"))
    routed = succeed("plan", folder, "--json").json["groups"]["routed"]
    assert routed["format"] == "int8"
    assert "INT8" in succeed("info", folder, "--json").json["bytes_by_format"]
    refused(moebius("logits", folder, "--ids", 1, "--out", tmp_path / "out", "--expert-cache", "0.001"), "int8_rows", "moebius quantize")


def change(suffix, tensor):
    def apply(tensors):
        tensors.pop(LAYER + suffix, None)
        if tensor:
            tensors[LAYER + suffix] = int4.tensor(*tensor)
    return apply


BAD = [
    (change(".weight_scale", None), [LAYER + ".weight_scale", "missing", "[32, 1]"]),
    (change(".weight_scale", ("F32", np.full((32, 1), np.nan))), [LAYER + ".weight_scale", "finite"]),
    (change(".weight_scale", ("F32", np.full((32, 1), 1e6))), [LAYER, "65504"]),
    (change(".weight_scale", ("F32", np.ones((16, 1)))), [LAYER + ".weight_scale", "[32, 1]", "[16, 1]"]),
    (change(".weight_zero_point", ("I32", np.ones((32, 1)))), [LAYER + ".weight_zero_point", "zeros"]),
]


@pytest.mark.parametrize("apply, words", BAD)
def test_bad_tensors(tmp_path, apply, words):
    path = write(tmp_path / "m", "channel") / "model.safetensors"
    tensors = st.tensors_of(st.File(path))
    apply(tensors)
    path.write_bytes(st.pack(*st.build(tensors)))
    refused(moebius("logits", tmp_path / "m", "--ids", 1, "--out", tmp_path / "out"), *words)


@pytest.mark.parametrize("more, words", [({"symmetric": False}, ["symmetric"]), ({"num_bits": 4}, ["num_bits", "8"]),
                                         ({"strategy": "group"}, ["strategy", "channel or tensor"]), ({"type": "float"}, ["type", "int"])])
def test_bad_configs(tmp_path, more, words):
    folder = write(tmp_path / "m", "channel")
    change_config(folder, quantization_config=compressed(**{"strategy": "channel", **more}))
    refused(moebius("logits", folder, "--ids", 1, "--out", tmp_path / "out"), *words)
