"""PyTorch's fused attention behind the signature that the op needs."""

import math

import torch
from torch import Tensor


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """Attention over (..., heads, seq, head_dim), with grouped heads, empty rows and any leading dims.

    `causal` is only given with as many queries as keys; `mask` is boolean and holds everything else.
    """
    *leading, q_seq, _ = query.shape
    if query.ndim != 4:  # the fused kernels take exactly (batch, heads, seq, head_dim)
        if mask is not None and mask.ndim > 2:
            mask = _four_dims(mask.expand(*query.shape[:-3], *mask.shape[-3:]))
        query, key, value = (_four_dims(x) for x in (query, key, value))
    if 0 in query.shape or 0 in key.shape:
        return query.new_zeros(*leading, q_seq, value.shape[-1]) + 0 * (query.sum() + key.sum() + value.sum())
    empty = None
    if mask is not None:
        # Fused kernels differ on rows that may attend to nothing (NaN, or an average): they get a full row, then zeros.
        empty = ~mask.any(-1, keepdim=True)
        mask = mask | empty
    grouped = query.shape[1] != key.shape[1]
    if grouped and q_seq == 1 and not causal and (mask is None or mask.ndim == 2 or mask.shape[1] == 1):
        # One query a head: a group's heads become query rows, so that no key or value is read twice.
        out = _attend(query.unflatten(1, (key.shape[1], -1)).flatten(2, 3), key, value, mask, False, dropout, False)
        out = out.reshape(*query.shape[:-1], value.shape[-1])
    else:
        out = _attend(query, key, value, mask, causal, dropout, grouped)
    if empty is not None:
        out = out.masked_fill(empty, 0)
    return out.reshape(*leading, q_seq, value.shape[-1])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float, grouped: bool
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _four_dims(x: Tensor) -> Tensor:
    *batch, heads, seq, features = (1, 1, *x.shape)[-max(4, x.ndim) :]
    return x.reshape(math.prod(batch), heads, seq, features)
