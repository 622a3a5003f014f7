"""Attention of many queries in C++ (attention.cpp, attention_backward.cpp): products at the multipliers' speed.

PyTorch's fused kernel takes its products to a library block by block, and on AMD processors that library is MKL; in
bfloat16 it is no faster than in float32. This one multiplies bfloat16 in pairs, never copies keys for the heads of a
group, skips blocks that no query sees, and makes no mask for causal attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...private_torch import computes_now, is_compiling
from ..kernel import Kernel
from ..leading_dims import four_dims
from ..plain import (
    ORDINARY,
    fits_backward,
    is_held_in_a_graph,
    no_second_derivative,
)
from . import native
from .calls import Function, is_there
from .header import CONSTANTS
from .processor import is_zen_3_or_later, processor

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FIELDS = (
    "q k v mask y sums g dq dk dv batch num_heads num_kv_heads queries keys head_dim q_strides k_strides v_strides "
    "mask_strides y_strides g_strides dq_strides dk_strides dv_strides causal window"
)
FORWARD = Function("AttentionCall", {dtype: f"attention_{name}" for dtype, name in DTYPES.items()}, FIELDS)
BACKWARD = Function("AttentionCall", {dtype: f"attention_backward_{name}" for dtype, name in DTYPES.items()}, FIELDS)
# head_dim: a multiple of a vector, and what the packed blocks have room for
WIDTH, MAX_HEAD_DIM = 16, CONSTANTS["MAX_HEAD_DIM"]
# `make bench-attention`: float32 with fewer scores a head is as fast in PyTorch's kernel, or faster.
MIN_SCORES = 4096


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V over (..., heads, seq, head_dim), with gradients.

    mask (True = may attend), causal and window restrict each other, and a query that may attend to nothing gives
    zeros. In memory the result is (batch, seq, heads, head_dim), so that merging its heads copies nothing.
    """
    assert dropout == 0
    shape = query.shape
    query, key, value, mask = four_dims(query, key, value, mask)
    if is_compiling():  # a graph holds it as one op
        return _op(query, key, value, mask, causal, window)[0].reshape(shape)
    query, key, value, mask = _prepared(query, key, value, mask)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        y: Tensor = _Attention.apply(query, key, value, mask, causal, window)
    else:
        y = _forward(query, key, value, mask, None, causal, window)
    return y.reshape(shape)


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
    """Whether this is a processor it was measured on, and the tensors are ordinary ones that the code supports.

    Compiled code holds it as one op. An exported program does not: it must run without this package.
    """
    return (
        (computes_now() or is_held_in_a_graph())
        and not REASON
        and not dropout
        and fits(query, key, value, mask)
        and (query.dtype != torch.float32 or _is_much(query, key))
    )


def fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether there is code for such tensors."""
    return (
        all(type(x) in ORDINARY and x.is_cpu for x in (query, key, value))
        # Memory that must be negated; a graph hands its op the negated numbers.
        and (is_compiling() or not any(x.is_neg() for x in (query, key, value)))
        and (mask is None or (type(mask) in ORDINARY and mask.is_cpu))
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] % WIDTH == 0
        and query.shape[-1] <= MAX_HEAD_DIM
        and 0 not in query.shape
        and 0 not in key.shape
        and query.dtype in DTYPES
        and is_there()
    )


def _is_much(query: Tensor, key: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):  # PyTorch's rounds to its dtype
        return False
    if is_compiling():  # torch.compile specialises on a size that is compared; on 1 it always does
        return query.shape[-2] != 1
    return query.shape[-2] * key.shape[-2] >= MIN_SCORES


def unavailable_reason() -> str:
    """Why PyTorch's attention runs on this machine; empty where this one does."""
    return REASON or native.unavailable_reason()


def reason(vendor: str, family: int) -> str:
    """Why PyTorch's attention runs on such a processor; empty where this one does."""
    if is_zen_3_or_later(vendor, family):
        return ""
    return "it was measured only on AMD processors from Zen 3 on, and this is not one"


REASON = reason(*processor())


def _rows(x: Tensor) -> Tensor:
    """With each row's numbers beside each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _like(x: Tensor) -> Tensor:
    """Room for a tensor of this shape, in memory (batch, seq, heads, head_dim)."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


def _call(
    function: Function[torch.dtype],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    y: Tensor,
    sums: Tensor | None,
    *,
    g: Tensor | None = None,
    grads: Sequence[Tensor | None] = (None, None, None),
    causal: bool,
    window: int | None,
) -> None:
    """Run forward, or backward from the gradient g of y to those of q, k and v; sums are contiguous."""
    batch, num_heads, queries, head_dim = q.shape
    dq, dk, dv = grads
    function.call(
        q.dtype,
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        mask=_pointer(mask),
        y=y.data_ptr(),
        sums=_pointer(sums),
        g=_pointer(g),
        dq=_pointer(dq),
        dk=_pointer(dk),
        dv=_pointer(dv),
        batch=batch,
        num_heads=num_heads,
        num_kv_heads=k.shape[1],
        queries=queries,
        keys=k.shape[2],
        head_dim=head_dim,
        q_strides=q.stride()[:3],
        k_strides=k.stride()[:3],
        v_strides=v.stride()[:3],
        mask_strides=_strides(mask),
        y_strides=y.stride()[:3],
        g_strides=_strides(g),
        dq_strides=_strides(dq),
        dk_strides=_strides(dk),
        dv_strides=_strides(dv),
        causal=causal,
        window=window or 0,
    )


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _strides(x: Tensor | None) -> Sequence[int]:
    return (0, 0, 0) if x is None else x.stride()[:3]


