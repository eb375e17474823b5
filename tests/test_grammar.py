"""Structured answers, as texts: what the grammars allow is taken at random, token by token, and held against Python's `json`,
`jsonschema` and `re`. The program that takes the texts is tests/unit/test_grammar (`walk`)."""

import itertools
import json
import random
import re
import statistics
import subprocess
from pathlib import Path

import jsonschema
import pytest

import conftest

PROGRAM = Path(conftest.PROGRAM).parent / "tests" / "unit" / "test_grammar"
LARGE = conftest.SHARED / "tokenizers" / "deepseek-v3" / "tokenizer.json"


class Walker:
    def __init__(self, *tokenizer):
        self.process = subprocess.Popen([PROGRAM, "walk", *tokenizer], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        encoding="utf-8")

    def ask(self, kind, text, **fields):
        text = text if isinstance(text, str) else json.dumps(text)
        self.process.stdin.write(json.dumps({"kind": kind, "text": text, **fields}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def texts(self, kind, text, walks=30, seed=1):
        answer = self.ask(kind, text, walks=walks, seed=seed)
        assert "error" not in answer, (text, answer["error"])
        assert answer["unfinished"] <= walks // 10, (text, answer["unfinished"])
        return answer["texts"]

    def accepts(self, kind, text, tries):
        answer = self.ask(kind, text, **{"try": tries})
        assert "error" not in answer, (text, answer["error"])
        return answer["accepts"]


    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


@pytest.fixture(scope="module")
def walker():
    walker = Walker()
    yield walker
    walker.close()


def validator(schema):
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


PERSON = {
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "title": "Name", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 130},
        "score": {"anyOf": [{"type": "number", "minimum": -1, "maximum": 1}, {"type": "null"}], "default": None},
        "tags": {"type": "array", "items": {"enum": ["red", "green", 3, None, 0.1]}, "maxItems": 4},
        "home": {"$ref": "#/$defs/Address"},
    },
    "required": ["name", "age", "home"],
    "$defs": {"Address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"pattern": "^[0-9]{5}$"}},
                          "required": ["zip"], "additionalProperties": False}},
}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["value"], "properties": {
    "value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}}}}

SCHEMAS = [
    {}, PERSON, TREE,
    {"type": "object"},
    {"type": ["string", "null", "boolean"], "maxLength": 5},
    {"type": "object", "properties": {}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 3},
    {"type": "object", "properties": {"a": {"type": "null"}, "ab": {"type": "null"}, "é": {"type": "null"}},
     "required": ["ab"], "additionalProperties": {"type": "boolean"}},
    {"type": "object", "required": ["x y", 'quo"te'], "additionalProperties": {"type": "integer"}},
    {"type": "object", "propertyNames": {"enum": ["one", "two"]}, "additionalProperties": {"const": 1}},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False},
    {"properties": {"a": {}, "b": {"type": "array"}}, "maxProperties": 2},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 3}], "items": False},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": {"const": "x"}, "minItems": 1,
     "maxItems": 5},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}, {"const": 3}], "minItems": 2, "maxItems": 2},
    {"type": "array", "maxItems": 0},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "string", "pattern": "^(\\w{1,3}, )*[\"\\\\/\\n\\u00e9]$"},
    {"type": "string", "pattern": "ab|^c|d$"},
    {"type": "string", "pattern": "^[^a-z\\s]{2,5}$"},
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "duration", "uuid", "email", "hostname",
                                                      "ipv4", "ipv6", "uri")),
    {"enum": ["a", 1, None, {"b": [1.5]}, True], "type": ["string", "object", "integer"]},
    {"const": {"a": 1e-7, "b": "\u20ac\n"}},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
    {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object", "properties": {"a": {"type": "null"},
                                                                                         "b": {"type": "null"}}},
    {"allOf": [{"type": "number", "minimum": 3}, {"type": "integer", "maximum": 20}]},
    {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 7, "maximum": 9}},
                                                           "required": ["a"]}]},
    {"allOf": [{"$ref": "#/$defs/base"}], "required": ["id"], "$defs": {"base": {"type": "object", "properties": {
        "id": {"type": "integer"}, "next": {"$ref": "#/$defs/base"}}}}},
    {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "boolean"}}},
    {"type": "number", "exclusiveMinimum": 0}, {"type": "number", "exclusiveMaximum": 0},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"type": "number", "minimum": 10, "maximum": 11},
    {"type": "number", "minimum": -5, "exclusiveMaximum": 1234567}, {"type": "number"}, {"type": "integer"},
]
CONSTANT = [{"const": {"a": 1e-7, "b": "\u20ac\n"}}]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: re.sub(r"\W+", "-", json.dumps(schema))[:60])
def test_texts_satisfy_their_schema(walker, schema):
    texts = walker.texts("json_schema", schema)
    check = validator(schema)
    for text in texts:
        check.validate(json.loads(text, parse_constant=pytest.fail))
    if schema not in CONSTANT:
        assert len(set(texts)) > 1  # a walk, not always the same steps


