"""Norms that do not compute in float32, found by what their modules are given and give, whatever the rest does."""

import pytest
import torch
from torch import nn

from prenorm.checks.judge import judge
from prenorm.checks.probes import numbers
from prenorm.checks.probes.case import Report
from prenorm.checks.probes.initial import constructed
from prenorm.checks.probes.norm_rounding import norms_by_themselves
from prenorm.checks.search.explanation import UnexplainedError
from prenorm.checks.source.code import Code
from prenorm.checks.subject.learner import Built
from prenorm.checks.subject.local import LocalSubject

from ..small import HandNorm, NothingInFloat32, RaisesInBfloat16, Right
from .started import started


class Second(Right):
    def norms(self, d_model):
        return HandNorm(d_model), NothingInFloat32(d_model)


class Centred(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.scale + self.shift


class PlusOne(NothingInFloat32):
    def forward(self, x):
        square = (x @ x.mT).diagonal(dim1=-2, dim2=-1)[..., None] / x.shape[-1]
        return x / (square + 1e-5).sqrt() * (1 + self.weight)


class LayerNorms(Right):
    def norms(self, d_model):
        return Centred(d_model), Centred(d_model)


class OffsetNorms(Right):
    def norms(self, d_model):
        return PlusOne(d_model), NothingInFloat32(d_model)


class HandsInFloat32(Second):
    """The block converts, so that its norms need not."""

    def norms(self, d_model):
        return NothingInFloat32(d_model), NothingInFloat32(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x.float()).type_as(x))
        return x + self.feed_forward(self.norm2(x.float()).type_as(x))


class HandsInFloat32AndRaises(HandsInFloat32, RaisesInBfloat16):
    pass


class Unused(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.last = NothingInFloat32(d_model)


class NoNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x / x.amax(-1, keepdim=True) * self.weight


class OtherNorms(Right):
    def norms(self, d_model):
        return NoNorm(d_model), NoNorm(d_model)


class Raises(RaisesInBfloat16):
    def norms(self, d_model):
        return NothingInFloat32(d_model), HandNorm(d_model)


def judged(block: type[nn.Module]) -> Report:
    case = started(block)
    constructed(case, "")
    norms_by_themselves(case)
    return case.report


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Second, ["norm2.weight"]),
        (LayerNorms, ["norm1.scale"]),  # the other is of the same class
        (OffsetNorms, ["norm1.weight", "norm2.weight"]),
        (Raises, ["norm1.weight"]),
    ],
)
def test_a_norm_by_itself_says_that_it_rounds(block, said):
    evidence = judged(block).findings["norm_without_upcast"]
    assert [one for one in ("norm1.scale", "norm1.weight", "norm2.scale", "norm2.weight") if one in evidence] == said


@pytest.mark.parametrize("block", [HandsInFloat32, HandsInFloat32AndRaises, Unused, OtherNorms, RaisesInBfloat16])
def test_what_is_given_float32_or_is_no_norm_of_the_block_is_not_blamed(block):
    assert "norm_without_upcast" not in judged(block).findings


class FromZero(HandsInFloat32):
    def norms(self, d_model):
        return HandNorm(d_model, start=torch.zeros), HandNorm(d_model)


class OffsetFromZero(HandsInFloat32):
    """Right: it multiplies by 1 + weight."""

    def norms(self, d_model):
        norms = PlusOne(d_model), HandNorm(d_model)
        nn.init.zeros_(norms[0].weight)
        return norms


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Second, ["norm_without_upcast"]),
        (HandsInFloat32, []),
        (FromZero, ["norm_weight_init"]),
        (OffsetFromZero, []),
    ],
)
def test_unexplained_numbers_hide_no_norm(block, said, monkeypatch):
    def unexplained(*_: object, **__: object) -> None:
        raise UnexplainedError("some step")

    monkeypatch.setattr(numbers, "explain", unexplained)
    verdict = judge(LocalSubject(block), Code(root="", module=block.__module__, file="", name=block.__name__), seed=0)
    assert verdict.ids == ["unexplained", *said]


@pytest.mark.parametrize("forged", [torch.ones(()), torch.ones(2, 5), torch.ones(2, 32, dtype=torch.int64)])
def test_what_a_forged_reply_says_of_a_norm_is_no_error_of_the_judge(forged, monkeypatch):
    call = {"given": forged, "result": forged, "operations": []}
    monkeypatch.setattr(Built, "seen", lambda self, raw, x, modules: dict.fromkeys(modules, call))
    assert not judged(Second).findings
