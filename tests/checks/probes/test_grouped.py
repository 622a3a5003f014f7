"""Keys and values that are laid out over query heads in two ways are a fault; one way for both is a convention."""

import pytest
import torch
from torch import nn

from prenorm.checks.probes import arguments, numbers

from ..small import Right
from .started import started


class Grouped(Right):
    """tiled: which of keys and values query head h reads from head h mod num_kv_heads."""

    tiled = ""

    def __init__(self, d_model, num_heads, d_ff, num_kv_heads):
        super().__init__(d_model, num_heads, d_ff)
        self.qkv = None
        width = d_model // num_heads * num_kv_heads
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k, self.v = nn.Linear(d_model, width, bias=False), nn.Linear(d_model, width, bias=False)

    def attention(self, x):
        projected = (self.q(x), self.k(x), self.v(x))
        q, k, v = (t.unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(-3, -2) for t in projected)
        positions = torch.arange(x.shape[-2], device=x.device)
        k, v = self.laid_out("k", self.rotated(k, positions)), self.laid_out("v", v)
        return self.o(self.mixed(self.rotated(q, positions), k, v).transpose(-3, -2).flatten(-2))

    def laid_out(self, role, x):
        copies = self.heads // x.shape[-3]
        return torch.cat([x] * copies, -3) if role in self.tiled else x.repeat_interleave(copies, -3)


def report_of(tiled):
    case = started(type("Grouped", (Grouped,), {"tiled": tiled}))
    case.built = case.wide()
    case.raw = case.built.draw(case.generator)
    numbers.numbers(case)
    arguments.grouped_heads(case)
    return case.report


@pytest.mark.parametrize(("tiled", "said"), [("k", "the keys alone are tiled"), ("v", "the values alone are tiled")])
def test_keys_of_one_head_and_values_of_another_are_a_fault(tiled, said, shapes_unchecked):
    report = report_of(tiled)
    assert report.faults() == {"gqa_tiled_instead_of_repeated"}
    assert said in report.findings["gqa_tiled_instead_of_repeated"]


@pytest.mark.parametrize(("tiled", "said"), [("", "repeated"), ("kv", "tiled")])
def test_one_way_for_both_is_a_convention(tiled, said, shapes_unchecked):
    report = report_of(tiled)
    assert report.findings == {}
    assert report.conventions["grouped_heads"] == said
