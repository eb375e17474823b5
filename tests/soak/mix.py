"""What is asked in a soak: seeded requests of every API and kind, of which an answer depends on the body alone, and bytes that are
no request at all. Texts are cut from files of this tree, so that many begin alike."""

import json
import string
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ["README.md", "DESIGN.md", "src/sched/sched.c", "src/server/http.c", "tests/server/serving.py", "src/text/unicode.c"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "minimum": 0, "maximum": 99},
                   "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 2}},
    "required": ["name", "n"], "additionalProperties": False,
}
PATTERN = "(yes|no|[0-9]{2,4}), (left|right)"
RULES = 'root ::= "<" [a-z]{1,6} ">" ("+" | "-"){2,3}'
TOOL = {"name": "look_up", "description": "Finds <things>.", "parameters": SCHEMA}


class Item:
    """One request; `body` has no "stream". What shape its text must have if the model ended it: a schema, an expression, or none."""

    def __init__(self, path, body, schema=None, pattern=None):
        self.path, self.body, self.schema, self.pattern = path, body, schema, pattern
        self.expected = None  # the answer when nothing else ran

    def __repr__(self):
        return f"{self.path} {json.dumps(self.body)[:600]}"


def documents():
    files = [ROOT / name for name in SOURCES]
    return [path.read_text(encoding="utf-8") for path in files if path.is_file()]


DOCUMENTS = documents()


def some_text(rng, longest=5000):
    """Mostly the beginning of one of few texts, sometimes any characters that UTF-8 has."""
    if rng.random() < 0.1:
        ranges = [(0x20, 0x7e), (0, 0x1f), (0xa0, 0x17f), (0x4e00, 0x9fff), (0x1f300, 0x1faff), (0xe000, 0xffff)]
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(1, 60)))
    text = rng.choice(DOCUMENTS)
    start = rng.choice([0, 0, 0, rng.randrange(len(text))])
    return text[start:start + int(longest ** rng.random()) + 1]


def steering(rng):
    """Fields of OpenAI's that decide which token comes next; greedy half of the time."""
    fields = {"temperature": 0} if rng.random() < 0.5 else {"temperature": rng.choice([0.3, 1, 1.7]), "seed": rng.randrange(1000)}
    if rng.random() < 0.3:
        fields |= rng.choice([{"presence_penalty": 0.7}, {"frequency_penalty": -0.5}, {"repetition_penalty": 1.2}, {"top_p": 0.8},
                              {"top_k": 5}, {"min_p": 0.1}, {"logit_bias": {str(rng.randrange(6000)): rng.choice([-100, 20, 3.5])}}])
    if rng.random() < 0.2:
        fields["stop"] = rng.choice([["\n"], [" the", "e"], [".", "\n\n", ")"], "zzz"])
    if rng.random() < 0.2:
        fields |= rng.choice([{"ignore_eos": True}, {"min_tokens": 3}, {"stop_token_ids": [rng.randrange(6000)]},
                              {"include_stop_str_in_output": True}, {"skip_special_tokens": False}])
    if rng.random() < 0.15:
        fields["cache_salt"] = rng.choice("ab")
    return fields


def shape(rng, chat):
    """(fields, schema, pattern)"""
    kind = rng.random()
    if kind < 0.5:
        said = {"json_schema": {"name": "a", "schema": SCHEMA, "strict": True}, "type": "json_schema"}
        return ({"response_format": said} if chat or rng.random() < 0.5 else {"guided_json": SCHEMA}), SCHEMA, None
    if kind < 0.6 and chat:
        return {"response_format": {"type": "json_object"}}, None, None
    if kind < 0.8:
        return {"structured_outputs": {"regex": PATTERN}}, None, PATTERN
    return {"structured_outputs": {"grammar": RULES}}, None, "<[a-z]{1,6}>[+-]{2,3}"


def talk(rng):
    messages = [{"role": "user", "content": some_text(rng)}]
    if rng.random() < 0.3:
        messages = [{"role": "user", "content": some_text(rng, 500)}, {"role": "assistant", "content": some_text(rng, 500)}, *messages]
    if rng.random() < 0.3:
        messages = [{"role": "system", "content": some_text(rng, 200)}, *messages]
    return messages


def length(rng):
    return rng.choice([1, 2, *[rng.randrange(1, 72) for _ in range(4)], 300])


# --- one function for each API ---------------------------------------------------------------------------------------


