"""Products of large matrices that lie in memory in any order, in C++ (matmul.cpp): gradients of weights.

The gradient of a weight is a matmul of two transposes, at which MKL and oneDNN are slower than at others; and theirs
in bfloat16 is rounded before it can be added to a sum.
"""

import torch
from torch import Tensor

from ..kernel import Kernel
from ..plain import is_plain
from . import native
from .calls import Function
from .processor import is_zen_3_or_later, processor

# `make bench-linear`: on Zen 3, 4 and 5, and from so many rows on, the fastest at gradients of weights.
FASTEST_HERE = is_zen_3_or_later(*processor())
MIN_ROWS = 64
DTYPES = {torch.float32: "matmul_float32", torch.bfloat16: "matmul_bfloat16"}
MATMUL = Function("MatmulCall", DTYPES, "a b c rows columns depth a_strides b_strides c_stride add")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, of float32 or bfloat16: each sum in the order of the inner dim, on any number of threads."""
    return _multiply(a, b, a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32), add=False)


def addmm_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a b, for a total of float32, without a pass of its own over it."""
    return _multiply(a, b, total, add=True)


def supports(a: Tensor, b: Tensor) -> bool:
    """Whether these are ordinary, large matrices on a CPU where it is the fastest, and there is a library."""
    return (
        FASTEST_HERE
        and is_plain(a, b)
        and a.is_cpu
        and b.is_cpu
        and a.ndim == b.ndim == 2
        and a.dtype == b.dtype
        and a.shape[1] == b.shape[0] >= MIN_ROWS
        and a.numel() > 0
        and b.numel() > 0
        and not a.is_neg()  # a view of complex numbers whose memory must be negated
        and not b.is_neg()
        and a.dtype in MATMUL.available()
    )


def unavailable_reason() -> str:
    """Why it does not run on this machine; empty where it does."""
    if not FASTEST_HERE:
        return "it was measured to be the fastest only on AMD processors from Zen 3 on, and this is not one"
    return native.unavailable_reason()


def _multiply(a: Tensor, b: Tensor, c: Tensor, *, add: bool) -> Tensor:
    MATMUL.call(
        a.dtype,
        a.data_ptr(),
        b.data_ptr(),
        c.data_ptr(),
        c.shape[0],
        c.shape[1],
        a.shape[1],
        a.stride(),
        b.stride(),
        c.stride(0),
        add,
    )
    return c


KERNEL = Kernel(
    op="addmm",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=addmm_,
    supports=supports,
    unavailable_reason=unavailable_reason,
    in_library=True,
    gain="the gradient of the head's weight, added to as it is multiplied, in C++ (make bench-training)",
    fallback="PyTorch's matmul and a pass to add it: 1.3 times as long, in bfloat16 1.7 times",
)
