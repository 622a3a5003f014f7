"""Defaults of forward: one that the source makes and that never fits is an error, one that is only None is not."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from prenorm.checks.probes.case import Report
from prenorm.checks.probes.defaults import defaults
from prenorm.checks.source.code import Code, locate
from prenorm.checks.source.defaults import default_of
from prenorm.checks.source.text import Text

from ..small import Right, rope
from .started import started


class OfEachSequence(Right):
    """Positions (batch, seq) for queries (batch, heads, seq, head_dim); with (seq,) it runs."""

    def forward(self, x, token_positions=None):
        batch, seq, _ = x.shape
        if token_positions is None:
            token_positions = torch.arange(seq, device=x.device).expand(batch, seq)
        return x + self.turned(self.norm1(x), token_positions)

    def turned(self, x, positions):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(rope(q, positions), rope(k, positions), v, is_causal=True)
        return self.o(y.transpose(-3, -2).flatten(-2))


class Inside(OfEachSequence):
    """The default is made by an inner function of the same argument, in an expression."""

    def forward(self, x, token_positions=None):
        return x + self.attention_at(self.norm1(x), token_positions)

    def attention_at(self, x, token_positions=None):
        each = torch.arange(x.shape[1]).expand(len(x), -1)
        token_positions = each if token_positions is None else token_positions
        return self.turned(x, token_positions)


class OfAllSequences(OfEachSequence):
    """Right: one axis for the heads."""

    def forward(self, x, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[1], device=x.device)
        return x + self.turned(self.norm1(x), token_positions)


class NothingIsMade(OfEachSequence):
    """None is a required argument under another name."""

    def forward(self, x, token_positions=None):
        table = torch.eye(24)[token_positions]
        return x + self.turned(self.norm1(x), table.argmax(-1).expand(x.shape[1]))


class Refuses(OfEachSequence):
    def forward(self, x, token_positions=None):
        if token_positions is None:
            raise RuntimeError("token_positions must be passed")
        return x + self.turned(self.norm1(x), token_positions)


class OnlyWithAGpu(OfEachSequence):
    def forward(self, x, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[1])
            raise RuntimeError("Found no NVIDIA driver: CUDA is missing")
        return x + self.turned(self.norm1(x), token_positions)


class OfALaterLine(OfEachSequence):
    """What raises comes before the default, and is not of it."""

    def forward(self, x, token_positions=None):
        rows = torch.zeros(9)[torch.arange(99) if token_positions is None else token_positions]
        if token_positions is None:
            token_positions = torch.arange(x.shape[1])
        return x + self.turned(self.norm1(x), token_positions) + rows.sum()


class AnAttributeThatNobodySets(OfEachSequence):
    def forward(self, x, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[1], device=x.devise)
        return x + self.turned(self.norm1(x), token_positions)


class AnUndefinedName(OfEachSequence):
    def forward(self, x, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(length_of_x)  # noqa: F821
        return x + self.turned(self.norm1(x), token_positions)


class SetByAModel(OfEachSequence):
    """Before it calls the block: model.block.places = torch.arange(9)."""

    def forward(self, x, token_positions=None):
        token_positions = self.places[: x.shape[1]] if token_positions is None else token_positions
        return x + self.turned(self.norm1(x), token_positions)


class OfNone(OfEachSequence):
    """A required argument under another name, of which an attribute is read."""

    def forward(self, x, token_positions=None):
        return x + self.turned(self.norm1(x), token_positions.long())


def judged(block) -> Report:
    case = started(block)
    text = Text(Code(root="", module=block.__module__, file=__file__, name=block.__name__, files=(__file__,)))
    defaults(case, case.build(), text, text.source)
    return case.report


@pytest.mark.parametrize(
    ("block", "code"),
    [
        (OfEachSequence, "token_positions = torch.arange(seq, device=x.device).expand(batch, seq)"),
        (Inside, "token_positions = each if token_positions is None else token_positions"),
    ],
)
def test_a_default_of_the_source_that_fits_no_length_is_an_error_with_its_line(block, code):
    report = judged(block)
    assert report.faults() == {"forward_error"}
    assert "block(x) raises RuntimeError" in report.findings["forward_error"]
    assert report.errors["forward_error"]["frames"][-1]["code"] == code


@pytest.mark.parametrize(
    ("block", "code"),
    [
        (AnAttributeThatNobodySets, "token_positions = torch.arange(x.shape[1], device=x.devise)"),
        (AnUndefinedName, "token_positions = torch.arange(length_of_x)"),
    ],
)
def test_a_name_that_nothing_defines_is_an_error_in_a_call_without_arguments_too(block, code):
    report = judged(block)
    assert report.faults() == {"forward_error"}
    assert code in report.errors["forward_error"]["frames"][-1]["code"]
    assert "block(x) raises" in report.findings["forward_error"]


@pytest.mark.parametrize(
    "block", [SetByAModel, OfNone, OfAllSequences, NothingIsMade, Refuses, OnlyWithAGpu, OfALaterLine, Right]
)
def test_a_default_that_is_only_none_or_depends_on_the_machine_is_no_error(block):
    assert not judged(block).findings


def test_the_default_of_a_block_in_a_notebook_is_in_its_cell(tmp_path):
    lines = Path(__file__).read_text().splitlines(keepends=True)
    first, last = (next(n for n, line in enumerate(lines) if one in line) for one in ("class OfEach", "class Inside"))
    head = "import torch\nfrom torch.nn import functional as F\nfrom tests.checks.small import Right, rope\n"
    cells = [{"cell_type": "code", "source": one} for one in (head, "".join(lines[first:last]))]
    (tmp_path / "work.ipynb").write_text(json.dumps({"cells": cells}))
    code = locate(f"{tmp_path}/work.ipynb:OfEachSequence")
    text = Text(code)
    number = next(n for n, line in enumerate(text.source.split("\n"), 1) if ".expand(batch, seq)" in line)
    place = text.innermost({"frames": [text.frame(number)]})
    assert place is not None
    assert place.file.endswith("work.ipynb (cell 2)")
    assert place.code.startswith("token_positions = torch.arange")


def test_a_default_is_looked_for_where_the_call_has_been():
    source = """
def forward(self, x, mask=None):
    if mask is None:
        mask = ones()
    return attend(x, mask)


def other(x, mask=None):
    if mask is None:
        mask = zeros()
    return x
"""
    assert default_of(source, ["mask"], [5]) == 4
    assert default_of(source, ["mask"], [2]) is None
    assert default_of(source, ["positions"], [5]) is None
    assert default_of("def (", ["mask"], [1]) is None
