"""Faults of SwiGLU: the activation, and what it is applied to."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from .code import Code, Edit, called

Candidates = Iterator[list[Edit]]


@dataclass(frozen=True, slots=True)
class Silu:
    """silu(gate), however it is written: what it is in the text, and a template with the argument left open."""

    node: ast.expr
    gate: ast.expr
    template: str

    def of(self, text: str) -> str:
        """The same activation of something else."""
        return self.template.replace("{}", text)


def silus(code: Code) -> Iterator[Silu]:
    """Calls of silu, of a module or function that is one, and z * sigmoid(z)."""
    for call in code.calls(code.tree):
        itself = called(call).lower() == "silu" and len(call.args) >= 1
        module = code.made_by.get(called(call)) == "SiLU"
        own = len(call.args) == 1 and "sigmoid" in code.meaning(call) and len(code.meaning(call)) < 300
        if (itself or module or own) and call.args:
            yield Silu(call, call.args[0], f"{code.of(call.func)}({{}})")
    for product in code.binary(code.tree, ast.Mult):
        for gate, other in ((product.left, product.right), (product.right, product.left)):
            if isinstance(other, ast.Call) and called(other) == "sigmoid":
                operand = code.operand(other)
                if operand is not None and code.of(operand) == code.of(gate):
                    (start, end), (first, last) = code.span(other), code.span(operand)
                    yield Silu(product, gate, f"({{}}) * {code.text[start:first]}{{}}{code.text[last:end]}")


def wrong_activation(code: Code) -> Candidates:
    for one in silus(code):
        if isinstance(one.node, ast.Call) and called(one.node).lower() == "silu" and code.torch:
            yield [code.replace(one.node.func, f"{code.torch}.nn.functional.gelu")]
        elif code.torch:
            yield [code.replace(one.node, f"{code.torch}.relu({code.of(one.gate)})")]
    for call in code.calls(code.tree, "SiLU"):
        yield [code.replace(call, code.of(call).replace("SiLU", "GELU"))]


def gate_after_product(code: Code) -> Candidates:
    for product, one, up in _gated(code):
        yield [code.replace(product, one.of(f"{code.inside(one.gate)} * {code.inside(up)}"))]


def swapped_gate_up(code: Code) -> Candidates:
    for product, one, up in _gated(code):
        yield [code.replace(product, f"{one.of(code.of(up))} * {code.inside(one.gate)}")]


def _gated(code: Code) -> Iterator[tuple[ast.BinOp, Silu, ast.expr]]:
    """silu(gate) * up, and its activation and its up."""
    found = list(silus(code))
    for product in code.binary(code.tree, ast.Mult):
        for one in found:
            if product.left is one.node:
                yield product, one, product.right
            elif product.right is one.node:
                yield product, one, product.left
