"""Faults of the two residual lines: what is added, to what, and where the norms stand."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from .code import Code, Edit

Candidates = Iterator[list[Edit]]


@dataclass(frozen=True, slots=True)
class Sum:
    """stream + branch, as an expression or as `stream += branch`."""

    node: ast.BinOp | ast.AugAssign
    stream: ast.expr
    branch: ast.expr

    def replaced(self, code: Code, text: str) -> Edit:
        """An edit: another expression instead of the sum."""
        if isinstance(self.node, ast.AugAssign):
            return code.replace(self.node, f"{code.of(self.node.target)} = {text}")
        return code.replace(self.node, text)

    def wrapped(self, code: Code, function: str) -> list[Edit]:
        """Edits: function(the sum), whatever else is edited in it."""
        start, end = code.span(self.node)
        if isinstance(self.node, ast.AugAssign):
            opening = code.between(self.node.target, self.node.value, "+=", f"= {function}({code.of(self.stream)} +")
        else:
            opening = [Edit(start, start, f"{function}(")]
        return [*opening, Edit(end, end, ")")]

    def with_stream(self, code: Code, text: str) -> Edit:
        """An edit: another expression instead of the stream."""
        if isinstance(self.node, ast.AugAssign):
            return self.replaced(code, f"{text} + {code.inside(self.branch)}")
        return code.replace(self.stream, text)


def sums(code: Code) -> list[Sum]:
    """The additions in the block's forward, in order."""
    function = home(code)
    return _sums(code, function) if function else []


def home(code: Code) -> ast.FunctionDef | None:
    """Where the block adds to its stream: its forward, or the first method that does if forward leaves it to one."""
    owner = code.classes.get(code.block)
    methods = [one for one in owner.body if isinstance(one, ast.FunctionDef)] if owner else []
    by_name = sorted(methods, key=lambda one: one.name != "forward")
    return next((one for one in by_name if not one.name.startswith("__") and _sums(code, one)), None)


def _sums(code: Code, function: ast.FunctionDef) -> list[Sum]:
    found: list[Sum] = []
    for node in ast.walk(function) if any(code.calls(function)) else ():
        match node:
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                # The stream is a name, the branch calls something; where both are names, the stream stands first.
                turned = isinstance(left, ast.Call) and not isinstance(right, ast.Call)
                found.append(Sum(node, right, left) if turned else Sum(node, left, right))
            case ast.AugAssign(op=ast.Add(), target=target, value=value):
                found.append(Sum(node, target, value))
    return sorted(found, key=lambda one: (one.node.lineno, one.node.col_offset))


def norm_calls(code: Code) -> list[ast.Call]:
    """The calls of norms in the same function, in order."""
    function = home(code)
    return [call for call in code.calls(function) if code.is_norm(call)] if function else []


def missing_residual_attention(code: Code) -> Candidates:
    for one in sums(code)[:1]:
        yield [one.replaced(code, code.inside(one.branch))]
        yield [one.replaced(code, code.inside(one.stream))]


def missing_residual_ffn(code: Code) -> Candidates:
    for one in sums(code)[1:2]:
        yield [one.replaced(code, code.inside(one.branch))]
        yield [one.replaced(code, code.inside(one.stream))]


def doubled_residual(code: Code) -> Candidates:
    for one in sums(code):
        yield [code.insert_after(one.branch, f" + {code.inside(one.stream)}")]


def residual_detached(code: Code) -> Candidates:
    for one in sums(code):
        yield [one.with_stream(code, f"{code.inside(one.stream)}.detach()")]


def residual_from_normed(code: Code) -> Candidates:
    for one, norm in zip(sums(code), norm_calls(code), strict=False):
        yield [one.with_stream(code, f"{code.of(norm.func)}({code.of(one.stream)})")]


def ffn_residual_from_input(code: Code) -> Candidates:
    start = _first_argument(code)
    for one in sums(code)[1:2]:
        if start not in ("", code.of(one.stream)):
            yield [one.with_stream(code, start)]


def parallel_sublayers(code: Code) -> Candidates:
    start = _first_argument(code)
    for norm in norm_calls(code)[1:2]:
        if start not in ("", code.of(norm.args[0])):
            yield [code.replace(norm.args[0], start)]


def post_norm(code: Code) -> Candidates:
    pairs = list(zip(sums(code), norm_calls(code), strict=False))
    moved = [
        [*one.wrapped(code, code.of(norm.func)), code.replace(norm, code.inside(norm.args[0]))] for one, norm in pairs
    ]
    yield [edit for edits in moved for edit in edits]
    yield from moved


def no_norm(code: Code) -> Candidates:
    for norm in norm_calls(code):
        yield [code.replace(norm, code.inside(norm.args[0]))]


def shared_norm(code: Code) -> Candidates:
    norms = norm_calls(code)
    if len(norms) == 2:
        yield [code.replace(norms[1].func, code.of(norms[0].func))]
        yield [code.replace(norms[0].func, code.of(norms[1].func))]


def modifies_input(code: Code) -> Candidates:
    for one in sums(code)[:1]:
        yield [one.replaced(code, f"{code.inside(one.stream)}.add_({code.of(one.branch)})")]


def gradient_missing(code: Code) -> Candidates:
    for one in sums(code):
        yield [code.replace(one.branch, f"{code.inside(one.branch)}.detach()")]


def token_positions_ignored(code: Code) -> Candidates:
    forward = code.method(code.block, "forward")
    names = code.arguments(forward)[1:2] if forward else []
    for call in code.calls(forward) if forward else ():
        handed = [*call.args, *(keyword.value for keyword in call.keywords)]
        for argument in handed:
            if isinstance(argument, ast.Name) and argument.id in names:
                yield [code.replace(argument, "None")]
    for test in code.walk(code.tree, ast.Compare):
        match test:
            case ast.Compare(left=ast.Name(), ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
                yield [code.replace(test, "True")]


def eps_ignored(code: Code) -> Candidates:
    yield from _constructor_arguments(code, 5, "1e-5")


def rope_theta_ignored(code: Code) -> Candidates:
    yield from _constructor_arguments(code, 4, "10000.0")


def _constructor_arguments(code: Code, place: int, text: str) -> Candidates:
    """A constant where the constructor hands on, or keeps, the argument at a place of the fixed signature."""
    constructor = code.method(code.block, "__init__")
    names = code.arguments(constructor)[place : place + 1] if constructor else []
    used = [one for one in code.walk(constructor, ast.Name) if one.id in names] if constructor else []
    for name in used:
        yield [code.replace(name, text)]


def _first_argument(code: Code) -> str:
    function = home(code)
    return next(iter(code.arguments(function)), "") if function else ""
