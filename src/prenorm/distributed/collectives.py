"""Collectives that gradients flow through: the backward pass of each is another one of them.

Two kinds of tensors are met in a group. One that is whole is the same on all ranks, and so is its gradient. One that is
split has a part on each rank along a dim, in chunks of ceil(size / ranks), the last ones shorter or empty. A sum over
the ranks turns terms, of which each rank has one, into a whole.

| | forward | backward |
|---|---|---|
| copy   | a whole is used by each rank for a term | the gradients of the terms are summed |
| total  | terms are summed to a whole             | each term has the whole's gradient |
| gather | a split becomes a whole that is used for terms | the gradients of the terms are summed, and split |
| scatter_sum | terms are summed, and split        | gathered |
| split  | a whole is split                        | joined |
| join   | a split becomes a whole                 | split |

Source: Shoeybi et al. 2019, arXiv:1909.08053 (copy, total); Korthikanti et al. 2022, arXiv:2205.05198 (the sequence).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad

# Releases of torch call them by either name.
all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def copy(x: Tensor, group: ProcessGroup) -> Tensor:
    """A whole, of which each rank makes a term."""
    return _Copy.apply(x, group)


def total(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' terms, whole."""
    return _Total.apply(x, group)


def gather(x: Tensor, group: ProcessGroup, dim: int, size: int) -> Tensor:
    """The whole of a split tensor, of which each rank makes a term. size: of the whole, along dim."""
    return _Gather.apply(x, group, dim, size)


def scatter_sum(x: Tensor, group: ProcessGroup, dim: int) -> Tensor:
    """This rank's part of the sum of the ranks' terms."""
    return _ScatterSum.apply(x, group, dim)


def split(x: Tensor, group: ProcessGroup, dim: int) -> Tensor:
    """This rank's part of a whole."""
    return _Split.apply(x, group, dim)


def join(x: Tensor, group: ProcessGroup, dim: int, size: int) -> Tensor:
    """The whole of a split tensor. size: of the whole, along dim."""
    return _Join.apply(x, group, dim, size)


def chunk_of(size: int, group: ProcessGroup) -> slice:
    """Which places along a dim of this size the rank has."""
    chunk = -(-size // group.size())
    start = min(group.rank() * chunk, size)
    return slice(start, min(start + chunk, size))


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return total(grad, ctx.group), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return copy(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, dim: int, size: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _all_parts(x, group, dim, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return scatter_sum(grad, ctx.group, ctx.dim), None, None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim, ctx.size = group, dim, x.shape[dim]
        return _summed_part(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return gather(grad, ctx.group, ctx.dim, ctx.size), None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim, ctx.size = group, dim, x.shape[dim]
        mine = chunk_of(ctx.size, group)
        return x.narrow(dim, mine.start, mine.stop - mine.start).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return join(grad, ctx.group, ctx.dim, ctx.size), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, dim: int, size: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return _all_parts(x, group, dim, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return split(grad, ctx.group, ctx.dim), None, None, None


def _all_parts(x: Tensor, group: ProcessGroup, dim: int, size: int) -> Tensor:
    """The parts of all ranks, side by side. Parts are padded to one size, which the collective needs."""
    part = _padded(x.movedim(dim, 0), -(-size // group.size())).contiguous()
    parts = part.new_empty(group.size() * part.shape[0], *part.shape[1:])
    all_gather(parts, part, group=group)
    return parts[:size].movedim(0, dim).contiguous()


def _summed_part(x: Tensor, group: ProcessGroup, dim: int) -> Tensor:
    """This rank's part of the sum over the ranks."""
    size = x.shape[dim]
    chunk, mine = -(-size // group.size()), chunk_of(size, group)
    terms = _padded(x.movedim(dim, 0), chunk * group.size()).contiguous()
    part = terms.new_empty(chunk, *terms.shape[1:])
    reduce_scatter(part, terms, group=group)
    return part[: mine.stop - mine.start].movedim(0, dim).contiguous()


def _padded(x: Tensor, size: int) -> Tensor:
    """x with zeros after it along the first dim, up to this size."""
    missing = size - x.shape[0]
    return pad(x, (*(0, 0) * (x.ndim - 1), 0, missing)) if missing else x
