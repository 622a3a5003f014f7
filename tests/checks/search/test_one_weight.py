"""One weight for several of queries, keys and values, or for gate and up, is named, and is a fault or a choice."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ..small import Right
from .test_slips import explained


class Projections(Right):
    """Of queries, keys and values: a name each, of which some are the same. unused: names of others."""

    names = ("q", "k", "v")
    unused: tuple[str, ...] = ()

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.qkv = None
        for name in dict.fromkeys((*self.names, *self.unused)):
            self.add_module(f"{name}_proj", nn.Linear(d_model, d_model, bias=False))

    def attention(self, x):
        projected = (getattr(self, f"{name}_proj")(x) for name in self.names)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for one in projected)
        positions = torch.arange(x.shape[-2], device=x.device)
        y = self.mixed(self.rotated(q, positions), self.rotated(k, positions), v)
        return self.o(y.transpose(-3, -2).flatten(-2))


class OfGrouped(Projections):
    """Keys and values of two heads, both computed with the first."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for name in "kv":
            self.add_module(f"{name}_proj", nn.Linear(d_model, d_model // 2, bias=False))

    def attention(self, x):
        projected = (self.q_proj(x), self.k_proj(x), self.k_proj(x))
        q, k, v = (one.unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(-3, -2) for one in projected)
        positions = torch.arange(x.shape[-2], device=x.device)
        k, v = (one.repeat_interleave(2, -3) for one in (k, v))
        y = self.mixed(self.rotated(q, positions), self.rotated(k, positions), v)
        return self.o(y.transpose(-3, -2).flatten(-2))


class UpTwice(Right):
    def feed_forward(self, x):
        return self.down(F.silu(self.up(x)) * self.up(x))


FAULTS = [
    (Projections, {"names": ("q", "q", "v"), "unused": ("k",)}, "queries and keys have one projection (not used: k_"),
    (Projections, {"names": ("q", "k", "k"), "unused": ("v",)}, "keys and values have one projection (not used: v_"),
    (Projections, {"names": ("q", "k", "q"), "unused": ("v",)}, "queries and values have one projection (not used: v_"),
    (Projections, {"names": ("q", "q", "q"), "unused": ("k", "v")}, "queries and keys and values have one projection"),
    (Projections, {"names": ("a", "a", "a")}, "queries and keys and values have one projection"),
    (OfGrouped, {}, "keys and values have one projection (not used: v_"),
    (UpTwice, {}, "gate and up have one projection (not used: gate"),
]
CHOICES = [("qk", "qk", "v"), ("q", "kv", "kv")]


@pytest.mark.parametrize(("block", "members", "evidence"), FAULTS)
def test_one_weight_in_place_of_several_is_named(block, members, evidence, shapes_unchecked):
    report = explained(block, **members)
    assert report.faults() == {"shared_projection"}
    assert evidence in report.findings["shared_projection"]


@pytest.mark.parametrize("names", CHOICES)
def test_two_roles_of_one_weight_are_a_choice_where_no_other_is_unused(names, shapes_unchecked):
    report = explained(Projections, names=names)
    assert report.choices == {"shared_projection"} == {*report.findings}
