"""Right habits of published blocks that a check could take for a fault, and slips that only such blocks show."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prenorm.checks.judge import judge
from prenorm.checks.source.code import locate
from prenorm.checks.subject.local import LocalSubject

from ..small import Right


class FrequenciesCached(Right):
    """Frozen frequencies, and angles that are computed anew for longer sequences only."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        dim = d_model // num_heads
        self.freqs = nn.Parameter(10000.0 ** (-torch.arange(0, dim, 2).double() / dim), requires_grad=False)
        self.cached = None

    def rotated(self, x, positions):
        if self.cached is None or len(self.cached) < x.shape[-2] or self.cached.device != x.device:
            self.cached = positions[:, None] * self.freqs.detach().double()
        angle = self.cached[: x.shape[-2]]
        cos, sin, a, b = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Limited(Right):
    """What is added keeps within float16's range."""

    def projected(self, x, y):
        return self.o(y).clamp(-65504, 65504)


class EpsOfKeras(Right):
    def norms(self, d_model):
        return nn.RMSNorm(d_model, 1e-3), nn.RMSNorm(d_model, 1e-3)


class Selu(Right):
    def feed_forward(self, x):
        return self.down(F.selu(self.gate(x)) * self.up(x))


class NearTokensOnly(Right):
    """A window that is longer than the sequences of most checks."""

    def mixed(self, q, k, v):
        at = torch.arange(q.shape[-2], device=q.device)
        distance = at[:, None] - at
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < 128))


class AnglesInItsDtype(Right):
    """In bfloat16 positions above 256 are rounded, whatever the frequencies are."""

    def rotated(self, x, positions):
        pair = torch.arange(0, x.shape[-1], 2, device=x.device)
        angle = positions.to(x.dtype)[:, None] * (10000.0 ** (-pair.double() / x.shape[-1])).to(x.dtype)
        cos, sin, a, b = angle.cos(), angle.sin(), x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class MultipliedMask(Right):
    """Ones and zeros, by which scores are multiplied."""

    least = -1e30

    def mixed(self, q, k, v):
        mask = self.mask
        scores = q @ k.mT / q.shape[-1] ** 0.5 * mask + self.least * (1.0 - mask)
        return scores.softmax(-1) @ v

    def forward(self, x, mask):
        self.mask = mask
        return super().forward(x)


class MaskedTooLittle(MultipliedMask):
    least = -1e4


class DropsInEval(Right):
    def __init__(self, d_model, num_heads, d_ff, attn_drop=0.0):
        super().__init__(d_model, num_heads, d_ff)
        self.p = attn_drop

    def mixed(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.p)


@pytest.mark.parametrize(
    ("block", "faults"),
    [
        (FrequenciesCached, []),
        (Limited, []),
        (EpsOfKeras, []),
        (Selu, []),
        (NearTokensOnly, []),
        (MultipliedMask, []),
        (AnglesInItsDtype, ["rope_bf16_tables"]),
        (MaskedTooLittle, ["mask_value_too_small"]),
        (DropsInEval, ["dropout_in_eval"]),
    ],
)
def test_what_published_blocks_do(block: type[nn.Module], faults: list[str]):
    torch.set_num_threads(1)
    verdict = judge(LocalSubject(block), locate(f"{__file__}:{block.__name__}"), seed=0)
    assert [one.id for one in verdict.faults] == faults
    assert verdict.judged


def test_an_activation_that_was_published_is_a_choice():
    verdict = judge(LocalSubject(Selu), locate(f"{__file__}:Selu"), seed=0)
    assert [(one.id, one.counts) for one in verdict.findings] == [("wrong_activation", False)]
    assert "selu" in verdict.findings[0].evidence
