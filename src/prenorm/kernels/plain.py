"""Which tensors a kernel with a backward pass of its own may take."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..private_torch import computes_now, is_compiling, is_legacy_batchedtensor, is_transformed

ORDINARY = (Tensor, Parameter)
is_exporting = torch.compiler.is_exporting


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors in eager mode, with no tracing or dispatch mode.

    Subclasses are not: fake and distributed tensors have no data here.
    """
    return computes_now() and all(type(x) in ORDINARY for x in tensors)


def fits_backward(grad: Tensor) -> bool:
    """Whether a kernel's own backward pass may take this gradient; otherwise the formula's gradients are needed.

    Not when gradients of the gradients are wanted, whether or not `grad` itself needs one (create_graph), nor for a
    batch of gradients (is_grads_batched, which jacobians are made of) or one whose memory has to be negated.
    """
    return not torch.is_grad_enabled() and is_plain(grad) and not is_legacy_batchedtensor(grad) and not grad.is_neg()


def gradients_again(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of formula(*inputs) that can be differentiated again, None for inputs that need none.

    Each input is made a node of its own first: where one is another, or is computed from it (a head that is tied to the
    embedding), autograd would count what flows through both.
    """
    own = [x.view_as(x) for x in inputs]
    wanted = [x for x, is_needed in zip(own, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(formula(*own), wanted, grad, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]


def is_held_in_a_graph() -> bool:
    """Whether code is being compiled that may hold an op of ours.

    What is exported must run without this package, and torch.func has no rules for custom ops.
    """
    return is_compiling() and not is_exporting() and not is_transformed()


def no_second_derivative(name: str, *, formula: bool = True) -> Callable[..., Any]:
    """The backward pass of an op that is itself a backward pass in compiled code. Raises RuntimeError.

    formula: whether the reference backend differs there.
    """

    def backward(*_: Any) -> Any:
        raise RuntimeError(
            f"compiled code has first derivatives only, and the gradients of {name} are to be differentiated again; "
            "do not compile this module" + (', or compile it within use_backend("reference").' if formula else ".")
        )

    return backward


def differentiated_once(grads: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that a compiled autograd.Function has of its inputs; differentiating them raises RuntimeError.

    Where a graph is not compiled further (backend="eager"), PyTorch takes them for constants, even if second
    derivatives are wanted, and leaves out without a word what they would add.
    """
    with torch.enable_grad():
        one = _one(inputs)
        return tuple(None if grad is None else grad * one for grad in grads)


@torch.library.custom_op("prenorm::one", mutates_args=())
def _one(inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].new_ones(())


@_one.register_fake
def _(inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].new_ones(())


_one.register_autograd(no_second_derivative("a loss or of attention", formula=False))
