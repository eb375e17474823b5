"""Prompts and fields that steer a model with random weights: biases that leave it only some tokens."""

from serving import EOS_ID, FIM_IDS

PROMPT = "the good people of the world"
NO_END = {str(id): -100 for id in [EOS_ID, *FIM_IDS]}  # the answer runs to its full length
GREEDY = {"temperature": 0, "logit_bias": NO_END}
# What test_messages.py and test_responses.py say in other words.
CHAT_TALK = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "how much time?"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "years\nor days?"},
]


def only(ids, bias=100):
    """Nothing but these tokens can be chosen: the weights' own logits are far smaller than the bias."""
    return {str(id): bias for id in ids}


def letters(engine, text="abcdefgh"):
    """letter -> id"""
    table = {letter: engine.ids(letter) for letter in text}
    assert all(len(ids) == 1 for ids in table.values())
    return {letter: ids[0] for letter, ids in table.items()}


def chat_text(server, messages, **fields):
    return server.chat(messages, **fields)["choices"][0]["message"]["content"]
