"""The linear map of 1 to 8 rows, as in decoding, in C++ (skinny_linear.cpp): the weight is read at memory speed.

PyTorch reads a weight at half of that speed for one row, at a fifth for eight.
"""

import torch
from torch import Tensor

from ...private_torch import computes_now
from ..kernel import Kernel
from ..plain import ORDINARY
from . import native
from .calls import Function
from .header import CONSTANTS

DTYPES = {torch.float32: "skinny_linear_float32", torch.bfloat16: "skinny_linear_bfloat16"}
SKINNY_LINEAR = Function("SkinnyLinearCall", DTYPES, "x weight bias y rows in_features out_features")
call, available = SKINNY_LINEAR.call, SKINNY_LINEAR.available  # looked up once, not in every call
MAX_ROWS = CONSTANTS["MAX_ROWS"]
is_autocast_enabled = torch.is_autocast_enabled


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, (..., in) to (..., out), summed in float32 and rounded once; without gradients."""
    x = x.contiguous()
    out_features, in_features = weight.shape
    y = x.new_empty((*x.shape[:-1], out_features))
    bias = None if bias is None else bias.contiguous()  # kept alive during the call
    call(
        x.dtype,
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        x.numel() // in_features,
        in_features,
        out_features,
    )
    return y


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are 1 to 8 rows on a CPU that need no gradient, of dtypes and layouts that the code supports."""
    return (
        computes_now()  # first: torch.compile specialises on a size that is compared
        and 0 < x.numel() <= MAX_ROWS * x.shape[-1]
        and not (
            torch.is_grad_enabled()
            and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))
        )
        and type(x) in ORDINARY
        and type(weight) in ORDINARY
        and weight.dtype == x.dtype
        and weight.is_cpu
        and x.layout == weight.layout == torch.strided  # a sparse or packed one has no address
        and weight.ndim == 2
        and weight.is_contiguous()
        and weight.numel() > 0
        and weight.shape[1] == x.shape[-1]
        and not x.is_neg()  # a view of complex numbers whose memory must be negated
        and not weight.is_neg()
        and (
            bias is None
            or (type(bias) in ORDINARY and bias.is_cpu and bias.dtype == x.dtype and bias.shape == weight.shape[:1])
        )
        and not (bias is not None and bias.is_neg())
        and not is_autocast_enabled("cpu")
        and x.dtype in available()
    )


KERNEL = Kernel(
    op="linear",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=skinny_linear,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="up to 8 rows, as in decoding: the weight is read once, at the speed of memory (make bench-decode)",
    fallback="PyTorch's product: 1.4 to 6.8 times as long, in bfloat16 1.3 to 2.4 times",
)
