"""The losses of rows of logits, and their gradients written over the logits, in C++ (cross_entropy.cpp).

As ops it is a pass for log_softmax, one for its exponential, two more for targets and ignored rows, and a cast.
"""

import torch
from torch import Tensor

from ..kernel import Kernel
from ..plain import is_plain
from . import native
from .calls import Function

DTYPES = {torch.float32: "cross_entropy_float32", torch.bfloat16: "cross_entropy_bfloat16"}
CROSS_ENTROPY = Function("CrossEntropyCall", DTYPES, "logits targets losses rows width ignored gradient")


def cross_entropy_and_grad_(logits: Tensor, targets: Tensor, ignore_index: int, gradient: bool) -> Tensor:
    """The loss of each row of logits (rows, vocab), in float32; with `gradient` the logits become its gradient.

    Targets are in the vocabulary, or `ignore_index`. No gradients flow through it.
    """
    targets = targets.to(torch.int64).contiguous()  # kept alive during the call
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    CROSS_ENTROPY.call(
        logits.dtype, logits.data_ptr(), targets.data_ptr(), losses.data_ptr(), *logits.shape, ignore_index, gradient
    )
    return losses


def supports(logits: Tensor, targets: Tensor) -> bool:
    """Whether these are ordinary, contiguous tensors on a CPU, and there is a library."""
    return (
        is_plain(logits, targets)
        and targets.is_cpu
        and logits.is_contiguous()
        and logits.numel() > 0
        and not logits.is_neg()  # a view of complex numbers whose memory must be negated
        and logits.dtype in CROSS_ENTROPY.available()
    )


KERNEL = Kernel(
    op="cross_entropy",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=cross_entropy_and_grad_,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="logits become losses and gradients while a row is in the cache, in C++ (make bench-training)",
    fallback="the formula: 2.7 to 4.4 times as long",
)
