"""What the constructors of a block run, found from the source: so that the rest is what a model does later."""

import ast
from collections.abc import Iterator, Mapping

from .parse import parse

Definition = ast.ClassDef | ast.FunctionDef


def without_constructors(text: str, name: str) -> str:
    """The text with empty lines for all that building name runs: constructors of its parts, and what these call.

    Parts are the classes and functions whose names stand in it, or in another part. The whole text if it cannot be
    parsed.
    """
    try:
        tree = parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    lines = text.split("\n")
    for part in _reached(name, _definitions(tree)):
        methods = _definitions(part) if isinstance(part, ast.ClassDef) else {}
        run = _reached("__init__", methods) if methods else [part] if isinstance(part, ast.FunctionDef) else []
        for one in run:
            first, last = one.lineno - 1, one.end_lineno or one.lineno
            lines[first:last] = [""] * (last - first)
    return "\n".join(lines)


def _definitions(node: ast.Module | ast.ClassDef) -> dict[str, Definition]:
    return {one.name: one for one in reversed(node.body) if isinstance(one, Definition)}  # the block's file comes first


def _reached(name: str, definitions: Mapping[str, Definition]) -> Iterator[Definition]:
    """The definition of that name, and those whose names stand in one that is reached."""
    waiting = [name]
    for one in waiting:  # grows while it is walked
        if one in definitions:
            yield definitions[one]
            waiting += [other for other in dict.fromkeys(_names(definitions[one])) if other not in waiting]


def _names(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Name | ast.Attribute):
            yield one.id if isinstance(one, ast.Name) else one.attr
