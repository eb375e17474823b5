"""A whole reply of any API -> what must be the same whenever the same is asked, streamed or not; what is not well formed is an error.

    {"status": 200, "choices": [{"text", "thought", "calls", "finish", "logprobs"}], "prompt": tokens, "tokens": tokens}
    {"status": 400, "code": ...}
"""

import json
import re

import jsonschema
from serving import parse_events, parse_named_events

VOLATILE = {"id", "created", "created_at", "fingerprint", "system_fingerprint"}


class Malformed(AssertionError):
    pass


def must(truth, *said):
    if not truth:
        raise Malformed(" ".join(str(word)[:1500] for word in said))


def read(item, stream, status, headers, body):
    try:
        if status != 200:
            return read_error(status, headers, body)
        kind = headers.get("content-type", "").split(";")[0]
        reader, wanted = READERS.get(item.path, (read_other, None))
        must(kind == (wanted if stream and wanted else "application/json"), "content-type", kind)
        answer = reader(stream, body)
    except Malformed:
        raise
    except (AssertionError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise Malformed(f"{type(error).__name__} {error}: {body[:1500]}") from error
    for choice in answer.get("choices", []):
        check_shape(item, choice)
    return answer


def check_shape(item, choice):
    """An answer with a shape, which the model ended by itself, has it; arguments of calls are objects of theirs."""
    if choice["finish"] in ("stop", "end_turn", "completed", "eos", "tool_calls", "tool_use"):
        if item.schema:
            jsonschema.validate(json.loads(choice["text"]), item.schema)
        must(not item.pattern or re.fullmatch(item.pattern, choice["text"]), item.pattern, choice["text"])
        for name, arguments in choice["calls"]:
            must(name == "look_up", name)
            jsonschema.validate(arguments if isinstance(arguments, dict) else json.loads(arguments), SCHEMA_OF_CALLS)


SCHEMA_OF_CALLS = {"type": "object"}


def new_choice():
    return {"text": "", "thought": "", "calls": [], "finish": None, "logprobs": []}


def read_error(status, headers, body):
    must(headers.get("content-type", "").startswith("application/json"), status, headers, body)
    error = json.loads(body)["error"]
    if isinstance(error, str):  # Ollama's
        return {"status": status, "code": error}
    must(isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str), body)
    return {"status": status, "code": error.get("code") or error["type"]}


def strip(value):
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in VOLATILE}
    return [strip(v) for v in value] if isinstance(value, list) else value


def read_other(_, body):
    return {"status": 200, "other": strip(json.loads(body))}


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def add_calls(choice, calls):
    for call in calls or []:
        at = call.get("index", len(choice["calls"]))
        while len(choice["calls"]) <= at:
            choice["calls"].append(["", ""])
        choice["calls"][at][0] += call["function"].get("name") or ""
        choice["calls"][at][1] += call["function"].get("arguments") or ""


def add_logprobs(choice, logprobs):
    if not logprobs:
        return
    if "content" in logprobs:
        choice["logprobs"] += [[t["token"], t["logprob"], [[u["token"], u["logprob"]] for u in t["top_logprobs"]]] for t in logprobs["content"]]
    else:
        tops = logprobs["top_logprobs"] or [None] * len(logprobs["tokens"])
        must(len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == len(tops), logprobs)
        choice["logprobs"] += [list(t) for t in zip(logprobs["tokens"], logprobs["token_logprobs"], tops)]


def read_openai(stream, body):
    parts = parse_events(body) if stream else [json.loads(body)]
    choices, usage = {}, None
    for part in parts:
        must("error" not in part, part)
        usage = part.get("usage") or usage
        for piece in part["choices"]:
            choice = choices.setdefault(piece["index"], new_choice())
            must(choice["finish"] is None, "after its end", piece)
            said = piece.get("delta") or piece.get("message") or {"content": piece.get("text")}
            choice["text"] += said.get("content") or ""
            choice["thought"] += said.get("reasoning_content") or ""
            add_calls(choice, said.get("tool_calls"))
            add_logprobs(choice, piece.get("logprobs"))
            choice["finish"] = piece["finish_reason"]
    must(sorted(choices) == list(range(len(choices))) and choices, sorted(choices))
    for choice in choices.values():
        must(choice["finish"] in ("stop", "length", "tool_calls"), choice)
    return {"status": 200, "choices": [choices[i] for i in sorted(choices)], "prompt": usage["prompt_tokens"],
            "tokens": usage["completion_tokens"]}


