"""Faults of the rotary positions: who is rotated, by what angle, in which pairs."""

import ast
from collections.abc import Iterator

from .code import Code, Edit, called

Candidates = Iterator[list[Edit]]


def rotations(code: Code) -> Iterator[list[ast.Call]]:
    """In each function, the calls that rotate something."""
    for function in code.functions:
        found = [call for call in code.calls(function) if call.args and code.is_rotation(call)]
        nested = {id(inner) for call in found for inner in ast.walk(call) if inner is not call}
        if found := [call for call in found if id(call) not in nested]:
            yield found


def missing_rope(code: Code) -> Candidates:
    for calls in rotations(code):
        if len(calls) == 2:
            yield [code.replace(call, code.inside(call.args[0])) for call in calls]
        for call in calls[:1] if len(calls) == 1 and len(calls[0].args) > 1 else ():
            yield [code.replace(call, f"({code.of(call.args[0])}, {code.of(call.args[1])})")]


def rope_on_queries_only(code: Code) -> Candidates:
    for calls in rotations(code):
        if len(calls) == 2:
            for call in reversed(calls):
                yield [code.replace(call, code.inside(call.args[0]))]
        for call in calls[:1] if len(calls) == 1 and len(calls[0].args) > 1 else ():
            yield [code.replace(call, f"({code.of(call)}[0], {code.of(call.args[1])})")]


def rope_on_values(code: Code) -> Candidates:
    for function in code.functions:
        for calls in rotations(code):
            call = calls[-1]
            if call not in list(ast.walk(function)):
                continue
            for value in _values(code, function):
                if len(calls) == 2:
                    rest = "".join(f", {code.of(one)}" for one in [*call.args[1:], *call.keywords])
                    yield [code.replace(value, f"{code.of(call.func)}({code.of(value)}{rest})")]
                else:
                    rest = "".join(f", {code.of(one)}" for one in [*call.args[2:], *call.keywords])
                    yield [code.replace(value, f"{code.of(call.func)}({code.of(value)}, {code.of(value)}{rest})[0]")]


def positions_off_by_one(code: Code) -> Candidates:
    for calls in rotations(code):
        for argument in calls[1].args[1:] if len(calls) == 2 else ():
            text = code.inside(argument)
            yield [code.replace(argument, f"({text} - 1).clamp(min=0)")]
            yield [code.replace(argument, f"None if {text} is None else ({text} - 1).clamp(min=0)")]
            yield [code.replace(argument, f"{text}.roll(1, -2)")]  # cosines and sines instead of positions


def rope_wrong_direction(code: Code) -> Candidates:
    for function in code.functions:
        turned: list[Edit] = []
        for sign, other, kind in (("+", "-", ast.Add), ("-", "+", ast.Sub)):
            for node in code.binary(function, kind):
                match node:
                    case ast.BinOp(left=ast.BinOp(op=ast.Mult()), right=ast.BinOp(op=ast.Mult())):
                        turned += code.between(node.left, node.right, sign, other)
        if len(turned) == 2:
            yield turned
    for call in code.calls(code.tree, "sin"):
        yield [code.replace(call, f"(-{code.of(call)})")]
    for call in code.calls(code.tree, "polar"):
        yield [code.replace(call.args[1], f"-{code.inside(call.args[1])}")]


def rope_half_split(code: Code) -> Candidates:
    for function in code.functions:
        edits = []
        for part in code.walk(function, ast.Subscript):
            match part.slice:
                case ast.Tuple(elts=[*_, ast.Slice(lower=lower, upper=None, step=ast.Constant(value=2)) as last]):
                    half = f"{code.of(part.value)}.shape[-1] // 2"
                    first = lower is None or (isinstance(lower, ast.Constant) and lower.value == 0)
                    edits.append(code.replace(last, f": {half}" if first else f"{half} :"))
        for outer in code.calls(function, "flatten", "reshape", "view"):
            inner = code.operand(outer)
            if isinstance(inner, ast.Call) and called(inner) == "stack":
                assert isinstance(inner.func, ast.Attribute)
                end = code.span(inner.func)[1]
                edits += [Edit(end - len("stack"), end, "cat"), Edit(code.span(inner)[1], code.span(outer)[1], "")]
        if edits:
            yield edits


def rope_theta_constant(code: Code) -> Candidates:
    for power in code.binary(code.tree, ast.Pow):
        if isinstance(power.left, ast.Name | ast.Attribute):
            yield [code.replace(power.left, "10000.0")]
    for call in code.calls(code.tree, "pow"):
        if call.args and isinstance(call.args[0], ast.Name | ast.Attribute):
            yield [code.replace(call.args[0], "10000.0")]


def rope_wrong_frequency(code: Code) -> Candidates:
    for call in code.calls(code.tree, "arange"):
        match call.args:
            case [ast.Constant(value=0), end, ast.Constant(value=2) as step]:
                yield [code.replace(end, f"{code.inside(end)} // 2"), code.replace(step, "1")]
    for call in code.calls(code.tree, "arange"):
        match call.args:
            case [ast.Constant(value=0), _, ast.Constant(value=2)]:
                yield [code.insert_after(call, " * 2")]


def _values(code: Code, function: ast.FunctionDef) -> Iterator[ast.expr]:
    """The values that attention's weights are multiplied with, if they are a plain name."""
    for call in code.calls(function, "scaled_dot_product_attention"):
        yield from [one for one in call.args[2:3] if isinstance(one, ast.Name)]
    for call in code.calls(function, "matmul", "einsum", "bmm"):
        yield from [one for one in call.args[-1:] if isinstance(one, ast.Name)]
    for product in code.binary(function, ast.MatMult):
        if isinstance(product.right, ast.Name):
            yield product.right
