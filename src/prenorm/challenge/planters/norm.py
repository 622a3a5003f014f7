"""Faults of RMSNorm: the mean, the root, eps, the weight, the precision."""

import ast
from collections.abc import Iterator

from .code import Code, Edit, called

Candidates = Iterator[list[Edit]]
Root = ast.Call | ast.BinOp


def norms(code: Code) -> Iterator[ast.FunctionDef]:
    """Functions that take a mean and a root."""
    for function in code.functions:
        averages = any(code.calls(function, "mean", "sum", "norm"))
        if averages and any(True for _ in roots(code, function)):
            yield function


def roots(code: Code, inside: ast.AST) -> Iterator[Root]:
    """torch.sqrt(z), z.rsqrt(), z ** 0.5 and their like."""
    yield from code.calls(inside, "sqrt", "rsqrt")
    for power in code.binary(inside, ast.Pow):
        if _half(power) is not None:
            yield power
    for call in code.calls(inside, "pow"):
        if len(call.args) and _number(call.args[-1]) in (0.5, -0.5):
            yield call


def under_root(code: Code, root: Root) -> ast.expr:
    """What the root is taken of."""
    if isinstance(root, ast.BinOp):
        return root.left
    operand = code.operand(root)
    assert operand is not None
    return operand


def norm_without_sqrt(code: Code) -> Candidates:
    for function in norms(code):
        for root in roots(code, function):
            yield [code.replace(root, _of_root(code, root, code.of(under_root(code, root)), rooted=False))]


def eps_outside_sqrt(code: Code) -> Candidates:
    for function in norms(code):
        for root in roots(code, function):
            match under_root(code, root):
                case ast.BinOp(op=ast.Add(), left=left, right=right):
                    inner = f"({code.inside(left)} ** 0.5 + {code.inside(right)})"
                    yield [code.replace(root, f"(1 / {inner})" if _inverts(root) else inner)]


def wrong_eps(code: Code) -> Candidates:
    for function in norms(code):
        for add in code.binary(function, ast.Add):
            if isinstance(add.right, ast.Name | ast.Attribute | ast.Constant):
                yield [code.replace(add.right, f"{code.of(add.right)} ** 2")]
                yield [code.replace(add, code.inside(add.left))]


def norm_wrong_mean(code: Code) -> Candidates:
    for function in norms(code):
        for call in code.calls(function, "mean"):
            assert isinstance(call.func, ast.Attribute)
            end = code.span(call.func)[1]
            yield [Edit(end - len("mean"), end, "sum")]


def norm_over_sequence(code: Code) -> Candidates:
    for function in norms(code):
        for call in code.calls(function, "mean", "sum"):
            dims = [keyword.value for keyword in call.keywords if keyword.arg == "dim"] or call.args
            for dim in dims:
                if _number(dim) == -1:
                    yield [code.replace(dim, "-2")]


def layer_norm(code: Code) -> Candidates:
    for function in norms(code):
        name = code.arguments(function)[0] if code.arguments(function) else ""
        uses = [one for one in code.walk(function, ast.Name) if one.id == name and isinstance(one.ctx, ast.Load)]
        kept = {id(one.value) for one in code.walk(function, ast.Attribute) if one.attr in ("dtype", "shape", "device")}
        centred = f"({name} - {name}.mean(-1, keepdim=True))"
        uses = [one for one in uses if id(one) not in kept]
        for one in uses:
            yield [code.replace(one, centred)]
        yield [code.replace(one, centred) for one in uses]


def norm_weight_missing(code: Code) -> Candidates:
    for function in norms(code):
        for product in code.binary(function, ast.Mult):
            for weight, other in ((product.right, product.left), (product.left, product.right)):
                handed_in = isinstance(weight, ast.Name) and weight.id in code.arguments(function)[1:]
                if isinstance(weight, ast.Attribute) or handed_in:
                    yield [code.replace(product, code.inside(other))]


def norm_without_upcast(code: Code) -> Candidates:
    for function in norms(code):
        for call in code.calls(function, "float", "to", "type", "double"):
            if isinstance(call.func, ast.Attribute):
                yield [code.replace(call, code.inside(call.func.value))]


def _of_root(code: Code, root: Root, text: str, *, rooted: bool) -> str:
    power = 0.5 if rooted else 1
    return f"(1 / ({text}) ** {power})" if _inverts(root) else f"(({text}) ** {power})"


def _inverts(root: Root) -> bool:
    if isinstance(root, ast.BinOp):
        return _half(root) == -0.5
    return called(root) == "rsqrt" or (called(root) == "pow" and _number(root.args[-1]) == -0.5)


def _half(power: ast.BinOp) -> float | int | None:
    value = _number(power.right)
    return value if value in (0.5, -0.5) else None


def _number(node: ast.expr) -> float | int | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int | float) else None
