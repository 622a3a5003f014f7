"""Pairs that are turned in a wrong way, by queries and keys alike or by one of them, are explained and named."""

import pytest
import torch

from prenorm import testing
from prenorm.checks.probes import numbers

from ..probes.started import started
from ..small import Right


class Turns(Right):
    """of: which of queries and keys has the slip; backwards: the other direction is the block's convention."""

    of = "qk"
    backwards = False

    def slip(self, a, b, cos, sin):
        raise NotImplementedError

    def attention(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        q, k = (self.turned(t, self.slip if name in self.of else right) for name, t in (("q", q), ("k", k)))
        return self.o(self.mixed(q, k, v).transpose(-3, -2).flatten(-2))

    def turned(self, x, how):
        pair = torch.arange(0, x.shape[-1], 2, dtype=torch.float64, device=x.device)
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * 10000.0 ** (-pair / x.shape[-1])
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return torch.stack(how(x[..., ::2], x[..., 1::2], cos, -sin if self.backwards else sin), -1).flatten(-2)


def right(a, b, cos, sin):
    return a * cos - b * sin, a * sin + b * cos


class SameSign(Turns):
    def slip(self, a, b, cos, sin):
        return a * cos + b * sin, a * sin + b * cos


class ExchangedInTheFirst(Turns):
    def slip(self, a, b, cos, sin):
        return a * sin - b * cos, a * sin + b * cos


class ExchangedInTheSecond(Turns):
    def slip(self, a, b, cos, sin):
        return a * cos - b * sin, a * cos + b * sin


class FirstOverwritten(Turns):
    def slip(self, a, b, cos, sin):
        a = a * cos - b * sin
        return a, a * sin + b * cos


class SecondOverwritten(Turns):
    def slip(self, a, b, cos, sin):
        b = a * sin + b * cos
        return a * cos - b * sin, b


class CosInPlaceOfSin(Turns):
    def slip(self, a, b, cos, sin):
        return right(a, b, cos, cos)


class SinInPlaceOfCos(Turns):
    def slip(self, a, b, cos, sin):
        return right(a, b, sin, sin)


class Exchanged(Turns):
    def slip(self, a, b, cos, sin):
        return right(a, b, sin, cos)


class TheOtherWay(Turns):
    def slip(self, a, b, cos, sin):
        return right(a, b, cos, -sin)


SLIPS = [
    (SameSign, "rope_not_a_rotation", "both sines have the same sign"),
    (ExchangedInTheFirst, "rope_not_a_rotation", "cos and sin are exchanged in the first dimension"),
    (ExchangedInTheSecond, "rope_not_a_rotation", "cos and sin are exchanged in the second dimension"),
    (FirstOverwritten, "rope_not_a_rotation", "the first dimension is overwritten"),
    (SecondOverwritten, "rope_not_a_rotation", "the second dimension is overwritten"),
    (CosInPlaceOfSin, "rope_not_a_rotation", "cos stands in place of sin"),
    (SinInPlaceOfCos, "rope_not_a_rotation", "sin stands in place of cos"),
    (Exchanged, "rope_not_a_rotation", "cos and sin are exchanged for queries or keys alone"),
    (TheOtherWay, "rope_wrong_direction", "opposite directions"),
]


def said(block, of: str, *, backwards: bool = False) -> dict[str, str]:
    case = started(type(block.__name__, (block,), {"of": of, "backwards": backwards}))
    case.built = case.wide()
    case.raw = case.built.draw(case.generator)
    numbers.numbers(case)
    return case.report.findings


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("of", "block", "id", "evidence"), [("qk"[place % 2], *slip) for place, slip in enumerate(SLIPS)]
)
def test_what_only_queries_or_keys_have_is_named(of, block, id, evidence, shapes_unchecked):
    found = said(block, of)
    assert [*found] == [id]
    assert evidence in found[id]
    if block not in (Exchanged, TheOtherWay):
        assert f"for {'queries' if of == 'q' else 'keys'} alone" in found[id]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("block", "id", "evidence"), [SLIPS[0], *SLIPS[3:7]])
def test_what_both_have_is_named_in_either_direction(block, id, evidence, backwards, shapes_unchecked):
    found = said(block, "qk", backwards=backwards)
    assert [*found] == [id]
    assert evidence in found[id]
    assert "alone" not in found[id]


@pytest.mark.parametrize("block", [Exchanged, TheOtherWay])
def test_what_both_have_and_scores_do_not_show_is_a_direction(block):
    assert said(block, "qk") == {}


def test_everything_else_of_such_a_block_is_predicted():
    assert testing.check(ExchangedInTheSecond).verdict.ids == ["rope_not_a_rotation"]