def completion(rng):
    body = {"prompt": some_text(rng), "max_tokens": length(rng), **steering(rng)}
    schema = pattern = None
    kind = rng.random()
    if kind < 0.2:
        body["suffix"] = some_text(rng, 800)
    elif kind < 0.3:
        body |= {"echo": True, "logprobs": 2}
        body["prompt"] = body["prompt"][:600]
    elif kind < 0.4:
        body["prompt"] = [rng.randrange(100, 6000) for _ in range(rng.randrange(1, 300))]
    elif kind < 0.5:
        body |= {"prompt": [some_text(rng, 300) for _ in range(rng.randrange(1, 4))], "n": 2}
    elif kind < 0.65:
        fields, schema, pattern = shape(rng, False)
        body |= {**fields, "max_tokens": 150}
        body.pop("stop", None)
    if rng.random() < 0.25 and "echo" not in body:
        body["logprobs"] = rng.randrange(6)
    if rng.random() < 0.15 and isinstance(body["prompt"], str):
        body["n"] = 3
    return Item("/v1/completions", body, schema, pattern)


def chat(rng):
    body = {"messages": talk(rng), "max_tokens": length(rng), **steering(rng)}
    schema = pattern = None
    kind = rng.random()
    if kind < 0.25:
        body |= {"tools": [{"type": "function", "function": TOOL}], "tool_choice": rng.choice(["auto", "required"]), "max_tokens": 150}
        body.pop("stop", None)
    elif kind < 0.5:
        fields, schema, pattern = shape(rng, True)
        body |= {**fields, "max_tokens": 150}
        body.pop("stop", None)
    if rng.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": rng.randrange(5)}
    if rng.random() < 0.15:
        body["n"] = 2
    return Item(rng.choice(["/v1/chat/completions", "/chat/completions"]), body, schema, pattern)


def messages(rng):
    body = {"messages": [m for m in talk(rng) if m["role"] != "system"], "max_tokens": length(rng), "temperature": 0, "model": "demo"}
    if rng.random() < 0.3:
        body["system"] = some_text(rng, 200)
    if rng.random() < 0.3:
        body |= {"tools": [{"name": TOOL["name"], "input_schema": SCHEMA}], "tool_choice": {"type": rng.choice(["auto", "any"])},
                 "max_tokens": 150}
    elif rng.random() < 0.3:
        body["stop_sequences"] = ["\n", " the"]
    return Item("/v1/messages", body)


def responses(rng):
    body = {"input": rng.choice([some_text(rng), talk(rng)]), "max_output_tokens": length(rng), "temperature": 0, "model": "demo"}
    schema = None
    if rng.random() < 0.3:
        schema = SCHEMA
        body |= {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}, "max_output_tokens": 150}
    return Item("/v1/responses", body, schema)


def llama(rng):
    body = {"prompt": some_text(rng), "n_predict": length(rng), "temperature": rng.choice([0, 0.8]), "seed": rng.randrange(1000)}
    if rng.random() < 0.3:
        body |= rng.choice([{"n_probs": 3}, {"stop": ["\n"]}, {"cache_prompt": False}, {"repeat_penalty": 1.3, "repeat_last_n": 32}])
    if rng.random() < 0.2:
        return Item("/completion", {**body, "n_predict": 150, "json_schema": SCHEMA}, SCHEMA)
    return Item("/completion", body)


def infill(rng):
    body = {"input_prefix": some_text(rng), "input_suffix": some_text(rng, 1000), "n_predict": length(rng), "temperature": 0,
            "prompt": rng.choice(["", "    x = ", "ret"])}
    if rng.random() < 0.5:
        body["input_extra"] = [{"filename": f"f{i}.py", "text": some_text(rng, 600)} for i in range(rng.randrange(3))]
    return Item("/infill", body)


def ollama(rng):
    options = {"num_predict": length(rng), "temperature": rng.choice([0, 1]), "seed": rng.randrange(1000)}
    if rng.random() < 0.3:
        options["stop"] = ["\n"]
    fields, schema = {"options": options, "model": rng.choice(["demo", "demo:latest"])}, None
    if rng.random() < 0.2:
        schema = SCHEMA
        options |= {"num_predict": 150, "stop": []}
        fields["format"] = SCHEMA
    if rng.random() < 0.5:
        return Item("/api/chat", {"messages": talk(rng), **fields}, schema)
    body = {"prompt": some_text(rng), **fields}
    body |= rng.choice([{}, {"raw": True}, {"suffix": some_text(rng, 500)}]) if not schema else {}
    return Item("/api/generate", body, schema)


def other(rng):
    """No tokens are made, or none can be."""
    text = some_text(rng)
    return rng.choice([
        Item("/tokenize", {"prompt": text}), Item("/detokenize", {"tokens": [rng.randrange(6000) for _ in range(50)]}),
        Item("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": text}], "model": "demo"}),
        Item("/v1/responses/input_tokens", {"input": text, "model": "demo"}), Item("/apply-template", {"messages": talk(rng)}),
        Item("/v1/embeddings", {"input": text}), Item("/api/embed", {"model": "demo", "input": text}),
        Item("/v1/completions", {"prompt": text * 200 + " x" * 9000, "max_tokens": 1}), Item("/v1/completions", {"prompt": "", "temperature": 0}),
        Item("/v1/chat/completions", {"messages": []}), Item("/v1/chat/completions", {"messages": [{"role": "cat", "content": "x"}]}),
        Item("/v1/completions", {"prompt": "x", "model": "absent"}), Item("/v1/completions", {"prompt": "x", "guided_regex": "(("}),
        Item("/v1/completions", {"prompt": "x", "temperature": -1}), Item("/v1/nothing", {}),
        Item("/infill", {"input_prefix": 3}), Item("/api/generate", {"model": "absent", "prompt": "x"}),
    ])


