"""PyTorch's fused attention behind the signature that the op needs."""

from typing import Any

import torch
from torch import Tensor

from ..private_torch import is_compiling, is_transformed
from .dropout_masks import draw, is_keyed
from .kernel import Kernel
from .leading_dims import four_dims
from .plain import gradients_again, is_plain
from .visible import visible

# On a CPU PyTorch's fused kernel is slow for short rows in bfloat16: forward and backward at 16 to 44 keys take 5 times
# as long as plain products, at 128 keys 2.7 times; decoding at 192 keys 3 times. From 512 keys on it is faster.
SHORT = 256


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention over (..., heads, seq, head_dim), with grouped heads, empty rows and any leading dims."""
    shape = (*query.shape[:-1], value.shape[-1])
    if mask is not None or window is not None or query.shape[-2] != key.shape[-2]:  # PyTorch has no flags for these
        mask, causal = visible(query, key, mask, causal=causal, window=window), False
    query, key, value, mask = four_dims(query, key, value, mask)
    if 0 in query.shape or 0 in key.shape:  # nothing to compute, but still a part of the graph
        return query.new_zeros(shape) + (query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum())
    empty = None
    if mask is not None:
        # Fused kernels differ on rows that may attend to nothing (NaN, or an average): they get a full row, then zeros.
        seen = mask.any(-1, keepdim=True)
        if not (mask.is_cpu and is_plain(mask) and bool(seen.all())):  # on a CPU the values can be read
            empty = ~seen
            mask = mask | empty
    grouped = query.shape[1] != key.shape[1]
    if (
        grouped
        and query.shape[2] == 1
        and not (causal or dropout)
        and (mask is None or mask.ndim == 2 or mask.shape[1] == 1)
    ):
        # One query a head: a group's heads become query rows, so that no key or value is read twice.
        folded = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
        out = _attend(folded, key, value, mask, False, dropout, False).reshape(*query.shape[:-1], value.shape[-1])
    else:
        out = _attend(query, key, value, mask, causal, dropout, grouped)
    if empty is not None:
        out = out.masked_fill(empty, 0)
    return out.reshape(shape)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float, grouped: bool
) -> Tensor:
    # The length is compared last: torch.compile would recompile for each outcome.
    if query.device.type == "cpu" and is_plain(query, key, value):
        short = query.dtype == torch.bfloat16 and key.shape[2] <= SHORT
        if dropout or short:
            return _products(query, key, value, mask, causal, dropout, grouped)
    if dropout and is_keyed():  # PyTorch's fused attention draws from its own generator
        return _products(query, key, value, mask, causal, dropout, grouped)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )
    if out.requires_grad and torch.is_grad_enabled() and not is_compiling():
        chosen: Tensor = _Gradients.apply(out, query, key, value, mask, causal, dropout, grouped)
        return chosen
    return out


class _Gradients(torch.autograd.Function):
    """Its first input, unchanged, with gradients that can be differentiated again where that is wanted.

    PyTorch's fused attention has no second derivative. Without create_graph the gradient goes to `out`, and from there
    through the fused backward pass; with it, past `out` to query, key and value, through products and a softmax.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs[:4])
        ctx.options = inputs[4:]
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return grad, None, None, None, None, None, None, None
        query, key, value, mask = ctx.saved_tensors
        causal, dropout, grouped = ctx.options
        if dropout:
            raise RuntimeError(
                "PyTorch's fused attention has no second derivative, and what it dropped cannot be dropped again; use "
                'dropout=0, or run forward and backward within use_backend("reference").'
            )

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return _products(query, key, value, mask, causal, 0.0, grouped)

        grads = gradients_again(attend, (query, key, value), ctx.needs_input_grad[1:4], grad)
        return None, *grads, None, None, None, None


def _products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float, grouped: bool
) -> Tensor:
    """Two products and a softmax: what PyTorch does too when weights are dropped, with faster random numbers."""
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if causal:
        mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    if not dropout:
        return weights @ value
    dropped, scale = draw(weights, dropout, dims=3)
    return torch.where(dropped, 0.0, weights) @ value * scale


def supports(*_: object, **options: object) -> bool:
    """Anything but torch.func and forward-mode differentiation, which it has no rules for."""
    return not is_transformed()


KERNEL = Kernel(
    op="scaled_dot_product_attention",
    devices=("cpu", "cuda"),
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    run=sdpa,
    supports=supports,
    gain="PyTorch's fused attention never stores the scores (memory linear in seq instead of quadratic)",
    fallback="the formula: memory for seq x seq scores of each head",
)
