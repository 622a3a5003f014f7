"""What constructors run, found from the source: so that the rest is what a model does later to a block's weights."""

import ast
import re
from collections.abc import Iterator, Mapping

from .parse import parse

Definition = ast.ClassDef | ast.FunctionDef

RESET = ("reset_parameters", "_reset_parameters")
"""What torch calls the method with which a module initialises its own weights, mostly in its constructor."""
OF_PARTS = re.compile(r"\.(apply|(named_)?(parameters|modules|children))\(|for [^:]* in [^:]*\bself\.\w+:")
"""A module that initialises what it holds."""


def without_constructors(text: str, name: str) -> str:
    """The text, without comments, and without what building the block runs, or building what has no part in it.

    The first are the constructors of its parts, and what these call, and their RESET, which is none of other code if
    nobody else calls it. Parts are the classes and functions whose names stand in it, or in another part. The second
    are the constructors of classes that neither hold the block nor initialise what they hold. The whole text if it
    cannot be parsed.
    """
    try:
        tree = parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    definitions = _definitions(tree)
    parts, holders = list(_reached(name, definitions)), _holders(name, definitions)
    left_out: set[ast.stmt] = {one for one in parts if isinstance(one, ast.FunctionDef)}
    for one in definitions.values():
        methods = _definitions(one) if isinstance(one, ast.ClassDef) else {}
        run = [*_reached("__init__", methods)]
        if one in parts:
            left_out |= {*run, *(method for reset in RESET for method in _reached(reset, methods))}
        elif one.name not in holders and not any(OF_PARTS.search(ast.unparse(method)) for method in run):
            left_out |= {*run}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            node.body = [one for one in node.body if one not in left_out]
    return ast.unparse(tree)


def _holders(name: str, definitions: Mapping[str, Definition]) -> set[str]:
    """The names of definitions in which that name stands, or the name of another holder."""
    said = {one: {*_names(definition)} for one, definition in definitions.items()}
    holders = {name}
    while more := {one for one, names in said.items() if names & holders} - holders:
        holders |= more
    return holders


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