def random_schema(rng, depth):
    """A schema of supported keywords, and a value that satisfies it."""
    kind = rng.choice(["string", "integer", "number", "boolean", "null", "enum"] + ["object", "array", "anyOf"] * (depth > 0) * 2)
    if kind == "string":
        low, high = sorted((rng.randrange(6), rng.randrange(6)))
        return {"type": "string", "minLength": low, "maxLength": high}, "é\"\\\nxü"[:low]
    if kind in ("integer", "number"):
        low, high = sorted((rng.randrange(-1200, 1200), rng.randrange(-1200, 1200)))
        return {"type": kind, "minimum": low, "maximum": high}, rng.choice([low, high])
    if kind == "boolean":
        return {"type": "boolean"}, True
    if kind == "null":
        return {"type": "null"}, None
    if kind == "enum":
        return {"enum": ["x", 12, None, "long text"]}, "long text"
    if kind == "array":
        schema, value = random_schema(rng, depth - 1)
        low, high = sorted((rng.randrange(4), rng.randrange(4)))
        return {"type": "array", "items": schema, "minItems": low, "maxItems": high}, [value] * low
    if kind == "anyOf":
        parts = [random_schema(rng, depth - 1) for _ in range(3)]
        return {"anyOf": [schema for schema, _ in parts]}, rng.choice(parts)[1]
    names = rng.sample(["a", "ab", "b c", "d\"", "é"], rng.randrange(1, 5))
    parts = {name: random_schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.5]
    schema = {"type": "object", "properties": {name: schema for name, (schema, _) in parts.items()}, "required": required}
    if rng.random() < 0.3:
        schema["additionalProperties"] = rng.choice([True, False, {"type": "null"}])
    return schema, {name: parts[name][1] for name in names if name in required or rng.random() < 0.5}


def spellings(value):
    yield json.dumps(value, ensure_ascii=False)
    yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    yield json.dumps(value, ensure_ascii=False, indent=2)


def test_random_schemas(walker):
    for seed in range(120):
        rng = random.Random(seed)
        schema, value = random_schema(rng, 3)
        check = validator(schema)
        check.validate(value)
        for text in walker.texts("json_schema", schema, walks=5, seed=seed):
            check.validate(json.loads(text))
        accepted = walker.accepts("json_schema", schema, list(spellings(value)))
        assert accepted == [True] * 3, (schema, value, accepted)


def test_wrong_texts_are_refused(walker):
    good = {"name": "x", "age": 129, "home": {"zip": "01234"}}
    wrong = [{**good, "age": 130}, {**good, "age": -1}, {**good, "age": 1.5}, {**good, "name": ""}, {"name": "x", "age": 1},
             {**good, "home": {"zip": "0123"}}, {**good, "extra": 1}, {**good, "home": {"zip": "01234", "x": 1}}, [], None]
    texts = [json.dumps(value) for value in (good, *wrong)]
    assert walker.accepts("json_schema", PERSON, texts) == [True] + [False] * len(wrong)
    broken = ['{"a":1', '{"a":1}}', '{"a":01}', '{"a":1,}', '{"a":"\n"}', '{"a":"\\x"}', '{"a":"\\ud800"}', "{'a':1}", '{"a":+1}', '{"a":.5}', '{"a":NaN}', "", "[]", "1"]
    assert walker.accepts("json_object", "", broken) == [False] * len(broken)
    deep = '{"a":' + "[" * 500 + '{"é":"\\ud83d\\ude00 \\u00e9 😀","":-1.5e-3}' + "]" * 500 + "}"
    assert walker.accepts("json_object", "", [deep, "{}", '{ "a": [ ] }', '{\n\t"a": null\n}']) == [True] * 4


