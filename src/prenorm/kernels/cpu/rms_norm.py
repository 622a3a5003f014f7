"""RMS normalisation in one pass over memory, in C++ (rms_norm.cpp): as fast as a copy if memory is the limit.

PyTorch's own on a CPU is several passes in float32, and in bfloat16 twenty times slower than its layer_norm.
"""

from typing import Any

import torch
from torch import Tensor

from ...private_torch import computes_now
from ..kernel import Kernel
from ..plain import ORDINARY, fits_backward
from . import native
from .calls import Function

DTYPES = {  # of x, of weight
    (torch.float32, torch.float32): "float32_float32",
    (torch.bfloat16, torch.bfloat16): "bfloat16_bfloat16",
    (torch.bfloat16, torch.float32): "bfloat16_float32",
}
FORWARD = Function(
    "RmsNormCall", {dtypes: f"rms_norm_{name}" for dtypes, name in DTYPES.items()}, "x weight y rows width eps"
)
BACKWARD = Function(
    "RmsNormCall",
    {dtypes: f"rms_norm_backward_{name}" for dtypes, name in DTYPES.items()},
    "x weight g dx dw rows width eps",
)
forward, available = FORWARD.call, FORWARD.available  # looked up once, not in every call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dim, in float32, rounded to the dtype of x last.

    Sums that are too large for float32 are taken in double. Gradients are rounded once too; that of the weight is
    summed in double at the end, in an order that depends only on the number of threads.
    """
    x, weight = x.contiguous(), weight.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    return _forward(x, weight, eps)


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether these are ordinary tensors on a CPU, of dtypes that the code supports, and there is a library."""
    return (
        computes_now()
        and type(x) in ORDINARY
        and type(weight) in ORDINARY
        and weight.is_cpu
        and not x.is_neg()  # a view of complex numbers whose memory must be negated
        and not weight.is_neg()
        and weight.ndim == 1
        and weight.numel() == x.shape[-1] > 0
        and (x.dtype, weight.dtype) in available()
    )


def _forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y, width = torch.empty_like(x), x.shape[-1]
    forward((x.dtype, weight.dtype), x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // width, width, eps)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _forward(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if not fits_backward(grad):
            return *_gradients(grad, x, weight, ctx.eps), None  # in ops that autograd and dispatch modes see
        for_x, for_weight, _ = ctx.needs_input_grad
        grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()  # hooks may change what was saved
        grad_x = torch.empty_like(x) if for_x else None
        grad_weight = torch.empty_like(weight) if for_weight else None
        width = x.shape[-1]
        BACKWARD.call(
            (x.dtype, weight.dtype),
            x.data_ptr(),
            weight.data_ptr(),
            grad.data_ptr(),
            0 if grad_x is None else grad_x.data_ptr(),
            0 if grad_weight is None else grad_weight.data_ptr(),
            x.numel() // width,
            width,
            ctx.eps,
        )
        return grad_x, grad_weight, None


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients in ops that have gradients.

    With inv = 1 / sqrt(mean(x^2) + eps), normed = x * inv and through = grad * weight:
    d x = inv * (through - normed * mean(through * normed)), d weight = sum over rows of grad * normed.
    """
    wide, width = x.float(), x.shape[-1]
    inv = torch.rsqrt((wide.square() / width).sum(-1, keepdim=True) + eps)
    normed, through = wide * inv, grad * weight.float()
    grad_x = inv * (through - normed * (through * normed).mean(-1, keepdim=True))
    grad_weight = (grad * normed).reshape(-1, width).sum(0)
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


KERNEL = Kernel(
    op="rms_norm",
    devices=("cpu",),
    dtypes=(torch.float32, torch.bfloat16),
    run=rms_norm,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="one pass over memory, in C++: twice as fast as PyTorch's layer_norm (make bench-norm)",
    fallback="the formula: 2 to 6 times as long",
)
