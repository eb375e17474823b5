"""Checkpoints of other people's INT4, made of AutoAWQ's golden one: the same integers in another packing. Written from the
descriptions of AutoGPTQ's and compressed-tensors' formats, and of none of our code."""

import json

import numpy as np

import st
from conftest import GOLDEN, copy_set

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble j of a word has this of eight rows
GROUP = 32
SHIFTS = np.arange(8, dtype=np.uint32) * 4


def unpack(words):
    """[...][n] words -> [...][8n] nibbles, lowest first."""
    return ((words[..., None] >> SHIFTS) & 15).reshape(*words.shape[:-1], -1)


def pack(nibbles):
    """The other way round, padded with zeros."""
    nibbles = np.pad(nibbles, [(0, 0)] * (nibbles.ndim - 1) + [(0, -nibbles.shape[-1] % 8)]).astype(np.uint32)
    return (nibbles.reshape(*nibbles.shape[:-1], -1, 8) << SHIFTS).sum(axis=-1, dtype=np.uint32)


def from_awq(words):
    """AWQ's words along the rows -> [lines][rows]."""
    out = unpack(words).reshape(len(words), -1, 8)
    rows = np.empty_like(out)
    rows[:, :, AWQ_ORDER] = out
    return rows.reshape(len(words), -1)


class Matrix:
    """q [rows][cols], zero [rows][groups], scale [rows][groups] as float32."""

    def __init__(self, q, zero, scale):
        self.q, self.zero, self.scale = q, zero, scale

    def values(self):
        repeat = -(-self.q.shape[1] // self.zero.shape[1])
        each = lambda a: np.repeat(a, repeat, axis=1)[:, :self.q.shape[1]]
        return (self.q.astype(np.float32) - each(self.zero).astype(np.float32)) * each(self.scale)


def read():
    """What AutoAWQ's golden checkpoint holds: {name: Matrix} and the tensors that are plain."""
    file = st.File(GOLDEN / "v2lite-tiny-awq" / "model.safetensors")
    tensors, matrices = st.tensors_of(file), {}
    for name in [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]:
        take = lambda suffix, kind: np.frombuffer(tensors[name + suffix][2], kind).reshape(tensors.pop(name + suffix)[1])
        q, zero, scale = (from_awq(take(".qweight", "<u4")), from_awq(take(".qzeros", "<u4")), take(".scales", "<f2"))
        matrices[name] = Matrix(q.T, zero.T, scale.T.astype(np.float32))
    return matrices, tensors


def tensor(dtype, array):
    if dtype == "BF16":
        return dtype, array.shape, st.bf16_from(array)
    kinds = {"I32": "<u4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
    return dtype, array.shape, np.ascontiguousarray(array, kinds[dtype]).tobytes()


def write(folder, tensors, quantization):
    copy_set("v2lite-tiny-awq", folder)
    (folder / "model.safetensors").write_bytes(st.pack(*st.build(tensors)))
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    if quantization:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def awq(folder, matrices, plain):
    tensors = dict(plain)
    for name, m in matrices.items():
        along = lambda a: pack(a.T.reshape(a.shape[1], -1, 8)[:, :, AWQ_ORDER].reshape(a.shape[1], -1))
        tensors[name + ".qweight"] = tensor("I32", along(m.q))
        tensors[name + ".qzeros"] = tensor("I32", along(m.zero))
        tensors[name + ".scales"] = tensor("F16", m.scale.T)
    return write(folder, tensors, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True})


def gptq(folder, matrices, plain, scale="F16", with_order=True, more=None):
    """more["checkpoint_format"] "gptq_v2" stores zero points as they are, else less one."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False, **(more or {})}
    tensors = dict(plain)
    for name, m in matrices.items():
        zero = m.zero if config.get("checkpoint_format") == "gptq_v2" else (m.zero.astype(int) - 1) & 15
        groups = m.zero.shape[1]
        tensors[name + ".qweight"] = tensor("I32", pack(m.q).T)
        tensors[name + ".qzeros"] = tensor("I32", pack(zero.T))
        tensors[name + ".scales"] = tensor(scale, m.scale.T)
        if with_order:
            order = np.zeros(m.q.shape[1]) if groups == 1 else np.arange(m.q.shape[1]) // GROUP
            tensors[name + ".g_idx"] = tensor("I32", order)
    return write(folder, tensors, config)


def packed(folder, matrices, plain, scale="F16", symmetric=False, strategy="group", more=None):
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": strategy,
               "group_size": GROUP if strategy == "group" else None, "actorder": None, "dynamic": False, **(more or {})}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}
    tensors = dict(plain)
    for name, m in matrices.items():
        tensors[name + ".weight_packed"] = tensor("I32", pack(m.q))
        tensors[name + ".weight_scale"] = tensor(scale, m.scale)
        tensors[name + ".weight_shape"] = tensor("I64", np.array(m.q.shape))
        if not symmetric:
            tensors[name + ".weight_zero_point"] = tensor("I32", pack(m.zero.T).T)
    return write(folder, tensors, config)


def as_float(folder, matrices, plain):
    tensors = dict(plain)
    for name, m in matrices.items():
        tensors[name + ".weight"] = tensor("F32", m.values())
    return write(folder, tensors, None)
