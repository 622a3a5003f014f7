"""Follows the residual stream through a function: the names that hold it, and what is added to it."""

import ast
import re
from collections.abc import Sequence

from ..source.parse import Function, Line
from .roles import role_of

STREAM = r"^(x|h|hidden\w*|inputs?|stream|src|residual|tokens|embeddings?)$"

SUBLAYERS = frozenset({"attention", "ffn"})


class Flow:
    """Follows the residual stream through a function: which names hold it, and which hold a normalised copy."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.stream = {one for one in function.parameters if re.search(STREAM, one)} or set(function.parameters[:1])
        self.normed: set[str] = set()
        self.norms: set[str] = set()
        self.sublayers: dict[str, set[str]] = {}  # of a name that holds the output of attention or of the feed-forward
        self.before: dict[
            tuple[int, bool], tuple[set[str], set[str], set[str]]
        ] = {}  # what an arm of an if starts with

    def follow(self) -> None:
        """Mark sums, and how their terms were computed."""
        for line in self.function.lines:
            self._branch(line)
            if "norm" in line.kinds:
                self.normed |= {one.target.id for one in ast.walk(line.node) if isinstance(one, ast.NamedExpr)}
            terms = longest_sum(line.node)
            streams = [name for term in terms for name in _held(term) if name in self.stream]
            if len(terms) > 1 and (streams or any(name in self.normed for term in terms for name in _held(term))):
                line.kinds.add("sum")
                line.kinds |= {"normed term"} if not streams else set()
                line.kinds |= {"doubled"} if len(streams) > 1 else set()
            read = {one.id for one in ast.walk(line.node) if isinstance(one, ast.Name)}
            if line.kinds & {"attention", "ffn"} and "norm" not in line.kinds and not read & self.normed:
                line.kinds.add("unnormed")
            self._norms(line)
            outputs = line.kinds & SUBLAYERS | {one for name in read for one in self.sublayers.get(name, ())}
            line.kinds |= {f"of {one}" for one in outputs}
            if isinstance(line.node, ast.Assign) and isinstance(target := line.node.targets[0], ast.Name):
                self._assign(line, target.id, line.node.value)
                self.sublayers[target.id] = outputs if target.id not in self.stream else set()
        for number, line in enumerate(self.function.lines):
            if "copy" in line.kinds and _is_added(line, self.function.lines[number + 1 :]):
                line.kinds.discard("copy")

    def _branch(self, line: Line) -> None:
        """An else starts with what held before its if."""
        for number, otherwise in line.arms:
            if (number, otherwise) in self.before:
                continue
            if otherwise and (held := self.before.get((number, False))):
                self.stream, self.normed, self.norms = map(set, held)
            self.before[number, otherwise] = (set(self.stream), set(self.normed), set(self.norms))

    def _norms(self, line: Line) -> None:
        if "norm" in line.kinds:
            used = re.findall(r"self\.(?!eps|e\b)\w+(?:\(\w+, \d\))?|\w+\['\w+'\]", line.text)
            norms = {one for one in used if role_of(one.strip("']")) == "norm" or "(" in one} or set(used)
            line.kinds |= {"again"} if norms & self.norms else set()
            self.norms |= norms

    def _assign(self, line: Line, target: str, value: ast.expr) -> None:
        copied = value.id if isinstance(value, ast.Name) else None
        if "sum" in line.kinds or copied in self.stream:
            self.stream.add(target)
            self.normed.discard(target)
        elif copied in self.normed or ("norm" in line.kinds and not line.kinds & {"attention", "ffn"}):
            if copied is not None:
                line.kinds.add("keeps normed")
            self.normed.add(target)
            self.stream.discard(target)
        else:
            line.kinds |= {"overwrites"} if target in self.stream else set()
            self.stream.discard(target)
            self.normed.discard(target)
        if copied in self.stream:
            line.kinds.add("copy")


def _is_added(copy: Line, after: Sequence[Line]) -> bool:
    """Whether a later statement adds this copy of the stream, which is then the residual."""
    assert isinstance(copy.node, ast.Assign)
    names = {one.id for one in copy.node.targets if isinstance(one, ast.Name)}
    for line in after:
        if "sum" in line.kinds and any(name in names for term in longest_sum(line.node) for name in _held(term)):
            return True
        if isinstance(line.node, ast.Assign):
            names -= {one.id for one in line.node.targets if isinstance(one, ast.Name)}
    return False


def longest_sum(node: ast.AST) -> list[ast.expr]:
    """The terms of the longest sum in it; the first of several that are as long."""
    longest: list[ast.expr] = []
    inner: set[ast.AST] = set()  # sums that are terms of longer ones
    for one in ast.walk(node):
        if one in inner or not (waiting := _addends(one)):
            continue
        terms = []
        while waiting:
            first = waiting.pop(0)
            if parts := _addends(first):
                inner.add(first)
                waiting = [*parts, *waiting]
            else:
                terms.append(first)
        longest = max(longest, terms, key=len)
    return longest


def _addends(node: ast.AST) -> list[ast.expr]:
    """The two terms of +, .add() or +=; empty for other nodes."""
    match node:
        case ast.BinOp(op=ast.Add()):
            return [node.left, node.right]
        case ast.AugAssign(op=ast.Add()):
            return [node.target, node.value]
        case ast.Call(func=ast.Attribute(value=left, attr="add" | "add_"), args=[right]):
            return [left, right]
    return []


def _held(term: ast.expr) -> list[str]:
    """The name of a term, twice for 2 * name; also inside detach(), float() and similar calls."""
    match term:
        case ast.Name():
            return [term.id]
        case ast.Attribute(value=inner, attr="data"):
            return _held(inner)
        case ast.NamedExpr():
            return [term.target.id]
        case ast.Call(func=ast.Attribute(value=inner, attr="detach" | "clone" | "float" | "double" | "to")):
            return _held(inner)
        case ast.BinOp(left=ast.Constant(), op=ast.Mult(), right=ast.Name() as inner):
            return [inner.id] * 2
    return []
