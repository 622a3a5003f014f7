"""Where a block draws random numbers in eval mode, and what it keeps of a call."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from prenorm.checks.judge import judge
from prenorm.checks.probes.behaviour import dropout_argument, repeated_calls
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject

from ..small import Right
from .started import started


class DropsWeights(Right):
    """Its line hands the dropout on, and the function that it calls drops."""

    def __init__(self, d_model, num_heads, d_ff, dropout=0.0):
        super().__init__(d_model, num_heads, d_ff)
        self.dropout = dropout

    def mixed(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout)


class Always(Right):
    def feed_forward(self, x):
        hidden = F.silu(self.gate(x)) * self.up(x)
        hidden = F.dropout(hidden, 0.1)
        return self.down(hidden)


class Noise(Right):
    def feed_forward(self, x):
        noise = torch.randn_like(x) * 0.1
        return super().feed_forward(x + noise)


class DropsByAMisspeltName(DropsWeights):
    def mixed(self, q, k, v):
        y = super().mixed(q, k, v)
        return F.droput(y, self.dropout) if self.dropout else y  # type: ignore[attr-defined]


class RefusesDropout(DropsWeights):
    def __init__(self, d_model, num_heads, d_ff, dropout=0.0):
        super().__init__(d_model, num_heads, d_ff)
        if dropout:
            raise AttributeError("it has no dropout")


@pytest.mark.parametrize(("block", "ids"), [(DropsByAMisspeltName, {"forward_error"}), (RefusesDropout, set())])
def test_dropout_that_raises_is_an_error_where_no_name_can_be_meant(block, ids):
    case = started(block)
    dropout_argument(case, case.build().draw(case.generator, torch.float32), inspect.getsource(block))
    assert case.report.faults() == ids


@pytest.mark.parametrize(
    ("block", "id", "code"),
    [
        (DropsWeights, "dropout_in_eval", "return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p"),
        (Always, "dropout_in_eval", "hidden = F.dropout(hidden, 0.1)"),
        (Noise, "not_deterministic", "noise = torch.randn_like(x) * 0.1"),
    ],
)
def test_the_line_is_the_one_that_draws(block, id, code):
    case = started(block)
    assert case.built is None
    built = case.build()
    raw = built.draw(case.generator, torch.float32)
    repeated_calls(case, built, raw)
    dropout_argument(case, raw, "")
    assert [*case.report.findings] == [id]
    lines = [frame["code"] for frame in case.report.errors[id]["frames"] if frame["file"] == __file__]
    assert lines[-1].startswith(code)


class RaisesTheSecondTime(Right):
    """A tensor is neither true nor false."""

    positions = None

    def attention(self, x):
        if not self.positions:
            self.positions = torch.arange(x.shape[-2], device=x.device)
        return super().attention(x)


def test_an_error_of_the_second_call_says_that_the_first_one_runs():
    block = RaisesTheSecondTime
    verdict = judge(LocalSubject(block), Code(root="", module=block.__module__, file="", name=block.__name__), seed=0)
    assert verdict.ids == ["retains_state"]
    assert verdict.findings[0].evidence.startswith("the first call runs, and a later one of the same block raises")
