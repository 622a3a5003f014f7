"""Causal attention a block of queries at a time, with the keys after the block left out: for training in bfloat16.

PyTorch's fused attention on a CPU spends more time on its softmax than on its products, and computes the half of the
scores that a document mask hides. Here both products are bfloat16 matrix products, and the probabilities are kept for
the backward pass (half of a seq x seq square of bfloat16 for each head), so nothing is computed twice.
"""

from typing import Any

import torch
from torch import Tensor

from ...private_torch import has_static_size, is_compiling
from ..kernel import Kernel
from ..leading_dims import four_dims
from ..plain import differentiated_once
from ..visible import visible

BLOCK = 128  # queries; 64 and 256 were slower at 256 to 1024 tokens
# `make bench-attention`: compiled, forward and backward are 2 to 3 times as fast as the fused kernel at 128 to 1024
# tokens. As it stands it is no faster at any length, and its passes over the scores leave the caches.
MAX_SEQ = 1024


def supports(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> bool:
    """Whether the shapes are those that this kernel was measured to be faster on.

    Code compiled for any length has another kernel: it would have to be compiled again for each number of blocks.
    """
    if not causal or dropout or not is_compiling():
        return False
    seq = query.shape[-2]
    return has_static_size(seq) and seq == key.shape[-2] and 32 <= seq <= MAX_SEQ and query.numel() > 0


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention over (..., heads, seq, head_dim) with as many queries as keys, each seen from its place on."""
    assert causal
    assert dropout == 0
    if mask is not None or window is not None:
        mask = visible(query, key, mask, causal=causal, window=window)
    shape = (*query.shape[:-1], value.shape[-1])
    query, key, value, mask = four_dims(query, key, value, mask)
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    seq = query.shape[2]
    if mask is None:
        mask = torch.ones(seq, seq, dtype=torch.bool, device=query.device).tril()
    blocks = []
    for start in range(0, seq, BLOCK):
        stop = min(start + BLOCK, seq)
        rows = mask if mask.shape[-2] == 1 else mask[..., start:stop, :]
        seen = key[:, :, :stop], value[:, :, :stop], rows[..., :stop]
        blocks.append(_Block.apply(query[:, :, start:stop], *seen))
    return torch.cat(blocks, dim=2).reshape(shape)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask, -1e30)
        exp = (scores - scores.amax(-1, keepdim=True)).exp() * mask  # an empty row is all zeros
        weights = (exp / exp.sum(-1, keepdim=True).clamp_min(1e-30)).to(value.dtype)
        out = weights @ value
        ctx.save_for_backward(query, key, value, weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        grad_value = weights.transpose(-1, -2) @ grad
        grad_weights = (grad @ value.transpose(-1, -2)).float()
        # Softmax: d scores = weights * (d weights - sum(weights * d weights)). Summed here and not as grad . out, which
        # is cheaper but leaves a query with a single key a gradient, where there is none.
        wide = weights.float()
        sums = (wide * grad_weights).sum(-1, keepdim=True)
        grad_scores = (wide * (grad_weights - sums) * query.shape[-1] ** -0.5).to(query.dtype)
        grads = grad_scores @ key, grad_scores.transpose(-1, -2) @ query, grad_value
        return *differentiated_once(grads, (query, key, value)), None


KERNEL = Kernel(
    op="scaled_dot_product_attention",
    devices=("cpu",),
    dtypes=(torch.bfloat16,),
    run=blocked_attention,
    supports=supports,
    gain="causal bfloat16 on a CPU, compiled: twice as fast as PyTorch's fused attention (make bench-attention)",
    fallback="PyTorch's fused attention: 2 to 3 times as long, forward and backward",
)
