"""safetensors files by hand: read, change, write; also wrong ones, so nothing here checks anything."""

import json
import math
import random
import struct
from pathlib import Path

import numpy as np

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5, "I64": 8, "I32": 4,
              "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class File:
    """`header`: name -> {"dtype", "shape", "data_offsets"}; `data`: what follows it."""

    def __init__(self, path):
        raw = Path(path).read_bytes()
        (n,) = struct.unpack("<Q", raw[:8])
        self.header = json.loads(raw[8:8 + n])
        self.header_bytes = 8 + n
        self.data = bytearray(raw[8 + n:])

    def tensors(self):
        return {name: entry for name, entry in self.header.items() if name != "__metadata__"}

    def bytes_of(self, name):
        begin, end = self.header[name]["data_offsets"]
        return bytes(self.data[begin:end])

    def put(self, name, values):
        """Overwrites the tensor's bytes in place."""
        begin, end = self.header[name]["data_offsets"]
        raw = bytes(values)
        assert len(raw) == end - begin
        self.data[begin:end] = raw

    def write(self, path, header_text=None, header_length=None):
        Path(path).write_bytes(pack(self.header, self.data, header_text, header_length))


def pack(header, data, header_text=None, header_length=None):
    if header_text is None:  # padded with blanks, as the format asks, so that the data is aligned
        header_text = json.dumps(header)
        header_text += " " * (-len(header_text.encode()) % 8)
    raw = header_text.encode() if isinstance(header_text, str) else header_text
    length = len(raw) if header_length is None else header_length
    return struct.pack("<Q", length) + raw + bytes(data)


def build(tensors):
    """tensors: name -> (dtype, shape, bytes), written in this order without holes."""
    header, data = {}, bytearray()
    for name, (dtype, shape, raw) in tensors.items():
        assert len(raw) == math.prod(shape) * ITEM_BYTES[dtype], name
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header, data


def tensors_of(file):
    """The other way round: a dict for build()."""
    return {name: (e["dtype"], e["shape"], file.bytes_of(name)) for name, e in file.tensors().items()}


def bf16_from(values):
    """float array -> bytes of BF16, cut (enough for tests)."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def bf16_to(raw):
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def scatter(source, folder, seed=1, shards=3, shard_of=None):
    """The checkpoint `source` with its tensors shuffled over other files, as far as alignment allows: those of one byte an item
    at odd offsets. `shard_of(name)`: the file of a tensor, or None for any of the others."""
    source, folder, mix = Path(source), Path(folder), random.Random(seed)
    folder.mkdir()
    for path in source.iterdir():
        if not path.name.startswith("model") and path.suffix == ".json" or path.name == "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    files = [{} for _ in range(shards)]
    kept = shards - 1 if shard_of else shards
    for path in sorted(source.glob("*.safetensors")):
        file = File(path)
        for name, entry in file.tensors().items():
            chosen = shard_of(name) if shard_of else None
            index = mix.randrange(kept) if chosen is None else chosen
            files[index][name] = (entry["dtype"], entry["shape"], file.bytes_of(name))
    weight_map = {}
    for index, tensors in enumerate(files):
        names = list(tensors)
        mix.shuffle(names)
        odd = f"model.layers.{index}.self_attn.rotary_emb.inv_freq"  # ignored
        tensors[odd] = ("U8", [1], b"\0")
        names = sorted([odd] + names, key=lambda name: -ITEM_BYTES[tensors[name][0]])
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        (folder / file).write_bytes(pack(*build({name: tensors[name] for name in names})))
        weight_map.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
