"""The losses of some rows of logits, and their gradients in the place of the logits, in C++ (cross_entropy.cpp).

As ops it is a pass for log_softmax, one for its exponential, two more for targets and ignored rows, and a cast.
"""

import functools
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernel import Kernel
from ..plain import is_plain
from . import native

DTYPES = {torch.float32: "cross_entropy_float32", torch.bfloat16: "cross_entropy_bfloat16"}
# struct CrossEntropyCall: logits, targets, losses, rows, width, ignored, gradient, threads
pack = struct.Struct("3P5q").pack


def losses_(logits: Tensor, targets: Tensor, ignore_index: int, gradient: bool) -> Tensor:
    """The loss of each row of logits (rows, vocab), in float32; with `gradient` the logits become its gradient.

    Targets are in the vocabulary, or `ignore_index`. No gradients flow through it.
    """
    targets = targets.to(torch.int64).contiguous()  # held until the call is over
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    call = pack(
        logits.data_ptr(),
        targets.data_ptr(),
        losses.data_ptr(),
        *logits.shape,
        ignore_index,
        gradient,
        torch.get_num_threads(),
    )
    _functions()[logits.dtype](call)
    return losses


def suits(logits: Tensor, targets: Tensor) -> bool:
    """Whether these are ordinary tensors of a CPU, rows side by side, and the code can be built here."""
    return (
        is_plain(logits, targets)
        and targets.is_cpu
        and logits.is_contiguous()
        and logits.numel() > 0
        and not logits.is_neg()  # a view of complex numbers: what lies in memory is to be negated
        and logits.dtype in _functions()
    )


@functools.cache
def _functions() -> dict[torch.dtype, Callable[[bytes], int]]:
    """By dtype. Nothing where there is no library."""
    return native.functions(DTYPES)


KERNEL = Kernel(
    op="losses",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=losses_,
    suits=suits,
    why_not=native.why_not,
    in_library=True,
    reason="logits become losses and gradients while a row is in the cache, in C++ (make bench-training)",
    instead="the formula: 2.7 to 4.4 times as long",
)
