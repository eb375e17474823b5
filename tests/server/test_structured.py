"""Structured answers: what comes out has the shape that was asked for, in every way to ask, beside and together with
everything else; what cannot be kept is refused with its place. The model's weights are random, so its answers are random
walks through what is allowed."""

import json
import re
import subprocess
import threading
from typing import Literal, Optional

import jsonschema
import openai
import pydantic
import pytest

import make_tiny_text_model
from serving import FLAGS, GOLDEN, PROGRAM

TALK = [{"role": "user", "content": "hello"}]
# As pydantic writes it.
PERSON = {
    "$defs": {"Color": {"enum": ["red", "green"], "title": "Color", "type": "string"}},
    "properties": {
        "name": {"maxLength": 12, "title": "Name", "type": "string"},
        "age": {"maximum": 130, "minimum": 0, "title": "Age", "type": "integer"},
        "likes": {"items": {"$ref": "#/$defs/Color"}, "maxItems": 3, "title": "Likes", "type": "array"},
        "size": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}], "default": None, "title": "Size"},
    },
    "required": ["name", "age", "likes"], "title": "Person", "type": "object", "additionalProperties": False,
}


def json_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def check_person(text):
    jsonschema.Draft202012Validator(PERSON).validate(json.loads(text))


def test_openai_client(server, client):
    for seed in range(5):
        answer = client.chat.completions.create(model=server.model, messages=TALK, response_format=json_format(PERSON),
                                                max_tokens=400, temperature=1, seed=seed)
        assert answer.choices[0].finish_reason == "stop"
        check_person(answer.choices[0].message.content)


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(max_length=10)
    number: int


class Order(pydantic.BaseModel):
    kind: Literal["new", "old"]
    addresses: list[Address] = pydantic.Field(max_length=2)
    note: Optional[Address] = None


def test_pydantic(server, client):
    """The client makes the schema from a class, and a value of the class from the answer."""
    answer = client.chat.completions.parse(model=server.model, messages=TALK, response_format=Order, max_tokens=500,
                                           temperature=1, seed=2)
    assert isinstance(answer.choices[0].message.parsed, Order)


def test_streams_say_the_same(server, client):
    fields = dict(model=server.model, messages=TALK, response_format=json_format(PERSON), max_tokens=400, temperature=1, seed=7)
    whole = client.chat.completions.create(**fields).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(stream=True, **fields)]
    assert "".join(pieces) == whole and len([piece for piece in pieces if piece]) > 5
    check_person(whole)


def test_several_choices(server):
    answer = server.chat("hello", n=4, response_format=json_format(PERSON), max_tokens=400, temperature=1, seed=3, logprobs=True,
                         top_logprobs=2)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 4
    for text in texts:
        check_person(text)
    for choice in answer["choices"]:
        spelled = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
        assert spelled.decode() == choice["message"]["content"]


def test_many_at_once(server):
    """Each of eight says what it says alone; a plain request runs beside them."""
    def ask(seed):
        return server.chat("hello", response_format=json_format(PERSON), max_tokens=400, temperature=1,
                           seed=seed)["choices"][0]["message"]["content"]

    alone = [ask(seed) for seed in range(8)]
    plain = server.complete("the", max_tokens=60, temperature=1, seed=1)["choices"][0]["text"]
    together, beside = [None] * 8, []
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i))) for i in range(8)]
    threads.append(threading.Thread(
        target=lambda: beside.append(server.complete("the", max_tokens=60, temperature=1, seed=1)["choices"][0]["text"])))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone and beside == [plain]
    for text in together:
        check_person(text)


