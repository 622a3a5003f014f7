"""Masks that have an effect, none, or another one than a mask of attention has."""

import pytest
import torch
from torch.nn import functional as F

from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.child.meanings import ATTENTION_MASK
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

from ..small import Right


class Masked(Right):
    """Attends to what a mask allows, and to everything without one."""

    mask = None

    def mixed(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def forward(self, x, mask=None):
        self.mask = mask
        return super().forward(x)


class NotHandedOn(Masked):
    def forward(self, x, mask=None):
        return super().forward(x)


class CausalByItself(Right):
    def forward(self, x, attention_mask=None):
        return super().forward(x)


class SwitchesCausalityOn(Masked):
    def forward(self, x, mask=None):
        return super().forward(x, None if mask is None else torch.ones(x.shape[-2], x.shape[-2]).tril().bool())


class OfFrames(NotHandedOn):
    def forward(self, x, frames_mask):
        return super().forward(x)


class OfFramesThatAreAdded(NotHandedOn):
    def forward(self, x, frames_mask=None):
        y = super().forward(x)
        return y if frames_mask is None else y + frames_mask.to(y.dtype).mean()


class WithAWeightForEachKey(Masked):
    def forward(self, x, mask=None):
        return super().forward(x, None if mask is None else mask.to(x.dtype).cumsum(-1))


class BooleanAdded(Right):
    """masked_fill leaves a boolean mask boolean: -inf is True, which is added as 1."""

    def mixed(self, q, k, v):
        allowed = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask = allowed.masked_fill(~allowed, -torch.inf).masked_fill(allowed, 0.0)
        return (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v


class BooleanAddedWhereAllowed(Right):
    def mixed(self, q, k, v):
        allowed = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
        return (q @ k.mT / q.shape[-1] ** 0.5 + allowed).softmax(-1) @ v


class BooleanArgumentAdded(Masked):
    def mixed(self, q, k, v):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return (scores if self.mask is None else scores + ~self.mask).softmax(-1) @ v


def judged(block, **options) -> Verdict:
    code = Code(root="", module=block.__module__, file="", name=block.__name__)
    return judge(LocalSubject(block), code, seed=0, **options)


def test_a_mask_that_hides_is_right():
    verdict = judged(Masked)
    assert verdict.ids == []
    assert ("mask", "passed") in [(one.name, one.result) for one in verdict.checks]


def test_a_mask_without_an_effect_counts_where_nothing_else_hides():
    assert [one.id for one in judged(NotHandedOn).faults] == ["mask_ignored"]


def test_a_mask_without_an_effect_is_told_of_a_block_that_is_causal_by_itself():
    verdict = judged(CausalByItself)
    assert (verdict.ids, verdict.faults) == (["mask_ignored"], ())
    assert "one of its own" in verdict.findings[0].evidence


def test_a_mask_of_any_values_may_mean_causal():
    verdict = judged(SwitchesCausalityOn)
    assert verdict.ids == []
    assert "any mask makes attention causal" in str(verdict.conventions["mask"])
    assert "mask_ignored" in [one.id for one in judged(SwitchesCausalityOn, target="paper").faults]


@pytest.mark.parametrize("block", [OfFrames, OfFramesThatAreAdded])
def test_of_a_mask_of_something_else_nothing_is_concluded(block):
    verdict = judged(block)
    assert verdict.ids == []
    assert "frames_mask is not understood" in str(verdict.conventions["mask"])
    assert "mask_handed_in" not in verdict.conventions


def test_a_mask_of_attention_with_an_odd_effect_counts():
    assert judged(WithAWeightForEachKey).ids == ["unexplained"]


@pytest.mark.parametrize("block", [BooleanAdded, BooleanAddedWhereAllowed, BooleanArgumentAdded])
def test_a_boolean_mask_that_is_added_is_named(block):
    verdict = judged(block)
    assert verdict.ids == ["mask_value_too_small"]
    assert "a boolean mask is added (True is 1)" in verdict.findings[0].evidence


@pytest.mark.parametrize(
    "name",
    ["mask", "attn_mask", "attention_mask", "causal_mask", "src_mask", "self_attn_mask", "attnmask", "attn_bias"],
)
def test_names_of_attention_masks(name):
    assert ATTENTION_MASK.search(name)


@pytest.mark.parametrize("name", ["frames_mask", "key_padding_mask", "loss_mask", "token_mask", "image_mask", "masked"])
def test_names_of_other_masks(name):
    assert not ATTENTION_MASK.search(name)
