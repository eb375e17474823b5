"""Makes training text from which a model learns to write the code of a function, not only what documents it.

As packages stand, most functions open with a docstring, and many others are one line long. A small model that always
takes the likeliest token then writes docstrings, which repeat themselves without end, or returns at once.
"""

import ast
import warnings

KEPT_DOCSTRINGS = 0.15
KEPT_ONE_LINERS = 0.3


def parse(text):
    """The syntax tree; None for what this Python cannot read, such as Python 2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_function(node):
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def docstring(function):
    """The docstring's statement, if code follows it on lines of its own."""
    first = function.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    if is_text and len(function.body) > 1 and function.body[1].lineno > first.end_lineno:
        return first
    return None


def is_one_liner(function):
    code = function.body[1:] if docstring(function) else function.body
    return code[0].lineno == code[-1].end_lineno


def first_line(function):
    return min([function.lineno, *(d.lineno for d in function.decorator_list)])


def lines_to_drop(tree, rng):
    """Yields (first, last) line, counted from 1. Every block keeps its first statement."""
    for node in ast.walk(tree):
        if is_function(node):
            text = docstring(node)
            if text and text.lineno > node.lineno and rng.random() >= KEPT_DOCSTRINGS:
                yield text.lineno, text.end_lineno
        elif isinstance(node, (ast.Module, ast.ClassDef)):
            for statement in node.body[1:]:
                if is_function(statement) and is_one_liner(statement) and rng.random() >= KEPT_ONE_LINERS:
                    yield first_line(statement), statement.end_lineno


def shaped(text, rng):
    """The text without most docstrings of functions and most functions of one line."""
    tree = parse(text)
    if tree is None or "\r" in text:  # which ends a line for the parser, and not below
        return text
    lines, dropped = text.split("\n"), set()
    for first, last in lines_to_drop(tree, rng):
        while last < len(lines) and not lines[last].strip():
            last += 1  # with the empty lines after it
        dropped.update(range(first - 1, last))
    return "\n".join(line for i, line in enumerate(lines) if i not in dropped)