def test_cut_off(server):
    answer = server.chat("hello", response_format=json_format(PERSON), max_tokens=6, temperature=1, seed=1)["choices"][0]
    assert answer["finish_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer["message"]["content"])


def test_json_object(server, engine):
    # a random walk would seldom close what it opens: blanks, quotes and brackets are made likelier
    bias = {str(engine.ids(text)[-1]): 6 for text in ('"', "}", "]")}
    for seed in range(4):
        answer = server.chat("hello", response_format={"type": "json_object"}, max_tokens=1500, temperature=1, seed=seed,
                             logit_bias=bias)["choices"][0]
        assert answer["finish_reason"] == "stop", answer
        assert isinstance(json.loads(answer["message"]["content"]), dict)


SHAPES = [
    ({"structured_outputs": {"json": PERSON}}, check_person),
    ({"structured_outputs": {"json": json.dumps(PERSON)}}, check_person),
    ({"structured_outputs": {"regex": r"\d{3}-[a-f]{2}"}}, lambda text: re.fullmatch(r"\d{3}-[a-f]{2}", text).group()),
    ({"structured_outputs": {"choice": ["yes", "no"], "json": None}}, ["yes", "no"].index),
    ({"structured_outputs": {"grammar": 'root ::= "(" root ")" | "0"'}}, lambda text: re.fullmatch(r"\(*0\)*", text).group()),
    ({"guided_json": PERSON}, check_person),
    ({"guided_regex": "(ab)+c"}, lambda text: re.fullmatch("(ab)+c", text).group()),
    ({"guided_choice": ["positive", "negative"]}, ["positive", "negative"].index),
    ({"grammar": 'root ::= [0-9]{2,4} "\\n"'}, lambda text: re.fullmatch(r"\d{2,4}\n", text).group()),
    ({"response_format": {"type": "json_object", "schema": PERSON}}, check_person),
]


@pytest.mark.parametrize("fields, check", SHAPES, ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "")
@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_every_spelling(server, fields, check, kind):
    for seed in range(3):
        choice = getattr(server, kind)("hello", max_tokens=400, temperature=1, seed=seed, **fields)["choices"][0]
        assert choice["finish_reason"] == "stop"
        check(choice["text"] if kind == "complete" else choice["message"]["content"])


def test_prompts_and_penalties(server):
    answer = server.complete(["the", "a b"], n=2, max_tokens=400, temperature=0.8, seed=2, guided_json=PERSON, echo=True, logprobs=1,
                             repetition_penalty=1.3, frequency_penalty=0.5, top_p=0.9, top_k=50, min_p=0.001)
    for choice in answer["choices"]:
        check_person(choice["text"].removeprefix("the" if choice["index"] < 2 else "a b"))


def test_llama_cpps_fields(server):
    fields = {"prompt": "the", "n_predict": 400, "temperature": 1, "seed": 3}
    check_person(server.post("/completion", {**fields, "json_schema": PERSON}).json["content"])
    reply = server.post("/completion", {**fields, "grammar": 'root ::= "a" | "b"'}).json
    assert reply["content"] in "ab" and reply["stop_type"] == "eos"


def test_guessed_tokens(server, start, model):
    """Guesses are kept where the grammar agrees, and change nothing."""
    guessing = start(model, *FLAGS, "--draft-max", 8)
    rules = "(abab,){20}[a-z]{5}"
    for seed in range(3):
        for shape, check in (({"guided_json": PERSON}, check_person), ({"guided_regex": rules}, lambda text: re.fullmatch(rules, text).group())):
            fields = {"max_tokens": 400, "temperature": 1, "seed": seed, **shape}
            text = guessing.complete("abab,abab,abab,", **fields)["choices"][0]["text"]
            check(text)
            assert text == server.complete("abab,abab,abab,", **fields)["choices"][0]["text"]
    assert guessing.stop() == 0


def test_stop_string_ends_it_earlier(server):
    choice = server.complete("the", max_tokens=400, guided_json=PERSON, stop=['"likes"'])["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"].startswith("{") and '"likes"' not in choice["text"]


def test_stop_conditions_of_the_text_itself(server):
    """eos where the text may end; ignore_eos and min_tokens change nothing about the shape."""
    for fields in ({}, {"ignore_eos": True}, {"min_tokens": 30}):
        choice = server.complete("the", max_tokens=60, temperature=1, seed=4, guided_regex="[a-z]{3,20}", **fields)["choices"][0]
        assert choice["finish_reason"] == "stop" and re.fullmatch("[a-z]{3,20}", choice["text"])


@pytest.mark.parametrize("fields, param, words", [
    ({"response_format": json_format({"properties": {"a": {"items": {"not": {}}}}})}, "response_format", "#/properties/a/items"),
    ({"response_format": json_format({"type": "array", "contains": {"type": "null"}})}, "response_format", '"contains"'),
    ({"response_format": json_format({"type": "string", "pattern": "(?<=a)b"})}, "response_format", "#/pattern"),
    ({"response_format": json_format({"enum": []})}, "response_format", "enum"),
    ({"response_format": json_format(7)}, "response_format", "schema"),
    ({"response_format": json_format({"$ref": "#/$defs/x"})}, "response_format", "#/$defs/x"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "no schema"),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "json_schema"),
    ({"structured_outputs": {"json": PERSON, "regex": "a"}}, "structured_outputs", "combined"),
    ({"structured_outputs": {"jsn": PERSON}}, "structured_outputs", '"jsn"'),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs", "string"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs", "JSON"),
    ({"guided_json": PERSON, "response_format": {"type": "json_object"}}, "guided_json", "combined"),
    ({"guided_regex": "a("}, "guided_regex", "not closed"),
    ({"guided_choice": []}, "guided_choice", "empty"),
    ({"guided_choice": "yes"}, "guided_choice", "JSON"),
    ({"guided_grammar": "root ::= root \"a\""}, "guided_grammar", "left recursion"),
    ({"guided_regex": "((((a|aa){0,9}){0,999}){0,999}){9,999}" * 20}, "guided_regex", "too many ways"),
    ({"guided_json": {"enum": ["x" * 300000]}}, "guided_json", "too large"),
], ids=lambda value: json.dumps(value)[:50])
def test_refusals(server, fields, param, words):
    reply = server.post("/v1/chat/completions", {"model": server.model, "messages": TALK, **fields})
    assert reply.status == 400, reply
    assert reply.error["type"] == "invalid_request_error" and reply.error["param"] == param
    assert words in reply.error["message"], reply


