#!/usr/bin/env python3
"""Writes src/model/gguf/grids.c: the grids of GGUF's IQ1, IQ2 and IQ3 types, which are part of these formats and follow from
nothing. They are taken from the Python package `gguf` (tests/requirements.txt), which has them from ggml.

    build/venv/bin/python tools/gguf_grids.py > src/model/gguf/grids.c

tests/test_formats_gguf.py holds the file to what this writes.
"""

import gguf.quants as quants

PER_LINE = 14
PLACES = [0, 8, 4, 12]
GRIDS = [("gguf_iq1_grid", quants.IQ1_S), ("gguf_iq2_xxs_grid", quants.IQ2_XXS), ("gguf_iq2_xs_grid", quants.IQ2_XS),
         ("gguf_iq2_s_grid", quants.IQ2_S), ("gguf_iq3_xxs_grid", quants.IQ3_XXS), ("gguf_iq3_s_grid", quants.IQ3_S)]
HEAD = """\
/* The grids of GGUF's IQ1, IQ2 and IQ3 types: see format.h for how an entry lies. Written by tools/gguf_grids.py, never by hand.
 * The numbers are the formats' own, from ggml (MIT licence: see NOTICE). */
#include "model/format.h"

/* clang-format off */
"""


def entry(numbers):
    """Four nibbles, number i at bit PLACES[i]: each holds value i and, of eight values with two bits each, value i + 4 above it."""
    word = 0
    for i, number in enumerate(numbers):
        word |= number << PLACES[i % 4] + 2 * (i // 4)
    return word


def grid(kind):
    """A type's entries: each value by its number in the type's list of values."""
    kind.init_grid()
    numbers = {value: number for number, value in enumerate(kind.grid_map)}
    return [entry([numbers[int(value)] for value in row]) for row in kind.grid.reshape(kind.grid_shape)]


def array(name, words):
    rows = (words[i:i + PER_LINE] for i in range(0, len(words), PER_LINE))
    lines = ["    " + ", ".join(f"0x{word:x}" for word in row) + ",\n" for row in rows]
    return f"const uint16_t {name}[{len(words)} + 1] = {{\n{''.join(lines)}}};\n"


def main():
    print(HEAD + "\n".join(array(name, grid(kind)) for name, kind in GRIDS), end="")


if __name__ == "__main__":
    main()
