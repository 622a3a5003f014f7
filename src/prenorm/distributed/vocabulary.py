"""The vocabulary split between ranks: each has the embeddings and the logits of some tokens.

The loss needs three numbers for each target from every rank: the largest logit, the sum of exponentials and the logit
of the target. Logits are computed some rows at a time and never leave the rank.
Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle

from ..errors import ConfigError
from ..layers.embedding import Embedding
from ..models.generative import GenerativeModel
from ..ops.cross_entropy import (
    IGNORED,
    addmm_,
    as_multiplied,
    check_targets,
    chunk_rows,
    chunked_cross_entropy,
)
from ..ops.integers import check_integers
from ..ops.linear import linear
from ..ops.ranges import check_range
from ..private_torch import has_any_global_hook
from . import collectives, sequence
from .layout import has_part_for_each
from .local_weights import Weight, computing_with, distribute, own, replace_forward
from .tensor_parallel import Split

Finish = Callable[[Tensor], Tensor]


class SplitEmbedding(Split):
    """Splits an embedding of ours by tokens. into_sequence: what it gives is a split sequence, where it is long enough.

    Otherwise it is whole.
    """

    def __init__(self, *, into_sequence: bool = False) -> None:
        self.into_sequence = into_sequence

    def check(self, module: nn.Module, ranks: int) -> None:
        """Raise ConfigError where a rank would have no token."""
        assert isinstance(module, Embedding)
        if not has_part_for_each(module.vocab_size, ranks):
            raise ConfigError(
                f"every rank must have some of the tokens, but tp is {ranks} and vocab_size {module.vocab_size}, of "
                "which the last rank would have none; choose a smaller tp."
            )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Embedding)
        group, vocab_size = device_mesh.get_group(), module.vocab_size
        mine = collectives.chunk_of(vocab_size, group)
        distribute(module, "weight", device_mesh, dim=0)
        weights = [Weight(module, "weight", own)]

        def forward(token_ids: Tensor) -> Tensor:
            check_integers("token ids", token_ids)
            rule = f"token ids must be in [0, vocab_size) = [0, {vocab_size})"
            check_range(token_ids, vocab_size, what="the token ids", rule=rule)
            is_mine = (token_ids >= mine.start) & (token_ids < mine.stop)
            with computing_with(weights):
                found = type(module).forward(module, (token_ids - mine.start).where(is_mine, 0))
            term = found.where(is_mine[..., None], 0)
            if self.into_sequence and term.ndim > 1 and sequence.can_split(term, device_mesh):
                return sequence.wrap(collectives.scatter_sum(term, group, sequence.DIM), term.shape, device_mesh)
            return collectives.total(term, group)

        return replace_forward(module, forward)


class SplitHead(ParallelStyle):
    """Splits the head of a language model by tokens: the embedding's weight, split already, or a matrix of its own."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, GenerativeModel)
        model, group, vocab_size = module, device_mesh.get_group(), module.config.vocab_size
        if model.lm_head is not None:
            distribute(model.lm_head, "weight", device_mesh, dim=0)
            replace_forward(model.lm_head, lambda hidden: logits_of(hidden))

        def weight() -> Tensor:
            return own(model.head_weight)  # type: ignore[arg-type]

        def logits_of(hidden: Tensor) -> Tensor:
            part = linear(collectives.copy(hidden, group), weight())
            return collectives.join(part, group, -1, vocab_size)

        def head(hidden: Tensor) -> Tensor:
            return model._finish(logits_of(hidden) if model.lm_head is None else model.lm_head(hidden))

        def loss(hidden: Tensor, targets: Tensor, segment_ids: Tensor | None, vocab_size: int) -> Tensor:
            if segment_ids is not None and targets.shape == segment_ids.shape:
                targets = targets.masked_fill(segment_ids < 0, IGNORED)
            if model.lm_head is not None and _has_hooks(model.lm_head):
                return chunked_cross_entropy(head, hidden, targets, vocab_size=vocab_size)
            finish = model._finish if model._finishes() else None
            copied = collectives.copy(hidden, group)
            return split_cross_entropy(copied, weight(), targets, group, vocab_size=vocab_size, finish=finish)

        model._head, model._loss = head, loss  # type: ignore[method-assign]
        return model


