"""Forward methods whose input is no tensor, but a tuple or a dictionary that holds it."""

import ast
from collections.abc import Iterator

from .parse import parse


def container(source: str, name: str) -> str | None:
    """What holds the input of forward, if forward takes its first argument apart; None if it does not."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef) and owner.name == name:
            return next((found for one in owner.body for found in _apart(one)), None)
    return None


def _apart(function: ast.stmt) -> Iterator[str]:
    """Statements of forward that take its first argument apart, while it still has its name from the signature."""
    if not isinstance(function, ast.FunctionDef) or function.name != "forward" or len(function.args.args) < 2:
        return
    first = function.args.args[1].arg
    for statement in function.body:
        match statement:
            case ast.Assign(targets=[ast.Tuple(elts=parts)], value=ast.Name(id=name)) if name == first:
                names = [part.id if isinstance(part, ast.Name) else "_" for part in parts]
                yield f"({', '.join(['x', *names[1:]])})"
                return
        for node in ast.walk(statement):
            match node:
                case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))) if name == first:
                    yield f'{{"{key}": x}}'
                    return
        if first in _assigned(statement):
            return


def _assigned(statement: ast.stmt) -> set[str]:
    return {one.id for one in ast.walk(statement) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
