"""Trains the small model; progress with the time left, checkpoints, and an export-ready state at any moment.

    python tools/train/train.py --work DIR --out DIR --minutes 60 --threads 2          # from random weights
    python tools/train/train.py --work DIR --out DIR --minutes 60 --init models/demo   # from exported weights
    python tools/train/train.py --work DIR --out DIR --minutes 60 --resume             # from the last checkpoint

The learning rate warms up, stays, and falls to nothing over the last part of --minutes, in which the rows are longer.
Minutes count only while the training computes. With --minutes raised, --resume goes on with a longer plan.
"""

import argparse
import ctypes
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import bigram
import checkpoint
import data
import evaluate
import experts
import optim
from model import Model

WARMUP_STEPS = 40
SAVE_EVERY_S, HELDOUT_EVERY_S, LOG_EVERY_STEPS = 240, 600, 20


def keep_freed_memory():
    """glibc hands big blocks back to the kernel after every step and takes page faults for them again: not here."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def rate(step, done, decay_share):
    """The share of the full learning rate at `done` (0 to 1) of the time: warm up, stay, fall to zero."""
    return min((step + 1) / WARMUP_STEPS, 1.0, max(1.0 - done, 0.0) / decay_share)


def threads_now(most, is_polite):
    """A polite run takes only as many threads as others leave idle, but always one."""
    if not is_polite:
        return most
    with open("/proc/loadavg", encoding="ascii") as file:
        running = int(file.read().split()[3].split("/")[0])
    return max(1, min(most, os.cpu_count() - (running - 1)))


class Run:
    def __init__(self, options):
        self.options, self.out = options, options.out
        self.out.mkdir(parents=True, exist_ok=True)
        config = json.loads((options.init / "config.json" if options.init else options.config).read_text())
        self.tokens = data.Tokens(options.work / "tokenizer")
        assert config["vocab_size"] >= self.tokens.tokenizer.get_vocab_size(), "tokenizer does not fit the config"
        assert (config["bos_token_id"], config["eos_token_id"]) == (self.tokens.bos, self.tokens.eos)
        if options.init:
            self.model = checkpoint.load(options.init)
        else:
            self.model = Model(config)
            self.model.initialise(options.seed)
            if options.pairs_mb and not options.resume:
                bigram.start_from_pairs(self.model, self.shuffled_documents, self.tokens, options.pairs_mb * 1e6,
                                        options.work / "pairs.pt")
        self.model.to(options.device)
        self.optimizers = optim.build(self.model, options.lr, options.muon_lr)
        self.step, self.seconds, self.n_tokens, self.is_long = 0, 0.0, 0, False
        if options.resume:
            self.restore()
        self.batches, self.is_stopping = None, False
        signal.signal(signal.SIGTERM, self.stop)

    def shuffled_documents(self):
        documents = data.read_jsonl(self.options.work / "corpus.jsonl")
        random.Random(self.options.seed).shuffle(documents)
        return documents

    def stop(self, *_):
        self.is_stopping = True

    def restore(self):
        saved = torch.load(self.out / "checkpoint.pt", map_location=self.options.device)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"]):
            bases = [group["base"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, base in zip(optimizer.param_groups, bases):
                group["base"] = base  # the rates asked for now, not those of the run so far
        self.step, self.seconds, self.n_tokens = saved["step"], saved["seconds"], saved["tokens"]

    def save(self):
        state = {"model": self.model.state_dict(), "config": self.model.config, "step": self.step,
                 "seconds": self.seconds, "tokens": self.n_tokens,
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").rename(self.out / "checkpoint.pt")

    def log(self, **row):
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def open_data(self, is_long):
        """Rows get longer in the last part, so that far positions are learnt as well."""
        options = self.options
        self.is_long = is_long
        row_tokens = options.long_row_tokens if is_long else options.row_tokens
        source = data.Source(options.work, self.tokens, row_tokens, options.seed + self.step)
        self.batches = data.in_background(source.batches(options.step_tokens // row_tokens))

    def train_step(self, share):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * share
        inputs, targets, weights = (part.to(self.options.device) for part in next(self.batches))
        hidden = self.model.hidden_states(inputs)
        loss = experts.head_loss(hidden, self.model.lm_head.weight, targets, weights)
        layers = self.model.moe_layers()
        balance = sum(layer.balance for layer in layers) / len(layers)
        (loss + self.model.config["aux_loss_alpha"] * balance).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.n_tokens += inputs.numel()
        return loss.item(), balance.item()

    def heldout(self):
        rows = evaluate.bits_per_byte(self.model, self.tokens, self.options.heldout)
        self.log(step=self.step, tokens=self.n_tokens, heldout_bits_per_byte=rows)
        print(f"held-out text: {rows:.4f} bits a byte", flush=True)

    def report(self, losses, balance, share, began):
        left = self.options.minutes * 60 - self.seconds
        speed = self.options.step_tokens * len(losses) / (time.time() - began)
        loss = sum(losses) / len(losses)
        print(f"step {self.step}  loss {loss:.4f}  balance {balance:.3f}  rate {share:.3f}  {speed:.0f} tokens/s  "
              f"{self.n_tokens / 1e6:.2f} M tokens  {left / 60:.1f} min left", flush=True)
        load = [[round(x, 4) for x in layer.load.tolist()] for layer in self.model.moe_layers()]
        self.log(step=self.step, tokens=self.n_tokens, seconds=round(self.seconds, 1), loss=round(loss, 4),
                 balance=round(balance, 4), rate=round(share, 4), load=load)

    def wait_while_paused(self):
        pause = self.options.pause_file
        if pause and pause.exists():
            print("paused", flush=True)
            while pause.exists():
                time.sleep(1)
            print("going on", flush=True)

    def loop(self):
        options = self.options
        saved = measured = began = time.time()
        losses = []
        while self.seconds < options.minutes * 60 and not self.is_stopping:
            self.wait_while_paused()
            torch.set_num_threads(threads_now(options.threads, options.polite))
            started = time.time()
            done = self.seconds / (options.minutes * 60)
            is_long = done > 1 - options.long_share
            if self.batches is None or is_long != self.is_long:
                self.open_data(is_long)
            share = rate(self.step, done, options.decay_share)
            loss, balance = self.train_step(share)
            losses.append(loss)
            self.step += 1
            self.seconds += time.time() - started
            if self.step % LOG_EVERY_STEPS == 0:
                self.report(losses, balance, share, began)
                losses, began = [], time.time()
            if time.time() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.time()
            if time.time() - measured > HELDOUT_EVERY_S:
                self.heldout()
                measured = began = time.time()
        self.save()
        if not self.is_stopping:
            self.heldout()


def parse_options():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint.pt and log.jsonl go here")
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parent / "configs/demo.json")
    parser.add_argument("--heldout", type=Path, default=root / "tests/data/heldout")
    parser.add_argument("--init", type=Path, help="exported folder to start from, with fresh optimizer state")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--decay-share", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--polite", action="store_true", help="fewer threads while other programs run (Linux)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pause-file", type=Path, help="while this file exists, nothing is computed")
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--long-row-tokens", type=int, default=2048)
    parser.add_argument("--long-share", type=float, default=0.2, help="the last part of the time, with long rows")
    parser.add_argument("--lr", type=float, default=0.001, help="AdamW: embeddings, head, gates, norms")
    parser.add_argument("--muon-lr", type=float, default=0.006)
    parser.add_argument("--pairs-mb", type=float, default=30, help="text to count pairs in, for embeddings and head")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main():
    options = parse_options()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    run = Run(options)
    count = sum(p.numel() for p in run.model.parameters())
    print(f"{count / 1e6:.2f} M parameters on {options.device}, {options.minutes:g} minutes", flush=True)
    run.loop()


if __name__ == "__main__":
    main()
