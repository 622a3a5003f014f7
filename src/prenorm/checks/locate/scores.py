"""Follows the scores through a function: the products of queries and keys, and what multiplies or divides them."""

import ast
import re

from ..source.parse import Function

PRODUCTS = frozenset({"matmul", "einsum", "bmm"})
OF_WEIGHTS = re.compile(r"self\.|weight")
"""In a product that is a projection."""
SCALINGS = frozenset({"mul", "mul_", "div", "div_", "multiply", "divide"})


def mark_scores(function: Function) -> None:
    """Mark what multiplies or divides scores, before the softmax, as "scales"."""
    scores: set[str] = set()
    for line in function.lines:
        if any(_scales(node, scores) for node in ast.walk(line.node)):
            line.kinds.add("scales")
        if "softmax" in line.text:
            return
        if isinstance(line.node, ast.Assign) and len(line.node.targets) == 1:
            target = line.node.targets[0]
            if isinstance(target, ast.Name) and any(_are_scores(node, scores) for node in ast.walk(line.node.value)):
                scores.add(target.id)


def _scales(node: ast.AST, scores: set[str]) -> bool:
    match node:
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            return _are_scores(node.left, scores) or _are_scores(node.right, scores)
        case ast.AugAssign(op=ast.Mult() | ast.Div()):
            return isinstance(node.target, ast.Name) and node.target.id in scores
        case ast.Call(func=ast.Attribute(value=scaled, attr=attr)) if attr in SCALINGS:
            return _are_scores(scaled, scores)
    return False


def _are_scores(node: ast.AST, scores: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in scores
        case ast.BinOp(op=ast.MatMult()):
            return OF_WEIGHTS.search(ast.unparse(node)) is None
        case ast.Call(func=ast.Attribute(attr=attr) | ast.Name(id=attr)) if attr in PRODUCTS:
            return OF_WEIGHTS.search(ast.unparse(node)) is None
    return False