@pytest.mark.parametrize("low,high", [(0, 0), (-3, 12), (7, 1203), (95, 105), (-1000, -88), (999, 1000), (None, 42), (17, None)])
def test_integer_bounds(walker, low, high):
    schema = {"type": "integer"}
    schema |= {"minimum": low} if low is not None else {}
    schema |= {"maximum": high} if high is not None else {}
    numbers = list(range(-1300, 1300))
    expected = [(low is None or n >= low) and (high is None or n <= high) for n in numbers]
    assert walker.accepts("json_schema", schema, [str(n) for n in numbers]) == expected


def test_number_bounds(walker):
    spelled = [f"{sign}{whole}{part}" for sign in ("", "-") for whole in (0, 1, 2, 3, 9, 10, 11) for part in
               ("", ".0", ".00001", ".5", ".999")]
    spelled = [text for text in spelled if text not in ("-0", "-0.0")]  # written or not: both are right
    for low, high, opens in itertools.product((-10, -1, 0, 2), (0, 1, 3, 10), ((), ("Minimum",), ("Maximum",), ("Minimum", "Maximum"))):
        if low >= high:
            continue
        schema = {"type": "number", ("exclusiveMinimum" if "Minimum" in opens else "minimum"): low,
                  ("exclusiveMaximum" if "Maximum" in opens else "maximum"): high}
        check = validator(schema)
        expected = [check.is_valid(json.loads(text)) for text in spelled]
        assert walker.accepts("json_schema", schema, spelled) == expected, schema


# --- regular expressions ----------------------------------------------------------------------------------------------

REGEXES = [
    "a*b", "(ab|ba)+", "a{2,3}b?", "[a-b]{0,2}c", "[^a]*", "a.c", "(?:a|b|)(?P<n>c)*", "^ab$", "a|bc|", "((a|b){2}c?){1,2}",
    "a+?b??", "\\x61\\u0062\\w", "[\\w-]+\\.", "\\d|\\D", "[.\\]a-]+", "a{,2}", "a{b", "(a*)*b", "(a|aa){1,3}", "a\\|b|\\(",
]
ALPHABET = "abc.-]é1"


@pytest.mark.parametrize("regex", REGEXES)
def test_regex_is_pythons(walker, regex):
    """Every text of up to four letters."""
    if regex == "a{,2}":  # text in ECMA-262 (as here), a repetition in Python
        assert walker.accepts("regex", regex, ["a{,2}", "aa"]) == [True, False]
        return
    tries = ["".join(letters) for n in range(5) for letters in itertools.product(ALPHABET, repeat=n)]
    tries += ["a{b", "a|b", "(", "abab", "aaaaaa", "abcabc"]
    expected = [re.fullmatch(regex, text, re.ASCII) is not None for text in tries]
    assert walker.accepts("regex", regex, tries) == expected
    for text in walker.texts("regex", regex):
        assert re.fullmatch(regex, text, re.ASCII), text


def random_regex(rng, depth):
    kind = rng.randrange(8 if depth else 3)
    if kind < 3:
        return rng.choice(["a", "b", "c", "[ab]", "[^b]", ".", "é", "\\."])
    inner = random_regex(rng, depth - 1)
    if kind < 5:
        return inner + random_regex(rng, depth - 1)
    if kind == 5:
        return f"({inner}|{random_regex(rng, depth - 1)})"
    return f"({inner})" + rng.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}"])


def test_random_regexes(walker):
    tries = ["".join(letters) for n in range(6) for letters in itertools.product("abc.é", repeat=n)][:2500]
    for seed in range(60):
        regex = random_regex(random.Random(seed), 4)
        expected = [re.fullmatch(regex, text, re.ASCII) is not None for text in tries]
        assert walker.accepts("regex", regex, tries) == expected, regex


