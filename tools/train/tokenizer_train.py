"""Trains the byte-level BPE and writes tokenizer.json and tokenizer_config.json in the layout of DeepSeek-V2's files.

The steps are V2's kinds of step (Split, Digits, ByteLevel) with rules of our own: an underscore counts as a letter,
so that parts of Python names can become tokens.
"""

import json
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
FIM_HOLE, FIM_BEGIN, FIM_END = "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"
# In V2's order; they get the last ids. The first two are special, as in V2.
ADDED = [BOS, EOS, FIM_HOLE, FIM_BEGIN, FIM_END, "<｜completion｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>"]

# Words of our own; it renders what Coder-V2's template renders.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_steps():
    def split(pattern):
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    return pre_tokenizers.Sequence([
        split("[\r\n]"),
        split(r"\s?[\p{L}_]+"),
        split(r"\s?[!-/:-\^`{-~]+"),
        split(r"\s+$"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def texts_for(documents, chat, seed, limit_bytes):
    order = list(documents)
    random.Random(seed).shuffle(order)
    used = 0
    for document in order:
        if used > limit_bytes:
            break
        used += len(document["text"])
        yield document["text"]
    for sample in chat[:len(chat) // 10]:
        yield f"User: {sample['user']}\n\nAssistant: {sample['assistant']}"


def as_deepseek_file(tokenizer, bpe_size):
    """The trained vocabulary and merges in a file with DeepSeek-V2's keys."""
    trained = json.loads(tokenizer.to_str())
    merges = [m if isinstance(m, str) else " ".join(m) for m in trained["model"]["merges"]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    added = [{"id": bpe_size + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": True, "special": i < 2} for i, text in enumerate(ADDED)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": trained["pre_tokenizer"],
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "vocab": trained["model"]["vocab"], "merges": merges},
    }


def config_file(context):
    def token(text):
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}

    return {"add_bos_token": True, "add_eos_token": False, "bos_token": token(BOS),
            "clean_up_tokenization_spaces": False, "eos_token": token(EOS), "legacy": True,
            "model_max_length": context, "pad_token": token(EOS), "sp_model_kwargs": {}, "unk_token": None,
            "tokenizer_class": "LlamaTokenizerFast", "chat_template": CHAT_TEMPLATE}


def train(documents, chat, vocab, out, seed, limit_bytes=40_000_000):
    bpe_size = vocab - len(ADDED)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = build_steps()
    trainer = trainers.BpeTrainer(vocab_size=bpe_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False, max_token_length=24)
    tokenizer.train_from_iterator(texts_for(documents, chat, seed, limit_bytes), trainer)
    assert tokenizer.get_vocab_size() == bpe_size, "too little text for that many tokens"
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_deepseek_file(tokenizer, bpe_size), ensure_ascii=False, indent=1)
    (out / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = json.dumps(config_file(2048), ensure_ascii=False, indent=2)
    (out / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    check(out / "tokenizer.json", documents[:200])


def check(path, documents):
    """The written file reads back, every text survives, and bytes per token are printed."""
    tokenizer = Tokenizer.from_file(str(path))
    text = "".join(d["text"] for d in documents)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text, "text changed on the way through the tokenizer"
    print(f"tokenizer: {tokenizer.get_vocab_size()} ids, {len(text.encode()) / len(ids):.3f} bytes a token")
