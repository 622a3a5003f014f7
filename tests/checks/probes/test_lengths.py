"""The lengths that a block is tried at."""

import time

import torch

from prenorm.checks.probes.case import Case
from prenorm.checks.probes.lengths import sequence_lengths

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
