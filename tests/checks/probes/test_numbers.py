"""Weights that are no parameters: the numbers are explained with them, and no gradient reaches them."""

import pytest
import torch
import torch.nn.functional as F

from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject

from ..small import Right


class PlainTensors(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        del self.qkv, self.o, self.gate, self.up, self.down
        shapes = self.shapes(d_model, d_model // num_heads)
        self.q_proj, self.k_proj, self.v_proj = (torch.randn(shape) / d_model**0.5 for shape in shapes)
        self.o_proj = torch.randn(d_model, d_model) / d_model**0.5
        width = 2 * d_ff  # another than was asked for
        self.w1, self.w3 = (torch.randn(width, d_model) / d_model**0.5 for _ in range(2))
        self.w2 = torch.randn(d_model, width) / width**0.5

    def shapes(self, d_model, head_dim):
        return [(d_model, d_model)] * 3

    def heads_of(self, x, weight):
        return (x @ weight.T).unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(-3, -2)

    def attention(self, x):
        q, k, v = (self.heads_of(x, weight) for weight in (self.q_proj, self.k_proj, self.v_proj))
        positions = torch.arange(x.shape[-2], device=x.device)
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        y = self.mixed(self.rotated(q, positions), self.rotated(k, positions), v)
        return y.transpose(-3, -2).flatten(-2) @ self.o_proj.T

    def feed_forward(self, x):
        return (F.silu(x @ self.w1.T) * (x @ self.w3.T)) @ self.w2.T


class GroupedPlainTensors(PlainTensors):
    def shapes(self, d_model, head_dim):
        return [(d_model, d_model), (2 * head_dim, d_model), (2 * head_dim, d_model)]


class PlainTensorsByHead(PlainTensors):
    def shapes(self, d_model, head_dim):
        return [(d_model // head_dim, d_model, head_dim)] * 3

    def heads_of(self, x, weight):
        return torch.einsum("...sd,hdk->...hsk", x, weight)


@pytest.mark.parametrize("block", [PlainTensors, GroupedPlainTensors, PlainTensorsByHead])
def test_no_gradient_reaches_weights_that_are_plain_tensors(block):
    verdict = judge(LocalSubject(block), Code(root="", module=block.__module__, file="", name=block.__name__), seed=0)
    found = {one.id: one.evidence for one in verdict.findings if one.counts}
    assert "unexplained" not in found
    assert "q (q_proj), k (k_proj), v (v_proj), o (o_proj)" in found["gradient_missing"]
    assert "width of 104" in found["d_ff_ignored"]
    reasons = {one.name: one.reason for one in verdict.checks}
    assert reasons["weights at the start"] == "none of its parameters is a matrix"
