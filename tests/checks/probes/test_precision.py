"""The tensor that is to blame where a block does not run, or gives another dtype, in bfloat16."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prenorm.checks.judge import judge
from prenorm.checks.probes.case import Report
from prenorm.checks.probes.precision import dtypes
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject

from ..small import HandNorm, Right, scores_of
from .started import started


class TurnsInFloat32(Right):
    """A right upcast: what it gives has the dtype of x."""

    def rotated(self, x, positions):
        return super().rotated(x.float(), positions).type_as(x)


class MaskInFloat32(TurnsInFloat32):
    def mixed(self, q, k, v):
        hidden = torch.full((q.shape[-2], q.shape[-2]), float("-inf")).triu(1)
        return (q @ k.mT / q.shape[-1] ** 0.5 + hidden).softmax(-1) @ v


class SoftmaxInFloat32(TurnsInFloat32):
    def mixed(self, q, k, v):
        weights = F.softmax(scores_of(q, k), -1, dtype=torch.float32)
        return weights @ v


class RotationInFloat32(Right):
    def rotated(self, x, positions):
        wide = x.float()
        return super().rotated(wide, positions)


class TableInFloat32(TurnsInFloat32):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.table = [torch.ones(d_model)]

    def attention(self, x):
        scaled = x * self.table[0]
        return super().attention(scaled)


class DtypeIsNotPassedOn(TurnsInFloat32):
    def __init__(self, d_model, num_heads, d_ff, dtype=None):
        super().__init__(d_model, num_heads, d_ff)
        self.down = nn.Linear(d_ff, d_model, bias=False, dtype=dtype)


class OutputInFloat32(TurnsInFloat32):
    def forward(self, x):
        return super().forward(x).float()


class NormInFloat32(TurnsInFloat32):
    """The norm's own upcast is right, and the line after it is not."""

    def norms(self, d_model):
        return HandNorm(d_model), HandNorm(d_model)

    def feed_forward(self, x):
        wide = self.gate(x).to(torch.float32)
        return self.down(F.silu(wide) * self.up(x))


class AnglesInItsDtype(Right):
    """Angles of large positions in bfloat16; by_row: positions may be (batch, seq) alone."""

    by_row = True

    def rotated(self, x, positions):
        speeds = 10000.0 ** (-torch.arange(0, x.shape[-1], 2, device=x.device).to(x.dtype) / x.shape[-1])
        angle = self.positions.to(x.dtype)[..., None] * speeds
        cos, sin = (one[:, None] if self.by_row else one for one in (angle.cos(), angle.sin()))
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def forward(self, x, token_positions=None):
        places = torch.arange(x.shape[-2], device=x.device)
        places = places.expand(len(x), -1) if self.by_row else places
        self.positions = places if token_positions is None else token_positions
        return super().forward(x)


class AnglesInItsDtypeForAll(AnglesInItsDtype):
    """Positions (seq,), the same for every sequence."""

    by_row = False


@pytest.mark.parametrize("block", [AnglesInItsDtype, AnglesInItsDtypeForAll])
def test_angles_that_are_rounded_are_found_whatever_the_axes_of_positions(block):
    code = Code(root="", module=block.__module__, file="", name=block.__name__)
    assert "rope_bf16_tables" in judge(LocalSubject(block), code, seed=0).ids


def judged(block: type[nn.Module]) -> Report:
    case = started(block)
    dtypes(case)
    return case.report


@pytest.mark.parametrize(
    ("block", "said", "code"),
    [
        (MaskInFloat32, "a bfloat16 tensor meets a float32 one, and the result stays float32", "+ hidden)"),
        (SoftmaxInFloat32, "a bfloat16 tensor becomes float32 and is not converted back", "weights = F.softmax"),
        (RotationInFloat32, "a bfloat16 tensor becomes float32 and is not converted back", "wide = x.float()"),
        (TableInFloat32, "a bfloat16 tensor meets a float32 one (table), and the result", "scaled = x * self.table"),
        (NormInFloat32, "a bfloat16 tensor becomes float32 and is not converted back", "wide = self.gate(x)"),
        (OutputInFloat32, "the output is float32: a bfloat16 tensor becomes float32", "super().forward(x).float()"),
    ],
)
def test_what_leaves_the_dtype_is_to_blame(block, said, code):
    report = judged(block)
    assert [*report.findings] == ["wrong_dtype"]
    assert said in report.findings["wrong_dtype"]
    lines = [frame["code"] for frame in report.errors["wrong_dtype"]["frames"] if frame["file"] == __file__]
    assert code in lines[-1]


@pytest.mark.parametrize(("block", "counts"), [(OutputInFloat32, True), (SoftmaxInFloat32, False)])
def test_an_output_in_another_dtype_counts_and_an_error_is_no_promise_that_was_broken(block, counts):
    assert ("wrong_dtype" in judged(block).faults()) == counts


def test_a_weight_that_dtype_does_not_reach_is_to_blame():
    report = judged(DtypeIsNotPassedOn)
    assert "with dtype=bfloat16 forward raises: qkv.weight is float32" in report.findings["wrong_dtype"]
    assert not report.errors  # the line is one of the constructor
    assert report.mends["wrong_dtype"].startswith("pass dtype on")


def test_an_upcast_that_is_brought_back_is_right():
    assert not judged(TurnsInFloat32).findings
