"""A search takes no more than its work, and what it ends before is no fault."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from prenorm.checks import judge as judging
from prenorm.checks.formula.parameters import Piece, weights
from prenorm.checks.formula.reference import block
from prenorm.checks.formula.spec import Spec, are_several
from prenorm.checks.probes.case import Case
from prenorm.checks.search import fitting, trials
from prenorm.checks.search.trials import Probe, Trials
from prenorm.checks.search.work import AT_ONCE, WHOLE, Work, units
from prenorm.checks.source.code import locate
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

from .. import small

BESIDE = 1.1
"""The whole of a probe is compared too, where its first sequences agree; that is not counted."""


class OddScores(small.Right):
    def mixed(self, q, k, v):
        return small.scores_of(q, k).softmax(-1).roll(1, -3) @ v


class OddFeedForward(small.Right):
    def feed_forward(self, x):
        return self.down(self.gate(x).cos() * self.up(x).sin())


class OddScoresOfLargeSizes(OddScores):
    def __init__(self, d_model, num_heads, d_ff):
        if d_model % 64:
            raise ValueError(f"d_model={d_model} is no multiple of 64")
        super().__init__(d_model, num_heads, d_ff)


def judged(odd: type[small.Right]) -> Verdict:
    return judging.judge(LocalSubject(odd), locate(f"{small.__file__}:Right"), seed=0)


def test_what_a_part_spends_is_spent_of_the_whole():
    whole = Work(120)
    part = whole.part(AT_ONCE)
    assert [part.spend(units) for units in (50, 11, 10)] == [True, False, True]
    assert whole.left == 60
    assert [share.left for share in whole.shares(2)] == [40, 60]


@pytest.mark.long
@pytest.mark.parametrize("odd", [OddFeedForward, OddScoresOfLargeSizes])
def test_all_searches_together_take_no_more_than_the_whole(odd, monkeypatch):
    spent = []

    def counting(evaluate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def counted(spec, values, x, *rest):
            numbers = (spec.theta, spec.softcap, spec.factor, spec.branch, *spec.frequencies)
            several = max(one.numel() if are_several(one) else 1 for one in numbers)
            spent.append(units(values, max(len(x) * several // 2, 1), x.shape[-2]))
            return evaluate(spec, values, x, *rest)

        return counted

    for module in (trials, fitting):
        monkeypatch.setattr(module, "block", counting(module.block))
    verdict = judged(odd)
    assert [one.id for one in verdict.faults] == ["unexplained"]
    assert WHOLE / 2 < sum(spent) < WHOLE * BESIDE


def test_what_a_search_ends_before_is_no_fault(monkeypatch):
    monkeypatch.setattr(judging, "Case", partial(Case, work=Work(50_000)))
    (found,) = judged(OddFeedForward).findings
    assert (found.id, found.counts) == ("unexplained", False)
    assert found.evidence.endswith(", where the limit of its work ended the search")


def test_a_mean_over_the_batch_is_found_from_the_whole_batch():
    """Although outputs are compared for the first sequences alone, where others do not matter."""
    generator = torch.Generator().manual_seed(0)
    raw = {name: torch.randn(32, 32, generator=generator, dtype=torch.float64) for name in ("v", "o", "up", "down")}
    inner = {name: Piece((name,), 1) for name in ("v", "up")} | {"q": Piece(("v",), 1), "k": Piece(("v",), 1)}
    reading = inner | {name: Piece((name,), 0, None, True) for name in ("o", "down")}
    x = torch.randn(14, 1, 32, generator=generator, dtype=torch.float64)
    switch = {"norm1": "batch", "norm2": "batch"}
    y = block(Spec(**switch), weights([reading], raw), x, torch.zeros(1, 1), 4)[0]
    search = Trials(4, lambda: None, Work())
    ((found, cost, which),) = search.find([(Spec(), 0)], [switch], [reading], Probe(raw, x, y, 1e-5))
    assert (found, cost, which) == (Spec(**switch), 1, [0])
