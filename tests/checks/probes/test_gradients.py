"""Weights without a gradient are named also where nothing explains the numbers."""

import pytest
from torch import nn
from torch.nn import functional as F

from prenorm import testing
from prenorm.checks.probes import numbers
from prenorm.checks.search.explanation import UnexplainedError

from ..small import Right


class WithoutItsOwnDown(Right):
    """The projection is used, but it never learns."""

    def feed_forward(self, x):
        return F.linear(F.silu(self.gate(x)) * self.up(x), self.down.weight.detach())


class FrozenDown(Right):
    """It is said once."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.down.weight.requires_grad_(False)


def ids_of(block: type[nn.Module], monkeypatch, problem: UnexplainedError) -> list[str]:
    def unexplained(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(numbers, "explain", unexplained)
    return testing.check(block).verdict.ids


@pytest.mark.parametrize(
    ("block", "ids"),
    [
        (WithoutItsOwnDown, ["unexplained", "gradient_missing"]),
        (FrozenDown, ["gradient_missing", "unexplained"]),
        (Right, ["unexplained"]),
    ],
)
def test_unexplained_numbers_hide_no_weight_without_a_gradient(block, ids, monkeypatch):
    assert ids_of(block, monkeypatch, UnexplainedError("a test")) == ids


def test_an_unread_weight_of_a_block_that_could_not_be_judged_is_none(monkeypatch):
    ended = UnexplainedError("a test")
    ended.complete = False
    assert ids_of(WithoutItsOwnDown, monkeypatch, ended) == ["unexplained"]
    unknown = UnexplainedError("a test", unknown=("experts",))
    assert ids_of(WithoutItsOwnDown, monkeypatch, unknown) == ["unreadable"]
