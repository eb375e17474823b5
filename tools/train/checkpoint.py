"""Between the training model's state and a Hugging Face folder with DeepSeek's tensor names."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import Model


def to_deepseek(state):
    """Stacked experts become experts.N.{gate,up,down}_proj.weight; everything but lm_head gets the prefix `model.`."""
    out = {}
    for name, tensor in state.items():
        prefix = "" if name.startswith("lm_head") else "model."
        if name.endswith("experts.gate_up"):
            stem = prefix + name[:-len("gate_up")]
            for e, both in enumerate(tensor):
                out[f"{stem}{e}.gate_proj.weight"], out[f"{stem}{e}.up_proj.weight"] = both.chunk(2)
        elif name.endswith("experts.down"):
            stem = prefix + name[:-len("down")]
            out.update({f"{stem}{e}.down_proj.weight": one for e, one in enumerate(tensor)})
        else:
            out[prefix + name] = tensor
    return out


def from_deepseek(tensors, config):
    count, state = config["n_routed_experts"], {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if not re.search(r"\.experts\.\d+\.", name):
            state[name] = tensor.float()
    for index in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        stem = f"layers.{index}.mlp.experts."

        def stack(kind):
            return torch.stack([tensors[f"model.{stem}{e}.{kind}_proj.weight"].float() for e in range(count)])

        state[stem + "gate_up"] = torch.cat((stack("gate"), stack("up")), 1)
        state[stem + "down"] = stack("down")
    return state


def load(folder):
    """A model in f32 from an exported folder."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    model = Model(config)
    model.load_state_dict(from_deepseek(load_file(folder / "model.safetensors"), config))
    return model


def save(state, path):
    tensors = {name: tensor.to(torch.bfloat16).contiguous().clone() for name, tensor in to_deepseek(state).items()}
    save_file(tensors, path, metadata={"format": "pt"})
