#!/bin/sh
# `make demo`: the small model that lives in the tree completes a function, fills a hole and answers a question; then its
# numbers, and those of a tiny DeepSeek-V3, are compared with what the training code and DeepSeek's reference code compute.
set -eu
cd "$(dirname "$0")/.."

moebius="${BUILD:-build}/moebius"
out="${BUILD:-build}/demo"
model=models/demo
golden=tests/golden/data/v3-tiny-fp8
mkdir -p "$out"

show() {
    echo
    echo "\$ $*"
}
# What a small model writes may hold control characters; a terminal should not get them. No pipe: a failure must end this.
run() {
    "$moebius" run "$@" >"$out/answer.txt"
    LC_ALL=C tr -d '\000-\011\013-\037\177' <"$out/answer.txt"
    echo
}

show moebius info "$model"
"$moebius" info "$model"

echo
echo "Complete a function:"
prompt='import os


def read_lines(path):
    """Return the lines of a file."""
    with open('
show moebius run "$model" -p "'$prompt'" --echo -n 40 --temp 0.4 --repeat-penalty 1.1 --seed 4
run "$model" -p "$prompt" --echo -n 40 --temp 0.4 --repeat-penalty 1.1 --seed 4

echo "Fill a hole between two files:"
printf 'class Point:\n    def __init__(self, x, y):\n        self.x = x\n' >"$out/prefix.py"
printf '\n    def move(self, dx, dy):\n        self.x += dx\n        self.y += dy\n' >"$out/suffix.py"
show moebius run "$model" --prefix prefix.py --suffix suffix.py -n 16 --temp 0
cat "$out/prefix.py"
run "$model" --prefix "$out/prefix.py" --suffix "$out/suffix.py" -n 16 --temp 0
cat "$out/suffix.py"

echo
echo "Answer a question:"
show moebius run "$model" --chat -p "'Write a function that returns the larger of two numbers.'" -n 56 --temp 0.3 --seed 6
run "$model" --chat -p "Write a function that returns the larger of two numbers." -n 56 --temp 0.3 --seed 6 </dev/null

# The 17-token case of the manifest: its tokens, and the 32 that the reference chooses after them.
list() { # KEY: the numbers of the first list with that name after "id": "p17"
    sed -n '/"id": "p17"/,$p' "$golden/manifest.json" | sed -n "$1" | tr -cd '0-9,' | sed 's/^,*//; s/,*$//'
}
echo
echo "And the numbers: 32 tokens that DeepSeek's reference code chooses with a tiny V3 in FP8 (random weights)."
ids=$(list '/"tokens": \[/,/\]/{p;/\]/q}')
expected=$(list '/"greedy"/,$p' | sed 's/^,*//' | cut -d, -f1-32)
show moebius logits "$golden" --ids "$ids" --greedy 32 --out logits.f32 --compute f32
found=$("$moebius" logits "$golden" --ids "$ids" --greedy 32 --out "$out/logits.f32" --compute f32 | tr -d '[] ')
echo "$found"
if [ "$found" = "$expected" ]; then
    echo "All 32 tokens are those of DeepSeek's reference code."
else
    echo "Expected from DeepSeek's reference code: $expected" >&2
    exit 1
fi
