"""The line that made a tensor on which a later line fails, such as a mask that stays on the CPU."""

import ast
import re
from collections.abc import Iterable, Sequence

from ..source.parse import Function, Line
from .line_patterns import A_NUMBER, MADE

OWN = r"self\.device\b|None\b|['\"]cpu"
"""A device that says nothing of the input's."""
DTYPE = r"(dtype=)?(torch\.\w+|[\w.]*dtype)\)"
FOLLOWS = re.compile(rf"device=(?!{OWN})|_like\(|\.to\((?!(device=)?({OWN})|{DTYPE})|\bnew_\w+\(")
"""Made on the device of something else, or brought there."""
TENSOR = re.compile(rf"\btorch\.|\b{MADE}|\.(cos|sin|tril|triu)\(")
REGISTERED = re.compile(r"register_buffer|Parameter\(")


def origin(functions: Sequence[Function], numbers: Sequence[int]) -> int | None:
    """The line that made what failed, or None. numbers: the lines of the failing call, the outermost first.

    Looked for are the names of the line that failed: where its function makes them, then where its class does, then
    the same for the line that called it.
    """
    for number in reversed(numbers):
        for function in functions:
            line = next((one for one in function.lines if one.number <= number <= one.end), None)
            if line is not None and (found := _in(function, line, functions)) is not None:
                return found.number
    return None


def _in(function: Function, line: Line, functions: Sequence[Function]) -> Line | None:
    before = [one for one in reversed(function.lines) if one.number < line.number]
    names = _names(line.node)
    direct = next((one for one in before if _assigned(one) & names and _makes(one)), None)
    if direct is not None or _makes(line):
        return direct or line
    of_class = [one for other in functions if other.owner and other.owner == function.owner for one in other.lines]
    for taken in (set(function.parameters), set[str]()):  # then what they come from: first what comes from no input
        searched = set(names)
        for one in [line, *before]:
            if one is not line and not _assigned(one) & searched:
                continue
            if one is not line and _makes(one):
                return one
            if not _names(one.node) & taken:
                searched |= _names(one.node)
            kept = [other for other in of_class if _assigned(other) & _attributes(one.node)]
            if plain := [one for one in kept if _is_plain_tensor(one, of_class)]:
                return plain[0]
    return None


def _is_plain_tensor(line: Line, of_class: Sequence[Line]) -> bool:
    """Whether a line assigns a tensor that is no buffer, made there or from one of an earlier line."""
    if REGISTERED.search(line.text):
        return False
    names = _names(line.node)
    read = [one for one in of_class if _assigned(one) & names and one.number < line.number]
    return any(TENSOR.search(_value(one)) for one in (line, *read))


def _value(line: Line) -> str:
    """What a statement assigns, without the annotation of its target."""
    node = line.node
    return ast.unparse(node.value) if isinstance(node, ast.AnnAssign) and node.value else line.text


def _makes(line: Line) -> bool:
    made = re.search(rf"\b{MADE}", re.sub(A_NUMBER, "", line.text))
    return made is not None and not FOLLOWS.search(line.text)


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}


def _attributes(node: ast.AST) -> set[str]:
    """Attributes that are read and not called, as they are written: self.table."""
    called = {id(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)}
    read = [one for one in ast.walk(node) if isinstance(one, ast.Attribute) and id(one) not in called]
    return {f"self.{one.attr}" for one in read if isinstance(one.value, ast.Name) and isinstance(one.ctx, ast.Load)}


def _assigned(line: Line) -> set[str]:
    """What a statement assigns to: names, and attributes as self.table."""
    targets: list[ast.expr] = []
    if isinstance(line.node, ast.Assign):
        targets = line.node.targets
    elif isinstance(line.node, ast.AnnAssign | ast.AugAssign):
        targets = [line.node.target]
    return set(_written(targets))


def _written(targets: Iterable[ast.expr]) -> Iterable[str]:
    for one in targets:
        if isinstance(one, ast.Tuple | ast.List):
            yield from _written(one.elts)
        elif isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield f"self.{one.attr}"
