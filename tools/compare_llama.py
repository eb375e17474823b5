#!/usr/bin/env python3
"""The logits of a GGUF file by llama.cpp beside those of Moebius: two programs that share no code read the same bytes.

    pip install llama-cpp-python        # compiles llama.cpp
    python3 tools/compare_llama.py build/moebius FILE.gguf [--tokens 120] [--wide WIDE.gguf]

Tokens are random. Both compute in fp32 with an fp32 cache as far as llama.cpp can: it multiplies blocks by 8-bit activations, so
that only files of F32, F16 and BF16 agree to the last digits. With --wide llama.cpp reads another file: the blocks of the first as
F32, by its own `llama-quantize --allow-requantize FILE.gguf WIDE.gguf F32`."""

import argparse
import subprocess
import tempfile

import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama


def logits_of_llama(path, ids):
    model = Llama(path, n_ctx=len(ids), n_batch=len(ids), n_ubatch=len(ids), logits_all=True, verbose=False, type_k=GGML_TYPE_F32,
                  type_v=GGML_TYPE_F32, flash_attn=False)
    model.eval(ids)
    return np.array(model.scores[:len(ids)])


def logits_of_moebius(program, path, ids):
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run([program, "logits", path, "--ids", ",".join(map(str, ids)), "--all", "--out", out.name, "--compute", "f32",
                        "--max-model-len", str(len(ids))], check=True)
        return np.fromfile(out.name, np.float32).reshape(len(ids), -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("file")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--wide", metavar="WIDE.gguf", help="what llama.cpp reads in the file's place")
    a = parser.parse_args()
    n_vocabulary = Llama(a.file, vocab_only=True, verbose=False).n_vocab()
    ids = np.random.default_rng(1).integers(n_vocabulary, size=a.tokens).tolist()
    theirs, ours = logits_of_llama(a.wide or a.file, ids), logits_of_moebius(a.program, a.file, ids)
    greedy = int((theirs.argmax(1) == ours.argmax(1)).sum())
    worst = np.abs(theirs - ours).max(axis=1)
    print(f"largest difference {worst.max():.3g}, the median row's {np.median(worst):.3g}, of logits that spread by {ours.std():.3g}; "
          f"likeliest token equal {greedy} of {len(ids)}")


if __name__ == "__main__":
    main()