def split_cross_entropy(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, "part_of_vocab d_model"],
    targets: Int[Tensor, "*batch"],
    group: ProcessGroup,
    *,
    vocab_size: int,
    finish: Finish | None = None,
) -> Float[Tensor, ""]:
    """cross_entropy(finish(linear(x, all weights)), targets), with this rank's part of the weights, in chunks.

    finish: done to the logits, number by number. The gradients are computed in the forward pass; that of x is this
    rank's term of it. They cannot be differentiated again.
    """
    check_targets(x.shape[:-1], targets, vocab_size, IGNORED)
    rows = x.reshape(-1, x.shape[-1])
    return _SplitCrossEntropy.apply(rows, weight, targets.reshape(-1), group, vocab_size, finish)


class _SplitCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        group: ProcessGroup,
        vocab_size: int,
        finish: Finish | None,
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        kept = targets != IGNORED
        count = kept.sum().clamp_min(1)
        start = collectives.chunk_of(vocab_size, group).start
        needs_grad = any(ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=wide, device=x.device)
        grad_x = torch.empty_like(x) if needs_grad else None
        grad_weight = weight.new_zeros(weight.shape, dtype=wide) if needs_grad else None
        chunk = chunk_rows(-(-vocab_size // group.size()))  # the same on all ranks
        multiplied, matrix = as_multiplied(x), as_multiplied(weight)
        for first in range(0, x.shape[0], chunk):
            part = slice(first, first + chunk)
            logits = linear(multiplied[part], matrix)
            losses, grad = _losses_and_gradient(logits, targets[part] - start, kept[part], group, finish, needs_grad)
            total += losses.sum()
            if grad_x is not None and grad_weight is not None and grad is not None:
                grad = grad.to(logits.dtype)
                grad_x[part] = linear(grad, matrix.t())
                addmm_(grad_weight, grad.t(), multiplied[part])
        ctx.save_for_backward(grad_x, grad_weight, count)
        ctx.dtypes = x.dtype, weight.dtype
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, count = ctx.saved_tensors
        scale = grad / count
        return (grad_x * scale).to(ctx.dtypes[0]), (grad_weight * scale).to(ctx.dtypes[1]), None, None, None, None


def _losses_and_gradient(
    logits: Tensor, targets: Tensor, kept: Tensor, group: ProcessGroup, finish: Finish | None, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, and the gradient of their sum with respect to this rank's logits.

    targets: counted from this rank's first token; outside [0, its tokens) they are other ranks'.
    """
    if finish is not None:
        with torch.enable_grad():
            raw = logits.detach().requires_grad_(needs_grad)
            logits = finish(raw)
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    largest = wide.amax(-1)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    exponentials = (wide - largest[:, None]).exp_()
    is_mine = (targets >= 0) & (targets < wide.shape[-1]) & kept
    target = targets.where(is_mine, 0)[:, None]
    picked = wide.gather(-1, target)[:, 0].where(is_mine, 0)
    sums = torch.stack((exponentials.sum(-1), picked))
    dist.all_reduce(sums, group=group)
    losses = (sums[0].log() + largest - sums[1]).where(kept, 0)
    if not needs_grad:
        return losses, None
    grad = exponentials.div_(sums[0][:, None])
    grad.scatter_add_(-1, target, -is_mine[:, None].to(grad.dtype))
    grad.mul_(kept[:, None])
    if finish is not None:
        (grad,) = torch.autograd.grad(logits, raw, grad.to(logits.dtype))
    return losses, grad


def _has_hooks(head: nn.Module) -> bool:
    own = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    return bool(own) or has_any_global_hook()
