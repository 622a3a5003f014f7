"""Faults of attention: the scale, the softmax, the mask, the heads, the output projection."""

import ast
import re
from collections.abc import Iterator

from .code import Code, Edit, contains
from .norm import roots, under_root

Candidates = Iterator[list[Edit]]

PRODUCTS = ("matmul", "einsum", "bmm")
FUSED = "scaled_dot_product_attention"


def attentions(code: Code) -> Iterator[ast.FunctionDef]:
    """Functions that call softmax, or PyTorch's own attention."""
    for function in code.functions:
        if any(code.calls(function, "softmax", FUSED)):
            yield function


def missing_attention_scale(code: Code) -> Candidates:
    for function in attentions(code):
        for node in code.binary(function, ast.Div, ast.Mult):
            for kept, scale in ((node.left, node.right), (node.right, node.left)):
                if _multiplies(code, kept) or re.search(r"sqrt|scale|\*\* *-?0?\.5", code.of(scale)):
                    yield [code.replace(node, code.inside(kept))]
        for call in code.calls(function, FUSED):
            yield [code.insert_after(_last(call), ", scale=1.0")]


def wrong_attention_scale(code: Code) -> Candidates:
    classes = [one for one in code.classes.values() if any(code.calls(one, "softmax", FUSED))]
    for owner in classes:
        for root in roots(code, owner):
            operand = under_root(code, root)
            if not contains(operand, ast.Add):
                inverted = isinstance(root, ast.BinOp) and code.of(root.right).startswith("-")
                yield [code.replace(root, f"(1 / {code.inside(operand)})" if inverted else code.inside(operand))]
    for function in attentions(code):
        for call in code.calls(function, FUSED):
            yield [code.insert_after(_last(call), f", scale=1.0 / {code.inside(call.args[0])}.shape[-1]")]


def softmax_wrong_dim(code: Code) -> Candidates:
    for function in attentions(code):
        for call in code.calls(function, "softmax"):
            dims = [keyword.value for keyword in call.keywords if keyword.arg == "dim"] or call.args[-1:]
            for dim in dims:
                yield [code.replace(dim, "-2")]


def causal_mask(code: Code) -> Candidates:
    for function in attentions(code):
        for call in code.calls(function, FUSED):
            yield [code.insert_after(_last(call), ", is_causal=True")]
        for call in code.calls(function, "softmax"):
            scores = code.operand(call)
            if scores is not None and code.torch is not None:
                text = code.inside(scores)
                later = f"{code.torch}.full_like({text}, float('-inf')).triu(1)"
                yield [code.replace(scores, f"({text} + {later})" if scores not in call.args else f"{text} + {later}")]


def wrong_head_split(code: Code) -> Candidates:
    for function in code.functions:
        chains = list(_split_chains(code, function))
        yield [edit for edits in chains for edit in edits]
        yield from chains


def heads_not_merged(code: Code) -> Candidates:
    for function in code.functions:
        for call in code.calls(function, "view", "reshape", "flatten"):
            inner = code.operand(call)
            while isinstance(inner, ast.Call):
                turned = code.operand(inner)
                if isinstance(inner.func, ast.Attribute) and inner.func.attr in ("transpose", "permute", "swapaxes"):
                    assert turned is not None
                    yield [code.replace(inner, code.inside(turned))]
                    break
                inner = turned if inner.func is not turned else None


def missing_output_projection(code: Code) -> Candidates:
    for function in attentions(code):
        for back in code.walk(function, ast.Return):
            match back.value:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self")), args=[joined]) as call:
                    yield [code.replace(call, code.inside(joined))]


def unexpected_bias(code: Code) -> Candidates:
    for call in code.calls(code.tree):
        for keyword in call.keywords:
            match keyword:
                case ast.keyword(arg="bias", value=ast.Constant(value=False) as value):
                    yield [code.replace(value, "True")]


def _split_chains(code: Code, function: ast.FunctionDef) -> Iterator[list[Edit]]:
    """x.view(batch, seq, heads, head_dim).transpose(1, 2) becomes x.view(batch, heads, seq, head_dim)."""
    for turn in code.calls(function, "transpose", "swapaxes"):
        cut = code.operand(turn)
        match cut:
            case ast.Call(func=ast.Attribute(attr="view" | "reshape"), args=[*_, seq, heads, _]) if len(cut.args) > 2:
                assert isinstance(cut, ast.Call)
                dropped = Edit(code.span(cut)[1], code.span(turn)[1], "")
                if not isinstance(seq, ast.Starred):
                    yield [code.replace(seq, code.of(heads)), code.replace(heads, code.of(seq)), dropped]
                elif shape := re.fullmatch(r"\*(.+)\.shape\[:-1\]", code.of(seq)):
                    of = shape[1]
                    yield [
                        code.replace(seq, f"*{of}.shape[:-2]"),
                        code.insert_after(heads, f", {of}.shape[-2]"),
                        dropped,
                    ]


def _multiplies(code: Code, node: ast.expr) -> bool:
    return contains(node, ast.MatMult) or any(code.calls(node, *PRODUCTS))


def _last(call: ast.Call) -> ast.expr | ast.keyword:
    return call.keywords[-1] if call.keywords else call.args[-1]