# --- Anthropic, Responses --------------------------------------------------------------------------------------------


def join_events(body):
    """A streamed message, put together again."""
    message, blocks, arguments = None, [], {}
    events = parse_named_events(body)
    must(events[-1]["type"] == "message_stop", events[-1])
    for event in events:
        kind, at = event["type"], event.get("index")
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            must(at == len(blocks), event)
            blocks.append(dict(event["content_block"]))
            arguments[at] = ""
        elif kind == "content_block_delta":
            delta = event["delta"]
            arguments[at] += delta.get("partial_json", "")
            for key in ("text", "thinking"):
                if key in delta:
                    blocks[at][key] += delta[key]
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
        must(kind != "error", event)
    for at, block in enumerate(blocks):
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments[at] or "{}") if message["stop_reason"] == "tool_use" else {}
    message["content"] = blocks
    return message


def read_messages(stream, body):
    message = join_events(body) if stream else json.loads(body)
    choice = new_choice()
    for block in message["content"]:
        choice["text"] += block.get("text", "")
        choice["thought"] += block.get("thinking", "")
        if block["type"] == "tool_use":
            choice["calls"].append([block["name"], block["input"] if message["stop_reason"] == "tool_use" else {}])
    choice["finish"] = message["stop_reason"]
    must(choice["finish"] in ("end_turn", "max_tokens", "stop_sequence", "tool_use"), message)
    usage = message["usage"]
    return {"status": 200, "choices": [choice], "prompt": usage["input_tokens"] + usage.get("cache_read_input_tokens", 0),
            "tokens": usage["output_tokens"]}


def read_responses(stream, body):
    response = json.loads(body) if not stream else None
    if stream:
        events = parse_named_events(body)
        must([e["sequence_number"] for e in events] == list(range(len(events))), "sequence numbers")
        must(events[-1]["type"] in ("response.completed", "response.incomplete"), events[-1])
        response = events[-1]["response"]
    choice = new_choice()
    for output in response["output"]:
        if output["type"] == "message":
            choice["text"] += "".join(part["text"] for part in output["content"])
    if stream:
        deltas = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        must(deltas == choice["text"], "deltas", deltas, "text", choice["text"])
    choice["finish"] = response["status"]
    usage = response["usage"]
    return {"status": 200, "choices": [choice], "prompt": usage["input_tokens"], "tokens": usage["output_tokens"]}


# --- llama.cpp, Ollama -----------------------------------------------------------------------------------------------


def read_llama(stream, body):
    parts = [json.loads(body)]if not stream else [
        json.loads(frame.removeprefix("data: ")) for frame in body.decode().removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    must([part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True], parts[-3:])
    choice, last = new_choice(), parts[-1]
    choice["text"] = "".join(part["content"] for part in parts)
    choice["finish"] = last["stop_type"]
    return {"status": 200, "choices": [choice], "prompt": last["tokens_evaluated"], "tokens": last["tokens_predicted"]}


def read_ollama(stream, body):
    parts = [json.loads(line) for line in body.decode().removesuffix("\n").split("\n")]
    must(all("error" not in part for part in parts), parts[-1])
    must([part["done"] for part in parts] == [False] * (len(parts) - 1) + [True], parts[-3:])
    choice, last = new_choice(), parts[-1]
    choice["text"] = "".join(part["response"] if "response" in part else part["message"]["content"] for part in parts)
    choice["finish"] = last["done_reason"]
    return {"status": 200, "choices": [choice], "prompt": last["prompt_eval_count"], "tokens": last["eval_count"]}


SSE, LINES = "text/event-stream", "application/x-ndjson"
READERS = {
    "/v1/completions": (read_openai, SSE), "/v1/chat/completions": (read_openai, SSE), "/chat/completions": (read_openai, SSE),
    "/v1/messages": (read_messages, SSE), "/v1/responses": (read_responses, SSE), "/completion": (read_llama, SSE),
    "/infill": (read_llama, SSE), "/api/generate": (read_ollama, LINES), "/api/chat": (read_ollama, LINES),
}


def body_of(item, stream):
    """The body with "stream" said as its API wants it, and usage where it has to be asked for."""
    if item.path not in READERS:
        return item.body
    body = {**item.body, "stream": stream}
    if stream and READERS[item.path][0] is read_openai:
        body["stream_options"] = {"include_usage": True}
    return body
