"""Writes a checkpoint of train.py as a Hugging Face folder: config, BF16 weights with DeepSeek's names, tokenizer.

    python tools/train/export.py --work DIR --run DIR [DIR ...] [--out models/demo]

Beside them: TRAINING_DATA.json (packages, versions, licences), loss.png and experts.png drawn from the run's log. Of several
runs, each of which went on from the one before (grow.py), the last one's weights are taken and all the logs.
With --random SEED the weights are random instead: for comparing an engine's arithmetic with this model's.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

import checkpoint
import data
from model import Model

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json"]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model(out, config, state, tokenizer_folder):
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
        "do_sample": True, "temperature": 0.3, "top_p": 0.95, "transformers_version": config["transformers_version"]})
    checkpoint.save(state, out / "model.safetensors")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, out / name)


def from_random(seed):
    config = json.loads((Path(__file__).resolve().parent / "configs/demo.json").read_text())
    model = Model(config)
    model.initialise(seed)
    return config, model.state_dict()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--run", type=Path, nargs="+", help="what train.py made")
    parser.add_argument("--random", type=int, metavar="SEED")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "models/demo")
    options = parser.parse_args()
    if options.random is not None:
        config, state = from_random(options.random)
    else:
        saved = torch.load(options.run[-1] / "checkpoint.pt", map_location="cpu")
        config, state = saved["config"], saved["model"]
        print(f"step {saved['step']}, {saved['tokens']} tokens, {saved['seconds'] / 60:.1f} minutes")
    write_model(options.out, config, state, options.work / "tokenizer")
    if options.random is None:
        import pictures
        shutil.copyfile(options.work / "manifest.json", options.out / "TRAINING_DATA.json")
        pictures.draw(data.joined_logs(options.run), options.out)
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size:>10}  {path.name}")


if __name__ == "__main__":
    main()
