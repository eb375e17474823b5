#!/bin/sh
# `make demo`: looks at, runs and checks the largest golden model. Its weights are random, so its text means nothing; the
# numbers do: they are compared with DeepSeek's reference code.
set -eu
cd "$(dirname "$0")/.."

moebius="${BUILD:-build}/moebius"
model="${BUILD:-build}/demo-model"
golden=tests/golden/data/v3-tiny-fp8

mkdir -p "$model"
cp "$golden"/config.json "$golden"/model* tests/golden/tokenizer/*.json "$model"

echo "A tiny DeepSeek-V3 in FP8 (3 layers, 16 experts). Its weights are random: do not look for sense in what it writes."
show() {
    echo
    echo "\$ $*"
}
show moebius info "$model"
"$moebius" info "$model"
show moebius run "$model" -p "'The road goes ever'" -n 48 --seed 1
# What random weights write may hold control characters; a terminal should not get them.
"$moebius" run "$model" -p "The road goes ever" -n 48 --seed 1 >"$model/answer" 2>"$model/timings"
LC_ALL=C tr -d '\000-\011\013-\037\177' <"$model/answer"
cat "$model/timings"

# The 17-token case of the manifest: its tokens, and the 32 that the reference chooses after them.
list() { # KEY: the numbers of the first list with that name after "id": "p17"
    sed -n '/"id": "p17"/,$p' "$golden/manifest.json" | sed -n "$1" | tr -cd '0-9,' | sed 's/^,*//; s/,*$//'
}
prompt=$(list '/"tokens": \[/,/\]/{p;/\]/q}')
expected=$(list '/"greedy"/,$p' | sed 's/^,*//' | cut -d, -f1-32)
show moebius logits "$golden" --ids "$prompt" --greedy 32 --out logits.f32 --compute f32
found=$("$moebius" logits "$golden" --ids "$prompt" --greedy 32 --out "${BUILD:-build}/demo.f32" --compute f32 | tr -d '[] ')
echo "$found"
echo
if [ "$found" = "$expected" ]; then
    echo "All 32 tokens are those of DeepSeek's reference code."
else
    echo "Expected from DeepSeek's reference code: $expected" >&2
    exit 1
fi
