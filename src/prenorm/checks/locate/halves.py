"""Finds the line that joins the two halves of a vector as they are, where rotate_half needs a minus."""

import ast

from ..source.parse import Function, Line

JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
CUTS = frozenset({"chunk", "split", "unbind", "tensor_split"})


def mark_halves(function: Function) -> None:
    """Mark cat((x2, x1)) and stack((x2, x1)) as "plain halves" where both are parts of one vector, and unchanged."""
    parts: dict[str, str] = {}  # a name -> what it is a part of
    for line in function.lines:
        for node in ast.walk(line.node):
            if isinstance(node, ast.Call) and _name(node.func) in JOINS and node.args:
                wholes = [_whole(one, parts) for one in getattr(node.args[0], "elts", ())]
                line.kinds |= {"plain halves"} if len(wholes) == 2 and wholes[0] == wholes[1] != "" else set()
        _assign(line, parts)


def _assign(line: Line, parts: dict[str, str]) -> None:
    if not isinstance(line.node, ast.Assign):
        return
    for target in line.node.targets:
        targets = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        values = line.node.value.elts if isinstance(line.node.value, ast.Tuple) else [line.node.value] * len(targets)
        for one, value in zip(targets, values, strict=False):
            if isinstance(one, ast.Name):
                parts[one.id] = _whole(value, parts)


def _whole(node: ast.expr, parts: dict[str, str]) -> str:
    """What it is a slice of, or a chunk; empty if it is anything else."""
    match node:
        case ast.Name(id=name):
            return parts.get(name, "")
        case ast.Subscript(value=ast.Name(id=name), slice=at):
            of_axes = any(isinstance(one, ast.Slice) or getattr(one, "value", 0) is ... for one in ast.walk(at))
            return name if of_axes else ""
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=attr), args=[whole, *_]) if attr in CUTS:
            return ast.unparse(whole)
        case ast.Call(func=ast.Attribute(value=whole, attr=attr)) if attr in CUTS:
            return ast.unparse(whole)
    return ""


def _name(callee: ast.expr) -> str:
    return callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
