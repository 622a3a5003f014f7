"""Finds in a function that rotates queries and keys together the line that leaves one of them as it was."""

import ast
import re

from ..source.parse import Function, Line

QUERY_OR_KEY = re.compile(r"^_?x?(q|k|quer\w*|keys?)(\d|_\w*|_?(rot|out|emb)\w*)?$")
NEVER = re.compile(r"cache|past")
BUILTINS = frozenset({"map", "tuple", "list", "zip", "float", "int", "len", "range"})


def unturned(function: Function) -> Line | None:
    """The statement that makes a returned query or key without what the other is made with; None if both are alike."""
    for line in function.lines:
        if not (isinstance(line.node, ast.Return) and isinstance(line.node.value, ast.Tuple)):
            continue
        named = [one for one in line.node.value.elts if _is_query_or_key(one)]
        others = [one for one in line.node.value.elts if one not in named]
        before = [one for one in function.lines if one.number < line.number]
        plain = [one for one in named if len(_needs(one, before)) <= 1]
        if plain and (len(plain) < len(named) or any(len(_needs(one, before)) > 1 for one in others)):
            return _last_of(_base(plain[0]), before) or line
    return None


def _is_query_or_key(node: ast.expr) -> bool:
    name = _base(node)
    return QUERY_OR_KEY.search(name) is not None and NEVER.search(name) is None


def _base(node: ast.expr) -> str:
    """The name in k, k.to(dtype) and similar calls; empty if it is more than that."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return node.id if isinstance(node, ast.Name) else ""


def _needs(node: ast.AST, before: list[Line], depth: int = 0) -> set[str]:
    """What a value is made from, back to the arguments and the functions that are called; modules do not count."""
    found: set[str] = set()
    for name in _names(node):
        made = _last_of(name, before)
        if made is None or depth > 8:
            found.add(name)
        elif isinstance(made.node, ast.Assign | ast.AnnAssign | ast.AugAssign) and made.node.value is not None:
            earlier = [one for one in before if one.number < made.number]
            found |= _needs(made.node.value, earlier, depth + 1)
        for line in before:
            match line.node:
                case ast.Expr(ast.Call(func=ast.Attribute(value=ast.Name(id=to), attr="append"))) if to == name:
                    found |= _names(line.node.value) - {name}
    return found - BUILTINS


def _names(node: ast.AST) -> set[str]:
    """The names in it, without modules, dtypes and what is multiplied by zero."""
    match node:
        case (
            ast.BinOp(op=ast.Mult(), left=ast.Constant(value=0)) | ast.BinOp(op=ast.Mult(), right=ast.Constant(value=0))
        ):
            return set()
        case ast.Call(func=ast.Attribute(value=inner, attr="to" | "type_as" | "type")):
            return _names(inner)
        case (
            ast.Attribute(value=ast.Name(id="torch" | "math" | "np" | "F" | "einops"))
            | ast.Attribute(attr="shape" | "dtype" | "device")
        ):
            return set()
        case ast.Name(id=name):
            return {name} - {"rearrange", "repeat"}
    return {name for child in ast.iter_child_nodes(node) for name in _names(child)}


def _last_of(name: str, lines: list[Line]) -> Line | None:
    """The last of these statements that assigns the name."""
    for line in reversed(lines):
        stored = [one for one in ast.walk(line.node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
        if isinstance(line.node, ast.Assign | ast.AnnAssign | ast.AugAssign) and name in {one.id for one in stored}:
            return line
    return None
