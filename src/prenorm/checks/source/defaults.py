"""The line that makes the value of an argument that nobody passed: `if mask is None: mask = ...`."""

import ast
from collections.abc import Collection, Iterator, Sequence

from .parse import parse


def default_of(source: str, names: Collection[str], numbers: Sequence[int]) -> int | None:
    """The line that makes one of these arguments where it is None, and that a failing call passed; None if none does.

    numbers: the lines of the failing call. Only functions that the call was in are looked at, up to where it was.
    """
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        reached = [one for one in numbers if function.lineno <= one <= (function.end_lineno or function.lineno)]
        own = {one.arg for one in (*function.args.args, *function.args.kwonlyargs)} & {*names}
        for made in _made(function, own) if reached else ():
            if made <= max(reached):
                return made
    return None


def _made(function: ast.FunctionDef, names: Collection[str]) -> Iterator[int]:
    for node in ast.walk(function):
        match node:
            case ast.If(test=test, body=body) if (name := _is_none(test)) in names:
                yield from (one.lineno for one in body if _assigned(one) == name)
            case ast.Assign(value=ast.IfExp(test=test)) if (name := _is_none(test)) in names:
                yield from [node.lineno] if _assigned(node) == name else []


def _is_none(test: ast.expr) -> str:
    """The name that the test compares with None; empty if it is another test."""
    match test:
        case ast.Compare(ast.Name(id=name), [ast.Is() | ast.IsNot()], [ast.Constant(None)]):
            return name
    return ""


def _assigned(node: ast.stmt) -> str:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return ""
