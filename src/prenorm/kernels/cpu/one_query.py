"""Attention of one query a head to many keys, in C++ (one_query.cpp): decoding, reading each key and value once.

PyTorch's own kernel leaves most of a CPU idle for one query, and in bfloat16 takes several times as long as in float32.
"""

import functools
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from ...private_torch import computes_now
from ..kernel import Kernel
from ..plain import ORDINARY
from . import native

DTYPES = {torch.float32: "one_query_float32", torch.bfloat16: "one_query_bfloat16"}
WIDTH = 32  # of which head_dim must be a multiple: two vectors of the widest processors
# struct OneQueryCall: q, k, v, mask, y, batch, heads, groups, keys, head_dim, strides of k, v and mask, threads
pack = struct.Struct("5P5q3q3q2qq").pack


def one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """Attention of (batch, heads, 1, head_dim) to (batch, groups, keys, head_dim): the one query sees all keys.

    mask: (1, keys) or (batch or 1, 1, 1, keys), True = may attend.
    """
    query = query.contiguous()
    batch, heads, _, head_dim = query.shape
    y = torch.empty_like(query)
    masked = (0, 0, 0)
    if mask is not None:
        each_row = mask.ndim == 4 and mask.shape[0] > 1
        masked = (mask.data_ptr(), mask.stride(0) if each_row else 0, mask.stride(-1))
    call = pack(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        masked[0],
        y.data_ptr(),
        batch,
        heads,
        key.shape[1],
        key.shape[2],
        head_dim,
        *key.stride()[:3],
        *value.stride()[:3],
        *masked[1:],
        torch.get_num_threads(),
    )
    if _functions()[query.dtype](call):
        raise MemoryError
    return y


def suits(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool = False, dropout: float = 0.0
) -> bool:
    """Whether it is one query that needs no gradient, over plain tensors that lie as a cache has them."""
    return (
        computes_now()  # first: while compiling, a size that is compared is one that is compiled for
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
        and query.dtype in _functions()
    )


def _is_of_rows(mask: Tensor) -> bool:
    """Whether all heads of a row have one mask."""
    return type(mask) in ORDINARY and mask.is_cpu and (mask.ndim == 2 or (mask.ndim == 4 and mask.shape[1] == 1))


@functools.cache
def _functions() -> dict[torch.dtype, Callable[[bytes], int]]:
    """By dtype. Nothing where there is no library."""
    return native.functions(DTYPES)


KERNEL = Kernel(
    op="scaled_dot_product_attention",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=one_query,
    suits=suits,
    why_not=native.why_not,
    in_library=True,
    reason="one query a head, as in decoding: keys and values are read once, in C++ (make bench-decode)",
    instead="PyTorch's fused attention: 1.4 to 2.2 times as long, in bfloat16 4 to 13 times",
)