def test_patterns_search(walker):
    """`pattern` finds a part of a string, with JSON's escapes between the quotes."""
    tries = ["".join(letters) for n in range(5) for letters in itertools.product('ab"\\é\n', repeat=n)]
    for pattern in ("ab", "^a", "b$", "^ab?$", "a|^b", "^[^a]*$", '["\\\\]', "é\\s"):
        expected = [re.search(pattern.replace("$", "\\Z"), text) is not None for text in tries]
        schema = {"type": "string", "pattern": pattern}
        assert walker.accepts("json_schema", schema, [json.dumps(t, ensure_ascii=False) for t in tries]) == expected, pattern


# --- choices and rules ------------------------------------------------------------------------------------------------


def test_choices(walker):
    choices = ["positive", "negative", "neg", "é\n", '"']
    texts = walker.texts("choice", choices, walks=200)
    assert len(texts) == 200 and set(texts) == set(choices)
    assert walker.accepts("choice", choices, [*choices, "", "nega", "positive "]) == [True] * 5 + [False] * 3


def test_rules(walker):
    rules = """
# a sum, as llama.cpp would write it
root  ::= term (ws "+" ws
          term)*   # over two lines
term  ::= number | "(" root ")"
number ::= [1-9] [0-9]{0,3} | "\\x30"
ws ::= [ \\t]?
"""
    for text in walker.texts("gbnf", rules):
        assert re.fullmatch(r"[0-9()+ \t]+", text) and isinstance(eval(text.replace("\t", " ")), int)
    good, wrong = ["0", "12+3", "(1+(2+30))+4 +\t5"], ["", "01", "1+", "(1", "12345", "1  +2"]
    assert walker.accepts("gbnf", rules, good + wrong) == [True] * len(good) + [False] * len(wrong)


# --- 128,815 tokens ---------------------------------------------------------------------------------------------------

KINDS = [{"type": "string"}, {"type": "integer"}, {"type": "number", "minimum": 0}, {"enum": ["red", "green", "blue"]},
         {"type": "array", "items": {"type": "string"}, "maxItems": 5}, {"type": ["string", "null"], "maxLength": 40}]


@pytest.mark.skipif(not LARGE.exists(), reason="the released tokenizers are not here")
def test_large_vocabulary():
    """Thirty properties: the texts are right, and neither compiling nor masks delay a step; printed with -s."""
    schema = {"type": "object", "properties": {f"field_{i}": KINDS[i % len(KINDS)] for i in range(30)},
              "required": [f"field_{i}" for i in range(20)], "additionalProperties": False}
    walker = Walker(LARGE)
    answer = walker.ask("json_schema", schema, walks=10, seed=3)
    walker.close()
    assert answer["unfinished"] == 0
    for text in answer["texts"]:
        validator(schema).validate(json.loads(text))
    medians = [statistics.median(answer[key]) for key in ("first_ms", "later_ms")]
    largest = [max(answer[key]) for key in ("first_ms", "later_ms")]
    print(f"compiled in {answer['compile_ms']:.2f} ms; a mask takes {medians[0]:.4f} ms (median; {largest[0]:.1f} ms at most) in the "
          f"first answer, {medians[1]:.4f} ms ({largest[1]:.1f}) later")
    assert answer["compile_ms"] < 50 and medians[1] < 1


def test_memory_is_left_for_grammars():
    """States and masks of one grammar may take 64 MiB; what the cache may take is so much less."""
    def left(*flags):
        wanted = "--max-model-len", 163840, "--kv-cache-dtype", "f32", "-p", "x"
        result = conftest.moebius("run", conftest.ROOT / "models" / "demo", *wanted, *flags, env={"MOEBIUS_MEMORY": "0.4"})
        message = conftest.refused(result, "are left beside the weights")
        return float(re.search(r"([0-9.]+) GiB are left", message)[1])

    assert left() - left("--regex", "a+") == pytest.approx(64 / 1024, abs=0.011)