KINDS = [(completion, 6), (chat, 6), (messages, 2), (responses, 2), (llama, 2), (infill, 2), (ollama, 4), (other, 3)]


def pool(rng, n):
    functions, weights = zip(*KINDS)
    return [function(rng) for function in rng.choices(functions, weights, k=n)]


# --- what may be a request, and what is none ----------------------------------------------------------------------------------------------


def post(path, body, *headers, method="POST", version="1.1"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(data)}",
             *headers, "", ""]
    return "\r\n".join(lines).encode() + data


ODD = [None, True, False, 0, 1, -1, 2, 0.5, 1e-30, 1e30, -1e30, 2**31, 2**53, -2**63, "", "x", "\u0000", "\ufffe", "é" * 300, [], [[]], {},
       {"type": "object"}, [None], [""], [0], [-1, 6143, 6144], {"0": 100, "6143": -100}, {str(i): -100 for i in range(300)}]
FIELDS = ["temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "best_of", "logprobs", "top_logprobs", "logit_bias", "echo",
          "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty", "repeat_last_n", "min_tokens", "ignore_eos",
          "stop_token_ids", "cache_salt", "suffix", "guided_json", "guided_regex", "guided_grammar", "guided_choice", "structured_outputs",
          "response_format", "json_schema", "grammar", "format", "tools", "tool_choice", "stream", "stream_options", "prompt", "messages",
          "input", "system", "model", "options", "n_predict", "n_probs", "n_keep", "id_slot", "t_max_predict_ms", "n_indent", "response_fields",
          "samplers", "input_extra", "input_prefix", "raw", "think", "keep_alive", "truncate", "context", "template", "images", "thinking",
          "reasoning_effort", "chat_template_kwargs", "user", "metadata", "return_token_ids", "skip_special_tokens", "continue_final_message"]


def odd_ones(rng, value, depth=0):
    """The same with one or two values inside replaced."""
    if isinstance(value, dict) and value and depth < 4 and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: odd_ones(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and depth < 4 and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], odd_ones(rng, value[at], depth + 1), *value[at + 1:]]
    return rng.choice(ODD)


def mutant(rng, body):
    """Nearly a request: some fields have odd values. Short, if it should turn out to be good."""
    for _ in range(rng.randrange(1, 4)):
        body = odd_ones(rng, body) if rng.random() < 0.4 else {**body, rng.choice(FIELDS): rng.choice(ODD)}
        if not isinstance(body, dict):
            return body
    short = {"options": {**body["options"], "num_predict": 9}} if isinstance(body.get("options"), dict) else {}
    return {**body, "max_tokens": 9, "max_output_tokens": 9, "n_predict": 9, **short}


def garbage(rng):
    """Bytes to which the answer is an error of the client's (or 200 for what turns out to be good), or a closed connection."""
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/api/chat", "/v1/messages", "/infill", "/tokenize"])
    noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 400)))
    letters = "".join(rng.choices(string.ascii_letters, k=rng.choice([10, 3000, 40000])))
    good = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    return rng.choice([
        noise, noise + b"\r\n\r\n", b"\0" * 100, b"\r\n" * 50, b"GET /health HTTP/9.9\r\n\r\n", b"GET\r\n\r\n",
        post(path, noise), post(path, b'{"prompt": "\xff\xfe"}'), post(path, b'{"prompt": "\\ud800"}'), post(path, b""),
        post(path, b"[" * 5000), post(path, b'{"a":' * 3000), post(path, b"nul"), post(path, b'{"prompt": "x\\u0000y", "max_tokens": 1}'),
        post(path, b'{"messages": [{"role": "user", "content": "\\u0000"}], "max_tokens": 1}'), post(path, good[:-4]),
        post(path, good, f"X-Long: {letters}"), post(path, good, *[f"X-{i}: {i}" for i in range(rng.choice([50, 2000]))]),
        post(path, good, "Transfer-Encoding: chunked"), post(path, good, "Content-Length: 3"), post(path, good, "X-Request-ID: \x01\x02"),
        post(path, good, "Authorization: Bearer " + letters), post(path + "?" + letters, good), post("/" + letters, good),
        post(path, good, method="PUT"), post(path, good, method="BREW"), post(path, good, "Expect: 417-nothing"),
        post(path, good, version="1.0"), post(path.replace("/", "//"), good), post(path + "/%00%ff%zz", good),
        f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n".encode() + noise,
        f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n".encode(),
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {rng.choice(['-1', '9' * 30, '0x10', ' '])}\r\n\r\n".encode() + good,
    ])
