"""What the arguments of forward get."""

import re
from pathlib import Path

import pytest

from prenorm.checks.check import check
from prenorm.checks.judge import judge
from prenorm.checks.source.code import locate
from prenorm.checks.start.refusals import UnknownArgumentsError
from prenorm.checks.subject.local import LocalSubject

from ..strangers.projects import HEAD
from .test_start import TAKES, started

CALLS = {
    "*, x": "block(x=x)",
    "*, x, mask": "block(x=x, mask=mask)",
    "*, mask, x": "block(x=x, mask=mask)",
    "mask, hidden_states": "block(hidden_states=x, mask=mask)",
    "y, x=None": "block(x)",
}


@pytest.mark.parametrize("takes", CALLS)
def test_the_input_goes_where_its_name_stands(takes: str, tmp_path: Path) -> None:
    name = "hidden_states" if "hidden" in takes else "y" if "y" in takes else "x"
    block = TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)").replace("part(x)", f"part({name})")
    masked = f"\n        {name} = {name} * mask.float().mean()" if "mask" in takes else ""
    source = HEAD + block.replace("forward(self, x):", f"forward(self, {takes}):{masked}")
    assert started(source, tmp_path).learner.recipe.call.written() == CALLS[takes]


IMAGES = {
    "(batch, height, width, channels)": ("", ""),
    "(batch, channels, height, width)": (".movedim(1, -1)", ".movedim(-1, 1)"),
}


@pytest.mark.parametrize("axes", IMAGES)
def test_a_block_of_images_is_not_judged(axes: str, tmp_path: Path) -> None:
    before, after = IMAGES[axes]
    pixels = f"b, h, w, c = x{before}.shape\n        y = self.part(x{before}).flatten(1, 2).cumsum(1)"
    block = TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)")
    source = HEAD + block.replace("return self.part(x)", f"{pixels}\n        return y.unflatten(1, (h, w)){after}")
    with pytest.raises(UnknownArgumentsError, match=re.escape(axes)):
        started(source, tmp_path)
    (tmp_path / "model.py").write_text(source)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)


def test_a_block_of_several_leading_dims_is_no_block_of_images(tmp_path: Path) -> None:
    block = TAKES.format("d_model, num_heads, d_ff", "self.part = nn.Linear(d_model, d_model)")
    source = HEAD + block.replace("return self.part(x)", "b, n, s, d = x.shape\n        return self.part(x).cumsum(2)")
    (tmp_path / "model.py").write_text(source)
    assert check(f"{tmp_path}/model.py:Block").ids == ["forward_error"]


SEQ_FIRST = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, num_heads, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(d_model, 1e-6), nn.RMSNorm(d_model, 1e-6)
        self.gate, self.up = (nn.Linear(d_model, d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x):
        length = x.size(1)
        n = self.norm1(x)
        x = x + self.attn(n, n, n, need_weights=False)[0]
        n = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(n)) * self.up(n))
"""
OVER_THE_BATCH = ("n = self.norm2(x)", "n = self.norm2(x - x.mean(0, keepdim=True))")
LETTERS = ("n = self.norm1(x)", "n = self.norm1(x)  # NLD -> LND")
LENGTH = ("x.size(1)", "x.size(0)")
BATCH_FIRST_TOO = ("length = x.size(0)", "length = x.size(0)\n        B, T, C = x.shape")
TO_BE_DONE = ("n = self.norm1(x)", "n = self.norm1(x)  # TBD")
BATCH_FIRST = ("bias=False)\n        self.norm1", "bias=False, batch_first=True)\n        self.norm1")


@pytest.mark.parametrize(
    ("changes", "is_seq_first", "faults"),
    [
        ([LETTERS], True, []),
        ([LENGTH], True, []),
        ([TO_BE_DONE], False, ["batch_coupled"]),  # as where batch_first=True is forgotten
        ([LENGTH, BATCH_FIRST_TOO], False, ["batch_coupled"]),
        ([LENGTH, BATCH_FIRST], False, []),
        ([LETTERS, BATCH_FIRST], False, []),
        ([LETTERS, BATCH_FIRST, OVER_THE_BATCH], False, ["batch_coupled"]),
        ([LENGTH, BATCH_FIRST, OVER_THE_BATCH], False, ["batch_coupled"]),
    ],
)
def test_axes_are_those_that_the_source_says_and_the_outputs_show(
    changes: list[tuple[str, str]], is_seq_first: bool, faults: list[str], tmp_path: Path
) -> None:
    source = SEQ_FIRST
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    (tmp_path / "learner.py").write_text(source)
    verdict = judge(LocalSubject(), locate(f"{tmp_path / 'learner.py'}:Block"), seed=0)
    assert ("swapped" in verdict.call) is is_seq_first
    assert [one.id for one in verdict.faults] == faults
    is_told = any("swapped(block)(x)" in one.mend for one in verdict.faults)
    assert is_told is (faults == ["batch_coupled"] and BATCH_FIRST not in changes)


PADDED = {
    "bool": "torch.where(mask[:, None, None], scores, -torch.inf)",
    "numbers": "scores - 1e9 * (1.0 - mask)[:, None, None]",
    "either": "scores.masked_fill(mask[:, None, None] == 0, -torch.inf)",
}


@pytest.mark.parametrize("form", PADDED)
def test_a_required_mask_of_padding_says_that_all_are_tokens(form: str, tmp_path: Path) -> None:
    source = HEAD + BLOCK_WITH_A_MASK.replace("MASKED", PADDED[form])
    (tmp_path / "learner.py").write_text(source)
    verdict = judge(LocalSubject(), locate(f"{tmp_path / 'learner.py'}:Block"), seed=0)
    assert "mask=torch.ones(batch, seq" in verdict.call
    assert [one.id for one in verdict.faults] == []
    assert verdict.judged
    assert "padding, (batch, seq)" in verdict.conventions["mask_handed_in"]


def test_a_required_mask_that_is_none_is_told(tmp_path: Path) -> None:
    masked = "scores if mask is None else scores - 1e9 * (1.0 - mask)[:, None, None]"
    (tmp_path / "learner.py").write_text(HEAD + BLOCK_WITH_A_MASK.replace("MASKED", masked))
    verdict = judge(LocalSubject(), locate(f"{tmp_path / 'learner.py'}:Block"), seed=0)
    assert ("mask", "no mask (seq, seq) is handed in: mask=None") in [(one.name, one.reason) for one in verdict.checks]


BLOCK_WITH_A_MASK = """

class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.RMSNorm(d_model, 1e-6), nn.RMSNorm(d_model, 1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(d_model, d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def attention(self, x, mask):
        q, k, v = (one(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = MASKED
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))

    def forward(self, x, mask):
        assert mask is None or mask.shape == x.shape[:2]
        x = x + self.attention(self.norm1(x), mask)
        n = self.norm2(x)
        return x + self.down(torch.nn.functional.silu(self.gate(n)) * self.up(n))
"""
