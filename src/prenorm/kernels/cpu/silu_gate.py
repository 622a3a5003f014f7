"""silu(gate) * up, the bend in the middle of SwiGLU, in one pass over memory, in C++ (silu_gate.cpp).

As two ops it is two passes forward and four backward, and one tensor more is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from ..kernel import Kernel
from ..plain import fits_backward, is_plain
from . import native
from .calls import Function

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FORWARD = Function("SiluGateCall", {dtype: f"silu_gate_{name}" for dtype, name in DTYPES.items()}, "gate up y count")
BACKWARD = Function(
    "SiluGateCall",
    {dtype: f"silu_gate_backward_{name}" for dtype, name in DTYPES.items()},
    "gate up g dgate dup count",
)
# `make bench-training`: with 2**11 numbers PyTorch's two ops are faster, forward and backward.
MIN_NUMEL = 2**15


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, computed in float32 and rounded to the dtype of both once, at the end."""
    gate, up = gate.contiguous(), up.contiguous()
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        y: Tensor = _SiluGate.apply(gate, up)
        return y
    return _forward(gate, up)


def supports(gate: Tensor, up: Tensor) -> bool:
    """Whether these are ordinary, large tensors on a CPU, of one shape and dtype, and there is a library."""
    return (
        is_plain(gate, up)  # first: torch.compile specialises on a size that is compared
        and gate.numel() >= MIN_NUMEL
        and up.is_cpu
        and gate.dtype == up.dtype
        and gate.shape == up.shape
        and not gate.is_neg()  # a view of complex numbers whose memory must be negated
        and not up.is_neg()
        and gate.dtype in FORWARD.available()
    )


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate)
    FORWARD.call(gate.dtype, gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel())
    return y


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _forward(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if not fits_backward(grad):
            return _gradients(grad, gate, up)  # in ops that autograd and dispatch modes see
        grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()  # hooks may change what was saved
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        BACKWARD.call(
            gate.dtype,
            gate.data_ptr(),
            up.data_ptr(),
            grad.data_ptr(),
            grad_gate.data_ptr(),
            grad_up.data_ptr(),
            gate.numel(),
        )
        return grad_gate, grad_up


def _gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in ops that have gradients."""
    wide, through = gate.float(), grad.float()
    s = wide.sigmoid()
    grad_gate = through * up.float() * (s * (1 + wide * (1 - s)))
    return grad_gate.to(gate.dtype), (through * (wide * s)).to(up.dtype)


KERNEL = Kernel(
    op="silu_gate",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=silu_gate,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="silu(gate) * up in one pass over memory, and both gradients in another, in C++ (make bench-training)",
    fallback="the formula: 1.3 times as long for 16 tokens of d_ff 2,048, 1.7 to 1.9 times for 2,048",
)
