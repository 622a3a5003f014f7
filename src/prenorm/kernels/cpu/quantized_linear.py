"""Linear maps with weights of 8 or 4 bits, in C++ (quantized_linear.cpp): integers are multiplied with integers.

PyTorch's own integer products round activations per tensor, or turn weights into floats first.
"""

import torch
from torch import Tensor

from ...private_torch import computes_now, is_compiling
from ..kernel import Kernel
from ..plain import ORDINARY, is_held_in_a_graph
from ..quantized_layout import GROUP, ROWS, SCALE
from . import native
from .calls import Function

BITS = {ROWS * GROUP: 8, ROWS * GROUP // 2: 4}  # of a number, by the bytes of a group in a block
FUNCTIONS = {
    (dtype, size): f"quantized_linear_int{bits}_{str(dtype).removeprefix('torch.')}"
    for dtype in (torch.float32, torch.bfloat16)
    for size, bits in BITS.items()
}
QUANTIZED_LINEAR = Function("QuantizedLinearCall", FUNCTIONS, "x weight scale bias y rows in_features out_features")


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """x W^T + b, (..., in) to (..., out), with x rounded; W as `ops.quantized.pack` packs it. Without gradients."""
    return (_op if is_compiling() else _product)(x, weight, scale, bias, out_features)


def supports(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> bool:
    """Whether these are ordinary tensors on a CPU whose shapes agree, and there is a library.

    Compiled code holds the product as one op. An exported program does not: it must run without this package.
    """
    return (
        (computes_now() or is_held_in_a_graph())
        and _is_plain(weight, torch.uint8)
        and _is_plain(scale, SCALE)
        and type(x) in ORDINARY
        and x.layout == torch.strided
        and weight.ndim == scale.ndim == 3
        and scale.shape == (*weight.shape[:2], ROWS)
        and weight.shape[0] == -(-out_features // ROWS)
        and weight.shape[1] == -(-x.shape[-1] // GROUP)
        and (bias is None or (_is_plain(bias, x.dtype) and bias.shape == (out_features,)))
        and (x.dtype, weight.shape[2]) in FUNCTIONS
        and _are_there()
    )


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(tensor) in ORDINARY
        and tensor.dtype == dtype
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
    )


def _product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    x = x.resolve_neg().contiguous()  # a view of complex numbers may be one whose memory is to be negated
    bias = None if bias is None else bias.resolve_neg()
    y = x.new_empty((*x.shape[:-1], out_features))
    QUANTIZED_LINEAR.call(
        (x.dtype, weight.shape[2]),
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        y.numel() // out_features,
        x.shape[-1],
        out_features,
    )
    return y


@torch.library.custom_op("prenorm::quantized_linear", mutates_args=())
def _op(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return _product(x, weight, scale, bias, out_features)


@_op.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile calls it and does not trace it
def _are_there() -> bool:
    return not native.unavailable_reason()


KERNEL = Kernel(
    op="quantized_linear",
    devices=("cpu",),
    dtypes=(torch.float32, torch.bfloat16),
    run=quantized_linear,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="integer products, with weights read as they are stored (make bench-quantized)",
    fallback="the formula: the weight is turned into floats first, each time",
)