def _prepared(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As the C++ code takes them: each row's numbers beside each other, and a mask of all dims."""
    if mask is not None:
        mask = _rows(mask).expand(*query.shape[:-1], key.shape[-2])
    return _rows(query), _rows(key), _rows(value), mask


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sums: Tensor | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    y = _like(query)
    _call(FORWARD, query, key, value, mask, y, sums, causal=causal, window=window)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, window: int | None
    ) -> Tensor:
        sums = query.new_empty((*query.shape[:-1], 2), dtype=torch.float32)
        y = _forward(query, key, value, mask, sums, causal, window)
        ctx.save_for_backward(query, key, value, mask, y, sums)
        ctx.causal, ctx.window = causal, window
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing allows one access only
        query, key, value, mask, *_ = saved
        if not fits_backward(grad):
            return *_gradients(grad, query, key, value, mask, ctx.causal, ctx.window), None, None, None
        for_query, for_key, for_value = ctx.needs_input_grad[:3]
        grad_query = _like(query) if for_query else None
        grad_key, grad_value = (_like(key), _like(value)) if for_key or for_value else (None, None)
        _backward(grad, saved, (grad_query, grad_key, grad_value), ctx.causal, ctx.window)
        return grad_query, grad_key if for_key else None, grad_value if for_value else None, None, None, None


def _backward(
    grad: Tensor, saved: Sequence[Any], grads: Sequence[Tensor | None], causal: bool, window: int | None
) -> None:
    """Fill the gradients that are not None; saved-tensor hooks may have changed layouts."""
    *inputs, y, sums = saved
    query, key, value, mask = _prepared(*inputs)
    options: Any = {"g": _rows(grad), "grads": grads, "causal": causal, "window": window}
    _call(BACKWARD, query, key, value, mask, _rows(y), sums.contiguous(), **options)


def _gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in ops that have gradients: the heads of a group are rows below each other, over one key head."""
    queries, keys = query.shape[2], key.shape[2]
    scale = query.shape[-1] ** -0.5

    def fold(x: Tensor) -> Tensor:
        return x.reshape(*key.shape[:2], -1, x.shape[-1])

    behind = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    allowed = behind >= (0 if causal else -keys)
    if window is not None:
        allowed = allowed & (behind < window)
    if mask is not None:
        allowed = allowed & mask
    allowed = fold(allowed.expand(*query.shape[:2], queries, keys))
    folded, through = fold(query), fold(grad)
    scores = ((folded @ key.mT).float() * scale).masked_fill(~allowed, -torch.inf)
    weights = scores.masked_fill(~allowed.any(-1, keepdim=True), 0).softmax(-1) * allowed
    slopes = (through @ value.mT).float()
    slopes = (weights * (slopes - (weights * slopes).sum(-1, keepdim=True)) * scale).to(query.dtype)
    rounded = weights.to(query.dtype)
    return (slopes @ key).reshape(query.shape), slopes.mT @ folded, rounded.mT @ through


@torch.library.custom_op("prenorm::attention", mutates_args=())
def _op(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    """Also what its backward pass needs of each query: the largest score, and 1 / the sum of its weights."""
    query, key, value, mask = _prepared(query, key, value, mask)
    sums = query.new_empty((*query.shape[:-1], 2), dtype=torch.float32)
    return _forward(query, key, value, mask, sums, causal, window), sums


@_op.register_fake
def _(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return _like(query), query.new_empty((*query.shape[:-1], 2), dtype=torch.float32)


@torch.library.custom_op("prenorm::attention_gradients", mutates_args=())
def _op_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    y: Tensor,
    sums: Tensor,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _like(query), _like(key), _like(value)
    _backward(grad, (query, key, value, mask, y, sums), grads, causal, window)
    return grads


@_op_gradients.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.causal, ctx.window = inputs[4:]


def _gradients_of_op(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_op_gradients(grad, *ctx.saved_tensors, ctx.causal, ctx.window), None, None, None


_op.register_autograd(_gradients_of_op, setup_context=_keep)
_op_gradients.register_autograd(no_second_derivative("attention"))


KERNEL = Kernel(
    op="scaled_dot_product_attention",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=attention,
    supports=supports,
    unavailable_reason=unavailable_reason,
    in_library=True,
    gain="blocks that stay in the caches, in C++, on AMD processors from Zen 3 on (make bench-attention)",
    fallback="PyTorch's fused attention: 1.3 to 2.5 times as long, in bfloat16 1.8 to 5",
)
