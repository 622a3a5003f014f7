"""Attention of one query a head to many keys, in C++ (decode_attention.cpp): decoding, reading each key and value once.

PyTorch's own kernel leaves most of a CPU idle for one query, and in bfloat16 takes several times as long as in float32.
"""

import torch
from torch import Tensor

from ...private_torch import computes_now
from ..kernel import Kernel
from ..plain import ORDINARY
from ..visible import visible
from . import native
from .calls import Function

DTYPES = {torch.float32: "decode_attention_float32", torch.bfloat16: "decode_attention_bfloat16"}
DECODE_ATTENTION = Function(
    "DecodeAttentionCall",
    DTYPES,
    "q k v mask y batch num_heads num_kv_heads keys head_dim k_strides v_strides mask_strides",
)
call, available = DECODE_ATTENTION.call, DECODE_ATTENTION.available  # looked up once, not in every call
WIDTH = 32  # of which head_dim must be a multiple: two vectors of the widest processors


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of (batch, heads, 1, head_dim) to (batch, kv_heads, keys, head_dim): the query is the last token.

    mask: (1, keys) or (batch or 1, 1, 1, keys), True = may attend.
    """
    if window is not None:
        mask = visible(query, key, mask, causal=causal, window=window)
    query = query.contiguous()
    batch, num_heads, _, head_dim = query.shape
    y = torch.empty_like(query)
    mask_strides = (0, 0)
    if mask is not None:
        mask_strides = (mask.stride(0) if mask.ndim == 4 and mask.shape[0] > 1 else 0, mask.stride(-1))
    call(
        query.dtype,
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        y.data_ptr(),
        batch,
        num_heads,
        key.shape[1],
        key.shape[2],
        head_dim,
        key.stride()[:3],
        value.stride()[:3],
        mask_strides,
    )
    return y


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
    """Whether it is one query per head that needs no gradient, over plain tensors laid out as in a cache."""
    return (
        computes_now()  # first: torch.compile specialises on a size that is compared
        and query.shape[-2] == 1
        and query.ndim == 4
        and not dropout
        and all(type(x) in ORDINARY and x.is_cpu and not x.is_neg() for x in (query, key, value))
        and not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad))
        and key.stride(-1) == value.stride(-1) == 1
        and value.shape == key.shape
        and 0 not in query.shape
        and 0 not in key.shape
        and query.shape[-1] % WIDTH == 0
        and (mask is None or _is_of_rows(mask))
        and query.dtype in available()
    )


def _is_of_rows(mask: Tensor) -> bool:
    """Whether all heads of a row have one mask."""
    return type(mask) in ORDINARY and mask.is_cpu and (mask.ndim == 2 or (mask.ndim == 4 and mask.shape[1] == 1))


KERNEL = Kernel(
    op="scaled_dot_product_attention",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=decode_attention,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="one query a head, as in decoding: keys and values are read once, in C++ (make bench-decode)",
    fallback="PyTorch's fused attention: 1.4 to 2.2 times as long, in bfloat16 4 to 13 times",
)
