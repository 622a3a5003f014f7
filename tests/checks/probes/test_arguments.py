"""Positions of each sequence, where the batch equals another size; rotations that raise an error."""

from typing import Any

import einops
import pytest
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


class TurnsOnlyAtPositions(Positions):
    """The name of a table is misspelt where positions are used."""

    def forward(self, x, token_positions=None):
        self.positions = token_positions
        return Right.forward(self, x)

    def rotated(self, x, positions):
        return x if self.positions is None else Right.rotated(self, x, self.tabel[self.positions])


class NeverTurns(TurnsOnlyAtPositions):
    def rotated(self, x, positions):
        return x if self.positions is None else x + 0 * self.positions.sum()


class TurnsOnlyIfSwitchedOn(Positions):
    """Einops wants the pattern last."""

    def __init__(self, d_model, num_heads, d_ff, with_rope: bool = False):
        super().__init__(d_model, num_heads, d_ff)
        self.turns = with_rope and self.switched_on(d_model // num_heads)

    def switched_on(self, head_dim):
        einsum: Any = einops.einsum
        return einsum("i, j -> i j", torch.arange(24), torch.arange(head_dim)) is not None

    def rotated(self, x, positions):
        return super().rotated(x, positions) if self.turns else x + 0 * self.positions.sum()


class RefusesToTurn(TurnsOnlyIfSwitchedOn):
    def switched_on(self, head_dim):
        raise NotImplementedError


AT_POSITIONS = "nothing is rotated without token_positions, and with them it raises AttributeError"
SWITCHED_ON = "nothing is rotated, and with with_rope=True it raises ValueError"


@pytest.mark.parametrize(
    ("block", "id", "said"),
    [
        (TurnsOnlyAtPositions, "forward_error", AT_POSITIONS),
        (TurnsOnlyIfSwitchedOn, "constructor_error", SWITCHED_ON),
        (NeverTurns, "missing_rope", ""),
        (RefusesToTurn, "missing_rope", ""),
    ],
)
def test_an_error_of_what_would_rotate_is_told_in_place_of_a_missing_rotation(block, id, said):
    verdict = judged(block)
    assert [(one.id, one.counts) for one in verdict.findings] == [(id, True)]
    assert said in verdict.findings[0].evidence
