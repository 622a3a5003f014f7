"""Positions of each sequence, where the batch equals another size."""

import torch

from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

from ..small import Right


class Positions(Right):
    """Positions (batch, seq), with an axis for the heads."""

    def forward(self, x, token_positions=None):
        self.positions = torch.arange(x.shape[-2], device=x.device) if token_positions is None else token_positions
        return super().forward(x)

    def of_heads(self, x):
        return self.positions[..., None, :]

    def rotated(self, x, positions):
        return super().rotated(x, self.of_heads(x))


class WithoutAnAxisForHeads(Positions):
    """(seq,) alone: (batch, seq) raises, or turns heads where there are as many of these as sequences."""

    def of_heads(self, x):
        return self.positions


class AnAxisOnlyWhereItWouldRaise(Positions):
    """(batch, seq) is right unless there are as many sequences as heads."""

    def of_heads(self, x):
        return self.positions if len(self.positions) == self.heads else self.positions[..., None, :]


def judged(block) -> Verdict:
    return judge(LocalSubject(block), Code(root="", module=block.__module__, file="", name=block.__name__), seed=0)


def test_positions_of_each_sequence_are_right_for_every_batch():
    verdict = judged(Positions)
    assert verdict.ids == []
    assert "token_positions" not in verdict.conventions


SAID = "(4, 7), different for each sequence, give wrong numbers; 4 is num_heads"


def test_positions_that_are_taken_for_those_of_heads_are_a_fault():
    verdict = judged(AnAxisOnlyWhereItWouldRaise)
    assert [(one.id, one.counts) for one in verdict.findings] == [("wrong_at_some_lengths", True)]
    assert verdict.findings[0].evidence == f"token_positions {SAID}"


def test_of_a_block_for_one_row_of_positions_it_is_told():
    verdict = judged(WithoutAnAxisForHeads)
    assert verdict.ids == []
    assert verdict.conventions["token_positions"] == f"(seq,), the same for every sequence; {SAID}, and no error"