def test_openai_client_sees_a_bad_request(server, client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=TALK, response_format=json_format({"type": "object", "if": {}}))
    assert caught.value.param == "response_format" and '"if"' in caught.value.message


def test_too_ambiguous_while_it_runs(server, engine):
    """It ends its own answer, as the client's mistake, and nobody else's."""
    bias = {str(engine.ids("b")[-1]): -100}
    reply = server.post("/v1/completions", {"model": server.model, "prompt": "the", "max_tokens": 1000, "logit_bias": bias,
                                            "guided_regex": "(((a|aa){0,100}){0,100}){0,100}b"})
    assert reply.status == 400 and "too many ways" in reply.error["message"], reply
    assert server.complete("the", max_tokens=2)["usage"]["completion_tokens"] == 2


# --- models that reason -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory):
    """The tiny model with the marks of R1's reasoning, in place of those of fill-in-the-middle."""
    folder = tmp_path_factory.mktemp("reasoner") / "tiny"
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", folder)
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    for old, new in zip(("begin", "hole", "end"), ("<think>", "</think>", "<\uff5cAssistant\uff5c>")):
        text = text.replace(f"<\uff5cfim\u2581{old}\uff5c>", new)
    path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("template, kwargs, thinks", [
    ("deepseek-r1", {}, True), ("deepseek-r1-0528", {}, True), ("deepseek-v3.1", {"thinking": True}, True),
    ("deepseek-v3.1", {}, False), ("deepseek-v3-0324", {}, False), ("deepseek-v3.2", {"thinking": True}, True), ("deepseek-v3.2", {}, False),
])
def test_after_reasoning(start, reasoner, template, kwargs, thinks):
    server = start(reasoner, *FLAGS, "--chat-template", template)
    fields = {"max_tokens": 1500, "temperature": 1, "seed": 5, "guided_json": PERSON, "skip_special_tokens": False,
              "chat_template_kwargs": kwargs}
    message = server.chat("hello", logit_bias={"254": 4}, **fields)["choices"][0]["message"]
    assert bool(message.get("reasoning_content", "").strip()) == thinks, message
    check_person(message["content"])
    never = server.chat("hello", logit_bias={"254": -100, "1": 100}, **{**fields, "max_tokens": 50})["choices"][0]
    assert never["finish_reason"] == "length" or not thinks  # eos does not end a thought
    assert server.stop() == 0


# --- the command line -------------------------------------------------------------------------------------------------


def run(model, *flags):
    return subprocess.run([PROGRAM, "run", model, "-p", "the", "-n", "400", "--temp", "1", "--seed", "3", *flags], capture_output=True,
                          text=True, timeout=60)


def test_run(model, tmp_path):
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    first, second = run(model, "--json-schema", json.dumps(PERSON)), run(model, "-j", str(file))
    check_person(first.stdout)
    assert first.stdout == second.stdout
    assert re.fullmatch("[a-c]{4}\n", run(model, "--regex", "[a-c]{4}").stdout)
    (tmp_path / "rules").write_text('root ::= "x" [0-9]+ "y"\n')
    assert re.fullmatch("x[0-9]+y\n", run(model, "--grammar-file", str(tmp_path / "rules")).stdout)
    assert run(model, "--grammar", 'root ::= "yes"').stdout == "yes\n"
    wrong = run(model, "-j", '{"type": "integer", "multipleOf": 3}')
    assert wrong.returncode != 0 and "--json-schema: #: the keyword" in wrong.stderr
    assert run(model, "-j", "{}", "--regex", "a").returncode == 2
