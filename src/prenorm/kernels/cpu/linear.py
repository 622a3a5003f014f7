"""Products through a faster library than PyTorch takes: float32 on AMD from Zen 3 on, bfloat16 without AVX-512.

A PyTorch program multiplies float32 matrices on a CPU with MKL, which Intel writes for Intel. PyTorch has oneDNN too,
for bfloat16. Both are full float32; they differ in the order of sums. oneDNN has bfloat16 products for AVX-512 alone;
without it they run at a quarter of float32's speed, and ours (matmul.cpp) at float32's.
"""

from typing import Any

import torch
from torch import Tensor

from ...private_torch import computes_now, has_onednn_linear, is_compiling, onednn_linear
from ..kernel import Kernel
from ..plain import (
    ORDINARY,
    fits_backward,
    is_held_in_a_graph,
    no_second_derivative,
)
from . import native
from .calls import is_there
from .matmul import matmul
from .matmul import supports as supports_matmul
from .processor import ZEN_5, is_zen_3_or_later, processor

get_num_threads = torch.get_num_threads

# `make bench-linear` on Zen 4: one thread multiplies a row or two by a weight that fits the caches faster in MKL.
FEW_ROWS, LARGE_WEIGHT = 4, 2**22
ROUNDED = (torch.float32, torch.bfloat16)  # dtypes that autocast rounds to its own, or leaves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, (..., in) to (..., out), with gradients of all three."""
    if is_compiling():  # a graph holds it as one op
        return _op(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are ordinary tensors of a dtype that PyTorch multiplies more slowly on this CPU.

    Compiled code holds the product as one op. An exported program does not: it must run without this package.
    """
    return (
        (not REASON if x.dtype == torch.float32 else not BFLOAT16_REASON and is_there())
        and weight.dtype == x.dtype
        and (bias is None or bias.dtype == x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and _fits(x, weight, bias)
        and (x.dtype != torch.float32 or is_compiling() or get_num_threads() > 1 or _is_much(x, weight))
    )


def autocast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, of inputs that are rounded to bfloat16 first, as autocast rounds them."""
    return linear(x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())


def supports_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether autocast would round these ordinary tensors to bfloat16, which PyTorch multiplies slowly on this CPU."""
    return (
        not BFLOAT16_REASON
        and is_there()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and weight.dtype in ROUNDED
        and (bias is None or bias.dtype in ROUNDED)
        and _fits(x, weight, bias)
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        (computes_now() or is_held_in_a_graph())
        and type(x) in ORDINARY
        and type(weight) in ORDINARY
        and (bias is None or type(bias) in ORDINARY)
        and weight.is_cpu
        and weight.ndim == 2
        and (weight.is_contiguous() or weight.t().is_contiguous())  # a slice would run oneDNN's slow reference code
        and x.shape[-1] == weight.shape[-1]
        and x.numel() > 0
        and weight.numel() > 0
    )


def _is_much(x: Tensor, weight: Tensor) -> bool:
    return x.numel() >= FEW_ROWS * x.shape[-1] or weight.numel() >= LARGE_WEIGHT


def unavailable_reason() -> str:
    """Why MKL runs on this machine; empty where oneDNN does."""
    return REASON


def bfloat16_unavailable_reason() -> str:
    """Why PyTorch multiplies bfloat16 on this machine; empty where matmul.cpp does."""
    return BFLOAT16_REASON or native.unavailable_reason()


def reason(vendor: str, family: int) -> str:
    """Why MKL runs on such a processor; empty where oneDNN does."""
    if not has_onednn_linear():
        return "this PyTorch has no oneDNN"
    if not torch.backends.mkl.is_available():
        return "this PyTorch does not multiply with MKL"
    if not is_zen_3_or_later(vendor, family):
        return "MKL is the faster library here: this is not an AMD processor from Zen 3 on"
    return ""


# Once: compiled code cannot ask.
REASON = reason(*processor())
BFLOAT16_REASON = (
    ""
    if torch.backends.cpu.get_cpu_capability() == "AVX2"
    else "PyTorch's product is slow only on processors with AVX2 and without AVX-512, and this is not one"
)
WEIGHT_TOO = processor()[1] >= ZEN_5  # the gradient of a weight, where matmul.py cannot compute it


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b; in bfloat16 summed in float32 and rounded once."""
    if x.dtype == torch.float32:
        return onednn_linear(x, weight, bias)
    y = matmul(x.reshape(-1, x.shape[-1]).resolve_neg(), weight.t().resolve_neg())
    return (y if bias is None else y + bias).to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and of weight; where one is not asked for, an empty tensor."""
    rows, gradients = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = _product(gradients, weight.t(), None).view(x.shape) if for_x else x.new_empty(0)
    if not for_weight:
        return grad_x, x.new_empty(0)
    if supports_matmul(gradients.t(), rows):
        return grad_x, matmul(gradients.t(), rows).to(weight.dtype)
    if x.dtype == torch.float32 and not WEIGHT_TOO:
        return grad_x, gradients.t() @ rows
    return grad_x, _product(gradients.t(), rows.t(), None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if for_bias else None
        if not fits_backward(grad):
            grad_x = grad @ weight if for_x else None  # in ops that autograd and dispatch modes see
            rows = grad.reshape(-1, grad.shape[-1])
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if for_weight else None
            return grad_x, grad_weight, grad_bias
        grad_x, grad_weight = _gradients(grad, x, weight, for_x, for_weight)
        return grad_x if for_x else None, grad_weight if for_weight else None, grad_bias


@torch.library.custom_op("prenorm::linear", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x.contiguous(), weight, bias)


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("prenorm::linear_gradients", mutates_args=())
def _op_gradients(grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    return _gradients(grad.contiguous(), x.contiguous(), weight, for_x, for_weight)


@_op_gradients.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape if for_x else (0,)),
        weight.new_empty(weight.shape if for_weight else (0,)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias = ctx.needs_input_grad
    grad_x, grad_weight = _op_gradients(grad, x, weight, for_x, for_weight)
    grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if for_bias else None
    return grad_x if for_x else None, grad_weight if for_weight else None, grad_bias


_op.register_autograd(_backward, setup_context=_keep)
_op_gradients.register_autograd(no_second_derivative("linear"))


KERNEL = Kernel(
    op="linear",
    devices=("cpu",),
    dtypes=(torch.float32,),
    run=linear,
    supports=supports,
    unavailable_reason=unavailable_reason,
    gain="oneDNN instead of MKL: the faster one on AMD processors from Zen 3 on (make bench-linear)",
    fallback="MKL: on Zen 3 some 1.1 times as long, on Zen 4 1.2 to 1.6 times, on Zen 5 twice",
)

BFLOAT16_KERNEL = Kernel(
    op="linear",
    devices=("cpu",),
    dtypes=(torch.bfloat16,),
    run=linear,
    supports=supports,
    unavailable_reason=bfloat16_unavailable_reason,
    in_library=True,
    gain="products of bfloat16 in C++, where PyTorch has none for the processor (make bench-avx2)",
    fallback="PyTorch's product: some 4 times as long with AVX2",
)

AUTOCAST_KERNEL = Kernel(
    op="linear",
    devices=("cpu",),
    dtypes=ROUNDED,
    run=autocast_linear,
    supports=supports_autocast,
    unavailable_reason=bfloat16_unavailable_reason,
    in_library=True,
    gain="products in autocast to bfloat16 in C++, where PyTorch has none for the processor (make bench-avx2)",
    fallback="PyTorch's product: some 4 times as long with AVX2",
)
