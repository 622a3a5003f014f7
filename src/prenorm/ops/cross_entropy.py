"""Cross-entropy, and its form that never holds the logits of a long sequence at once."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ShapeError
from ..kernels.plain import differentiated_once, gradients_again, is_held_in_a_graph
from ..private_torch import is_transformed
from . import backends
from .arguments import is_autocast
from .integers import check_integers
from .linear import linear
from .ranges import check_range

IGNORED = -100  # PyTorch's and Hugging Face's mark for "no target here"
CHUNK_ELEMENTS = 2**23  # logits held at once: 32 MiB of float32; with half as many the products are slower
ROWS_MULTIPLE = 64  # of the rows held at once: products of 262 rows take longer than those of 256 and 6


def cross_entropy(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"], *, ignore_index: int = IGNORED
) -> Float[Tensor, ""]:
    """The mean over all targets but `ignore_index` of -log softmax(logits)[target], in nats.

    Computed in float32 or wider, and given in that dtype. Without any target left the loss is 0.
    Raises ShapeError, and RangeError for a target outside the vocabulary.
    """
    check_targets(logits.shape[:-1], targets, logits.shape[-1], ignore_index)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    kept = targets != ignore_index
    picked = wide.gather(-1, targets.where(kept, 0)[..., None])[..., 0]
    losses = (wide.logsumexp(-1) - picked).where(kept, 0)
    return losses.sum() / kept.sum().clamp_min(1)


def linear_cross_entropy(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "*batch"],
    *,
    ignore_index: int = IGNORED,
) -> Float[Tensor, ""]:
    """cross_entropy(linear(x, weight), targets), some rows of logits at a time.

    The gradients with respect to x and weight are computed in the forward pass, while a chunk's logits exist, so
    the memory is that of one chunk in training too. Second derivatives, and those of torch.func and forward-mode
    differentiation, hold all logits.
    """
    check_targets(x.shape[:-1], targets, weight.shape[0], ignore_index)
    if is_transformed():
        return cross_entropy(linear(x, weight), targets, ignore_index=ignore_index)
    rows = x.reshape(-1, x.shape[-1])
    return _LinearCrossEntropy.apply(rows, weight, targets.reshape(-1), ignore_index)


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch d_model"],
    targets: Int[Tensor, "*batch"],
    *,
    vocab_size: int,
    ignore_index: int = IGNORED,
) -> Float[Tensor, ""]:
    """cross_entropy(head(x), targets), some rows of logits at a time, for a head without a floating-point weight."""
    check_targets(x.shape[:-1], targets, vocab_size, ignore_index)
    if is_transformed():
        return cross_entropy(head(x), targets, ignore_index=ignore_index)
    rows, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    total = torch.zeros((), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    chunk = chunk_rows(vocab_size)
    for start in range(0, rows.shape[0], chunk):
        part = slice(start, start + chunk)
        kept = (targets[part] != ignore_index).sum()
        total += cross_entropy(head(rows[part]), targets[part], ignore_index=ignore_index) * kept
    return total / (targets != ignore_index).sum().clamp_min(1)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        wide, given = torch.promote_types(x.dtype, torch.float32), (x, weight)
        count = (targets != ignore_index).sum().clamp_min(1)
        total = torch.zeros((), dtype=wide, device=x.device)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = weight.new_zeros(weight.shape, dtype=wide) if ctx.needs_input_grad[1] else None
        chunk = chunk_rows(weight.shape[0])
        x, weight = as_multiplied(x), as_multiplied(weight)  # once, and not in every product
        for start in range(0, x.shape[0], chunk):
            part = slice(start, start + chunk)
            with_gradient = grad_x is not None or grad_weight is not None
            losses, grad = losses_and_gradient(linear(x[part], weight), targets[part], ignore_index, with_gradient)
            total += losses.sum()
            if grad_x is not None:
                grad_x[part] = linear(grad, weight.t())
            if grad_weight is not None:
                addmm_(grad_weight, grad.t(), x[part])
        ctx.save_for_backward(*given, targets, grad_x, grad_weight, count)
        ctx.multiplied, ctx.ignore_index = x.dtype, ignore_index
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets, grad_x, grad_weight, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of the gradients are wanted, for which the stored ones are constants

            def plain_pair(x: Tensor, weight: Tensor) -> Tensor:
                logits = linear(x.to(ctx.multiplied), weight.to(ctx.multiplied))
                return cross_entropy(logits, targets, ignore_index=ctx.ignore_index)

            return *gradients_again(plain_pair, (x, weight), ctx.needs_input_grad[:2], grad), None, None
        scale = grad / count
        grads: tuple[Tensor | None, ...] = (
            None if grad_x is None else (grad_x * scale).to(grad_x.dtype),
            None if grad_weight is None else (grad_weight * scale).to(weight.dtype),
        )
        if is_held_in_a_graph():
            grads = differentiated_once(grads, (x, weight))
        return *grads, None, None


def chunk_rows(vocab_size: int) -> int:
    """How many rows of logits the loss holds at a time."""
    rows = CHUNK_ELEMENTS // vocab_size
    return max(1, rows // ROWS_MULTIPLE * ROWS_MULTIPLE or rows)


def as_multiplied(x: Tensor) -> Tensor:
    """In autocast's dtype for products, where it is on."""
    if x.dtype == torch.float64 or not is_autocast(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def addmm_(
    total: Float[Tensor, "rows columns"], a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]
) -> None:
    """total += a b, in the dtype of the total."""
    if kernel := backends.choose("addmm", a, b):
        kernel(total, a, b)
    else:
        total += linear(a, b.t())


def losses_and_gradient(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"], ignore_index: int, with_gradient: bool
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"]]:
    """The loss of each row, and the gradient of their sum, which may overwrite the logits.

    d loss / d logits = softmax(logits) - one_hot(target), and nothing where there is no target.
    """
    if kernel := backends.choose("cross_entropy", logits, targets):
        return kernel(logits, targets, ignore_index, with_gradient), logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    kept = targets != ignore_index
    target = targets.where(kept, 0)[:, None]
    log_probabilities = torch.log_softmax(logits, -1, dtype=wide)
    losses = -log_probabilities.gather(-1, target)[:, 0].where(kept, 0)
    if not with_gradient:
        return losses, logits
    grad = log_probabilities.exp_().scatter_add_(-1, target, -torch.ones_like(target, dtype=wide))
    return losses, grad.mul_(kept[:, None]).to(logits.dtype)


def check_targets(rows: torch.Size, targets: Tensor, vocab_size: int, ignore_index: int) -> None:
    """Raise ShapeError unless there is a target a row, and RangeError for one outside the vocabulary."""
    check_integers("targets", targets)
    if rows != targets.shape:
        raise ShapeError(
            f"there must be one target a row, but the rows are {tuple(rows)} and the targets {tuple(targets.shape)}."
        )
    checked = targets.where(targets != ignore_index, 0)
    check_range(checked, vocab_size, what="the targets", rule=f"targets must be in [0, {vocab_size}) or {ignore_index}")
