"""Rotary embedding in one pass over memory, forward and backward, in C++ (rope.cpp).

As ops it is a pass for each of two halves, four products and two sums, and a copy that puts them together again.
"""

from typing import Any

import torch
from torch import Tensor

from ...private_torch import computes_now, is_compiling
from ..kernel import Kernel
from ..plain import ORDINARY, fits_backward, is_held_in_a_graph
from . import native
from .calls import Function, is_there

DTYPES = {torch.float32: "rope_float32", torch.bfloat16: "rope_bfloat16"}
ROPE = Function(
    "RopeCall",
    DTYPES,
    "x y cos sin batch heads seq half x_strides y_strides cos_strides sin_strides interleaved backwards",
)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The pairs of x (..., seq, head_dim) rotated by angles of float32 (..., seq, head_dim / 2), which broadcast.

    The bits are those of the formula.
    """
    if is_compiling():  # a graph holds it as one op
        return _op(x, cos, sin, interleaved, False)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Rotate.apply(x, cos, sin, interleaved)
        return y
    return _rotate(x, cos, sin, interleaved, backwards=False)


def supports(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether these are ordinary tensors on a CPU whose angles need no gradient, and there is a library.

    Compiled code holds it as one op: a compiler would compute the angles' cosines again for every head. One token is
    left to it, where that costs less than a call.
    """
    return (
        (computes_now() or (is_held_in_a_graph() and x.shape[-2] != 1))
        and all(type(one) in ORDINARY for one in (x, cos, sin))
        and cos.is_cpu
        and sin.is_cpu
        and cos.dtype == sin.dtype == torch.float32
        and not (torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad))
        and cos.shape == sin.shape
        and x.ndim >= cos.ndim
        and all(n in (1, m) for n, m in zip(cos.shape[-2::-1], x.shape[-2::-1], strict=False))  # x is not to broadcast
        and x.shape[-1] == 2 * cos.shape[-1] > 0
        and x.numel() > 0
        # What lies in memory would have to be negated; a graph hands its op the negated numbers.
        and (is_compiling() or not (x.is_neg() or cos.is_neg() or sin.is_neg()))
        and x.dtype in DTYPES
        and is_there()
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, *, backwards: bool) -> Tensor:
    """Rotated forwards, or back."""
    half = cos.shape[-1]
    four = _four_dims(x)
    batch, heads, seq, _ = four.shape
    rotated = _room(x, backwards)
    y = _four_dims(rotated)  # a view
    cos, sin = (_four_dims(one.expand(*x.shape[:-1], half)) for one in (cos, sin))
    ROPE.call(
        x.dtype,
        four.data_ptr(),
        y.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        batch,
        heads,
        seq,
        half,
        four.stride()[:3],
        y.stride()[:3],
        cos.stride()[:3],
        sin.stride()[:3],
        interleaved,
        backwards,
    )
    return rotated


def _room(x: Tensor, backwards: bool) -> Tensor:
    """For the result: contiguous, or backwards with heads side by side, as projections have them, for no copy after."""
    if not backwards or x.ndim < 3:
        return x.new_empty(x.shape)
    return x.new_empty(x.transpose(-2, -3).shape).transpose(-2, -3)


def _four_dims(x: Tensor) -> Tensor:
    """(batch, heads, seq, features), with the features side by side."""
    if x.ndim != 4:
        x = x.reshape(-1, *(1, 1, *x.shape)[-3:])
    return x if x.stride(-1) == 1 else x.contiguous()


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate(x, cos, sin, interleaved, backwards=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        if not fits_backward(grad):
            # In ops that autograd and dispatch modes see.
            return _rotated_back(grad, cos, sin, ctx.interleaved), None, None, None
        return _rotate(grad, cos, sin, ctx.interleaved, backwards=True), None, None, None


def _rotated_back(grad: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The gradient in ops that have gradients: every pair rotated by minus the angle."""
    apart = (cos.shape[-1], 2) if interleaved else (2, cos.shape[-1])
    a, b = grad.float().reshape(*grad.shape[:-1], *apart).unbind(-1 if interleaved else -2)
    rotated = torch.stack((a * cos + b * sin, b * cos - a * sin), dim=-1 if interleaved else -2)
    return rotated.reshape(grad.shape).to(grad.dtype)


@torch.library.custom_op("prenorm::rotate", mutates_args=())
def _op(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backwards: bool) -> Tensor:
    return _rotate(x, cos, sin, interleaved, backwards=backwards)


@_op.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backwards: bool) -> Tensor:
    return _room(x, backwards)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *angles, ctx.interleaved, ctx.backwards = inputs
    ctx.save_for_backward(*angles)


def _gradients_of_op(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The rotation by minus the angles, which has gradients in turn."""
    return _op(grad, *ctx.saved_tensors, ctx.interleaved, not ctx.backwards), None, None, None, None


_op.register_autograd(_gradients_of_op, setup_context=_keep)


KERNEL = Kernel(
    op="rotate",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=rotate,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="RoPE in one pass over memory, in C++ (make bench-training)",
    fallback="the formula: 1.2 times as long for a token, 4 to 11 times for 2,048",
)
