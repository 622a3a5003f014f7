"""The lengths that a block is tried at."""

import time

import pytest
import torch
from torch.nn import functional as F

from prenorm import testing
from prenorm.checks.probes import lengths
from prenorm.checks.probes.case import Case
from prenorm.checks.probes.lengths import sequence_lengths
from prenorm.checks.subject.learner import SINGLE
from prenorm.checks.verdict import PASSED

from ..small import Right
from .started import started


class CompilesForEachLength(Right):
    """As blocks written with einx do."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.known: set[int] = set()

    def attention(self, x):
        if x.shape[-2] not in self.known:
            self.known.add(x.shape[-2])
            time.sleep(0.2)
        return super().attention(x)


class EvenLengthsOnly(CompilesForEachLength):
    def attention(self, x):
        return super().attention(x.unflatten(-2, (-1, 2)).flatten(-3, -2))


def tried(block) -> Case:
    case = started(block)
    built = case.build()
    sequence_lengths(case, built, built.draw(case.generator, torch.float32))
    return case


def said(case: Case) -> str:
    return next(check.reason for check in case.report.checks if check.name == "sequence lengths")


def test_every_length_is_tried():
    case = tried(Right)
    assert case.tried == [*range(1, 25)]
    assert said(case) == "1 to 24 tokens"


def test_of_a_block_that_compiles_for_each_length_a_few_are_tried():
    case = tried(CompilesForEachLength)
    assert case.tried == [1, 4, 8, 24]  # one token, num_heads, head_dim, max_seq_len
    assert said(case).startswith("1, 4, 8, 24 of 1 to 24 tokens; each length that is new takes 0.")


def test_where_one_of_the_few_fails_all_are_tried():
    case = tried(EvenLengthsOnly)
    assert case.tried == [*range(1, 25)]
    assert "it fails at 1, 3, 5, 7, 9, 11, 13, 15: " in case.report.findings["sequence_length_fixed"]


class MaskInFloat32(Right):
    """Right in float32; in float64 PyTorch's attention on a CPU gives wrong numbers from 16 tokens on, silently."""

    def mixed(self, q, k, v):
        mask = torch.full((q.shape[-2],) * 2, float("-inf"), dtype=torch.float32, device=q.device).triu(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_numbers_that_are_right_in_float32_alone_are_right():
    verdict = testing.check(MaskInFloat32).verdict
    assert "wrong_at_some_lengths" not in verdict.ids
    assert "numbers at every length" in {one.name for one in verdict.checks if one.result == PASSED}


def test_the_checks_share_the_shapes_of_their_calls(monkeypatch):
    shapes = set[tuple[int, ...]]()

    class SaysItsShapes(Right):
        def forward(self, x):
            shapes.add(tuple(x.shape))
            return super().forward(x)

    monkeypatch.setattr(lengths, "SECONDS", -1.0)  # as if each new shape took long
    assert not testing.check(SaysItsShapes).verdict.ids
    assert {shape for shape in shapes if shape[-2] == 1} == {(1, 1, 32), (SINGLE, 1, 32)}
    assert len(shapes) <= 17  # one of them has 600 tokens, for angles in bfloat16


class LosesOneToken(Right):
    """Of one sequence the residual brings the axis back, of several it makes (batch, batch, d_model)."""

    def projected(self, x, y):
        return self.o(y).squeeze()


class TakesTheBatchForHeads(Right):
    def attention(self, x):
        if x.dim() == 3 and len(x) == self.heads:
            x = x.view(self.heads, -1)
        return super().attention(x)


class OneTokenAlone(Right):
    """Wrong at one token in any batch, which is told once."""

    def attention(self, x):
        return super().attention(x)[..., [-2, -1] if x.shape[-2] == 1 else slice(None), :]


@pytest.mark.parametrize(
    ("block", "id", "says"),
    [
        (LosesOneToken, "sequence_length_fixed", f"{SINGLE} sequences of 1 token raise refused: the output must have"),
        (TakesTheBatchForHeads, "forward_error", "4 sequences of 7 tokens raise RuntimeError"),
        (OneTokenAlone, "sequence_length_fixed", "of the lengths 1 to 24 it fails at 1: "),
    ],
)
def test_a_length_that_fails_in_larger_batches_alone_is_a_fault(block, id, says):
    report = tried(block).report
    assert report.faults() == {id}
    assert report.findings[id].startswith(says)
    assert ";" not in report.findings[id] or "num_heads" in report.findings[id]


def test_the_numbers_of_a_block_that_fails_for_one_token_are_judged_all_the_same():
    assert testing.check(LosesOneToken).verdict.ids == ["sequence_length_fixed"]
