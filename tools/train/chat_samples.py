"""Chat samples from signatures and docstrings: a question in one of several wordings, the function as the answer."""

import ast
import re
import textwrap

MAX_CHARS = 1400
MIN_CHARS = 80

WORDINGS = [
    "Write a Python function `{sig}` that does this: {doc}",
    "Write a Python function `{name}`. {doc}",
    "Write a Python function named {name} with the arguments {args}. {doc}",
    "Implement `{sig}` in Python.\n\n{doc}",
    "Please write a function in Python: {doc} Call it `{name}`.",
    "Write a Python function. {doc}",
]


def first_sentence(doc):
    paragraph = re.split(r"\n\s*\n", doc.strip())[0]
    text = " ".join(paragraph.split())
    return text if text.endswith((".", "!", "?")) else text + "."


def function_text(node, lines):
    start = min([node.lineno] + [d.lineno for d in node.decorator_list]) - 1
    return textwrap.dedent("\n".join(lines[start:node.end_lineno])).rstrip()


def samples_of(tree, text, rng):
    """Yields (question, answer) for each plain documented function of moderate length."""
    lines = text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or node.name.startswith(("__", "test")):
            continue
        doc = ast.get_docstring(node)
        if not doc or len(node.body) < 2 or [a.arg for a in node.args.args[:1]] in (["self"], ["cls"]):
            continue
        code = function_text(node, lines)
        sentence = first_sentence(doc)
        if not MIN_CHARS <= len(code) <= MAX_CHARS or not 20 <= len(sentence) <= 240 or not sentence.isascii():
            continue
        signature = f"{node.name}({ast.unparse(node.args)})"
        if len(signature) > 100:
            continue
        arguments = ", ".join(a.arg for a in node.args.args) or "none"
        question = rng.choice(WORDINGS).format(sig=signature, name=node.name, args=arguments, doc=sentence)
        yield question, f"```python\n{code}\n```"
