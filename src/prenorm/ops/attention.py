"""Scaled dot-product attention."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ShapeError
from ..kernels.visible import visible
from ..validation import check_dropout, check_flag, check_number
from . import backends
from .arguments import check_floating
from .dropout import drop
from .masks import check_mask, check_window
from .softmax import softmax


def scaled_dot_product_attention(
    query: Float[Tensor, "*batch q_seq head_dim"],
    key: Float[Tensor, "*kv_batch kv_seq head_dim"],
    value: Float[Tensor, "*kv_batch kv_seq value_dim"],
    mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Float[Tensor, "*batch q_seq value_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, the softmax over the keys that a query may attend to.

    Tensors are (..., heads, seq, head_dim); key and value may have fewer heads, each then serving a group of
    neighbouring query heads (Ainslie et al. 2023, arXiv:2305.13245). Dims before the heads are any number, and equal.
    mask: boolean, True = may attend, (q_seq, kv_seq) or exactly the dims of the scores.
    causal: the last query sees every key, the one before it all but the last, and so on (bottom-right aligned).
    window: a query sees itself and the window - 1 places before it; needs causal.
    softcap: scores s become softcap * tanh(s / softcap) (Bello et al. 2016, arXiv:1611.09940); no kernel has that.
    A query that may attend to nothing gives zeros.
    Raises ShapeError and ConfigError. Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    _check_shapes(query, key, value)
    _check_options(causal, window, dropout, softcap)
    scores_shape = (*query.shape[:-1], key.shape[-2])
    if mask is not None:
        check_mask(mask, scores_shape)
    if softcap is not None:
        return _formula(query, key, value, visible(query, key, mask, causal=causal, window=window), dropout, softcap)
    options = {"causal": causal, "window": window, "dropout": dropout}
    if kernel := backends.choose("scaled_dot_product_attention", query, key, value, mask, **options):
        result: Tensor = kernel(query, key, value, mask, **options)
        return result
    return _formula(query, key, value, visible(query, key, mask, causal=causal, window=window), dropout)


def _formula(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, softcap: float | None = None
) -> Tensor:
    if query.ndim > 2 and query.shape[-3] != key.shape[-3]:
        queries_per_kv = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(queries_per_kv, dim=-3), value.repeat_interleave(queries_per_kv, dim=-3)
    check_floating(query=query)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * (scores.to(torch.promote_types(scores.dtype, torch.float32)) / softcap).tanh()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return drop(softmax(scores).to(value.dtype), dropout, dims=3) @ value


def _check_options(causal: bool, window: int | None, dropout: float, softcap: float | None) -> None:
    if causal not in (True, False):
        check_flag("causal", causal)
    check_window(window, causal=causal)
    if not 0 <= dropout < 1:
        check_dropout(dropout)
    if softcap is not None:
        check_number("softcap", softcap, above=0.0)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.ndim < 2 or query.ndim != key.ndim or key.shape[:-1] != value.shape[:-1]:
        raise ShapeError(
            f"query, key and value must have the same number of dims, and key and value the same seq: {shapes}."
        )
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(f"query and key must have the same head_dim: {shapes}.")
    if not query.dtype == key.dtype == value.dtype:
        raise ShapeError(
            f"query, key and value must have one dtype, but have {query.dtype}, {key.dtype} and {value.dtype}."
        )
    if query.ndim > 2 and (
        query.shape[:-3] != key.shape[:-3] or key.shape[-3] == 0 or query.shape[-3] % key.shape[-3] != 0
    ):
        raise ShapeError(f"leading dims must be equal, and the key heads must divide the query heads: {shapes}.")
