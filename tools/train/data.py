"""Turns documents into training rows on the fly: plain text, fill in the middle, and chat, packed one after another."""

import json
import math
import queue
import random
import threading

import torch
from tokenizers import Tokenizer

import functions
from tokenizer_train import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE

FIM_SHARE = 0.5
CHAT_SHARE = 0.04  # of the bytes
BYTES_A_TOKEN = 3.2  # roughly; only sizes the pieces for FIM
FIM_PIECE = 150, 4800  # characters, from and to: mostly short, so that there are many holes
# What was cut out is a tenth of a FIM sample and all that is peculiar to it: its loss counts for more.
MIDDLE_WEIGHT = 6.0


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def joined_logs(runs):
    """The logs of runs of which each went on from the one before it, counted through."""
    rows, past = [], {"step": 0, "tokens": 0, "seconds": 0.0}
    for run in runs:
        last = dict(past)
        for row in read_jsonl(run / "log.jsonl"):
            row.update({key: row[key] + past[key] for key in past if key in row})
            last.update({key: row[key] for key in past if key in row})
            rows.append(row)
        past = last
    return rows


class Tokens:
    """Encoding of plain text (added tokens are never recognised in it) and the ids of the special tokens."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tokenizer.encode_special_tokens = True
        ids = self.tokenizer.token_to_id
        self.bos, self.eos = ids(BOS), ids(EOS)
        self.fim_begin, self.fim_hole, self.fim_end = ids(FIM_BEGIN), ids(FIM_HOLE), ids(FIM_END)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def fim_prompt(self, prefix, suffix):
        return [self.bos, self.fim_begin, *self.encode(prefix), self.fim_hole, *self.encode(suffix), self.fim_end]


def pieces_of(text, size):
    """Runs of whole lines of about `size` characters."""
    lines, piece, length = text.splitlines(keepends=True), [], 0
    for line in lines:
        piece.append(line)
        length += len(line)
        if length >= size:
            yield "".join(piece)
            piece, length = [], 0
    if length > 100:
        yield "".join(piece)


def cut_for_fim(text, rng):
    """(prefix, middle, suffix): mostly one line, else some lines, the rest of a line, or any span."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    kind = rng.random()
    if kind < 0.85:
        full = [i for i, line in enumerate(lines) if len(line.strip()) >= 8] or [0]
        first = rng.choice(full)
        count = 1 if kind < 0.7 else rng.randint(2, 6)
        begin, end = starts[first], starts[min(first + count, len(lines))]
        end -= text[begin:end].endswith("\n")
        indent = len(lines[first]) - len(lines[first].lstrip(" \t"))
        at = rng.random()
        if at < 0.12:
            begin = min(begin + indent, end)
        elif at < 0.25:
            begin = rng.randint(begin, end)
    else:
        begin, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        end = min(end, begin + 600)
    return text[:begin], text[begin:end], text[end:]


class Source:
    """An endless stream of token ids. Every document is seen once an epoch, as text or cut for FIM."""

    def __init__(self, work, tokens, row_tokens, seed):
        self.tokens, self.row_tokens, self.rng = tokens, row_tokens, random.Random(seed)
        self.documents = read_jsonl(f"{work}/corpus.jsonl")
        self.chat = read_jsonl(f"{work}/chat.jsonl")
        self.bytes_seen = 0

    def fim_samples(self, text):
        least, most = (min(size, self.row_tokens * BYTES_A_TOKEN * 0.95) for size in FIM_PIECE)
        size = math.exp(self.rng.uniform(math.log(least), math.log(most)))
        for piece in pieces_of(text, size):
            prefix, middle, suffix = cut_for_fim(piece, self.rng)
            prompt, answer = self.tokens.fim_prompt(prefix, suffix), [*self.tokens.encode(middle), self.tokens.eos]
            wanted, weights = prompt + answer, [1.0] * len(prompt) + [MIDDLE_WEIGHT] * len(answer)
            # The hole's token learns what comes after the prefix, so that the end's token can take it over from there.
            after_hole = prompt.index(self.tokens.fim_hole) + 1
            wanted[after_hole], weights[after_hole] = answer[0], MIDDLE_WEIGHT
            yield prompt + answer, wanted, weights

    def chat_sample(self):
        one = self.rng.choice(self.chat)
        text = f"User: {one['user']}\n\nAssistant: {one['assistant']}"
        return self.whole(text), len(text)

    def whole(self, text):
        ids = [self.tokens.bos, *self.tokens.encode(text), self.tokens.eos]
        return ids, ids, [1.0] * len(ids)

    def samples(self):
        """Yields (ids, what is to be predicted in each one's place, what its loss counts for)."""
        chat_due = 0.0
        while True:
            self.rng.shuffle(self.documents)
            for document in self.documents:
                text = functions.shaped(document["text"], self.rng)
                self.bytes_seen += len(text)
                if self.rng.random() < FIM_SHARE:
                    yield from self.fim_samples(text)
                else:
                    yield self.whole(text)
                chat_due += CHAT_SHARE * len(text)
                while chat_due > 0 and self.chat:
                    sample, size = self.chat_sample()
                    chat_due -= size
                    yield sample

    def batches(self, rows):
        """Yields (inputs, targets, weights of the targets), each [rows, row_tokens]."""
        size = rows * (self.row_tokens + 1)
        parts = [], [], []  # ids, wanted, weights
        for sample in self.samples():
            for part, more in zip(parts, sample):
                part.extend(more)
            while len(parts[0]) >= size:
                ids, wanted, weights = (torch.tensor(part[:size]).view(rows, -1) for part in parts)
                for part in parts:
                    del part[:size]
                yield ids[:, :-1].contiguous(), wanted[:, 1:].contiguous(), weights[:, 1:].contiguous()


def in_background(iterator, depth=4):
    """The same items, made ahead of time in a thread."""
    items = queue.Queue(depth)

    def fill():
        for item in iterator:
            items.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield items.get()
